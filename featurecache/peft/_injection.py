"""How a method gets into a module and out of it again: parts are added to its blocks, and heard where they act.

Nothing is wrapped. A part is a submodule of a block, beside what the block has; hooks let it act. A hook is a method of
the part, never a closure over it, so that a copy of the module is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featurecache.errors import BackboneError
from featurecache.peft import Adapted
from featurecache.peft._blocks import Change
from featurecache.peft._line import Line
from featurecache.peft._module import image_side, untouched


class Part(nn.Module):
    """Something that a method adds; `strength` multiplies what it adds to the stream (WiSE), 1 in training."""

    strength: float = 1.0


class Held:
    """A value that one part of a pass leaves for a later one; no tensor of the module, so that copies and graphs ignore it."""

    def __init__(self) -> None:
        self._value: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return Held()

    def put(self, value: Any) -> None:
        """Keep a value."""
        self._value = value

    def seen(self) -> Any:
        """Return it and keep it."""
        return self._value

    def take(self) -> Any:
        """Return it and keep it no longer."""
        value, self._value = self._value, None
        return value


class Injection:
    """A module and what a method adds to it."""

    def __init__(self, module: nn.Module) -> None:
        """Freeze the module."""
        self.module, self.base = module, untouched(module)
        some = next(iter(image_side(module)[0].parameters()))
        self.device, self.dtype = some.device, some.dtype
        self._places: list[tuple[nn.Module, str]] = []
        self._hooks: list[RemovableHandle] = []

    def add(self, owner: nn.Module, name: str, part: Part) -> Any:
        """Make `part` the submodule `name` of `owner`, on its device, and return it.

        Raises:
            BackboneError: a method is in this module already.
        """
        if hasattr(owner, name):
            raise BackboneError(
                f"{type(owner).__name__} has a part called {name} already: a method is in this module. Load it anew."
            )
        owner.add_module(name, part.to(self.device, self.dtype).eval())
        self._places.append((owner, name))
        return part

    def after(self, point: nn.Module, change: Change, *, first: bool = False) -> None:
        """Let `change(input, output)` replace what `point` gives; `change` is a method of a part."""
        self._hooks.append(point.register_forward_hook(partial(_after, change), prepend=first))

    def before(self, point: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Let `change(input)` replace what `point` is given."""
        self._hooks.append(point.register_forward_pre_hook(partial(_before, change)))

    def mask(self, attention: nn.Module, make: Callable[[Tensor], Tensor | None]) -> None:
        """Let `make(tokens)` give what is added to the attention's weights before the softmax, or None."""
        self._hooks.append(attention.register_forward_pre_hook(partial(_masked, make), with_kwargs=True))

    @property
    def parts(self) -> list[Any]:
        """Return what was added."""
        return [getattr(owner, name) for owner, name in self._places]

    def scale(self, alpha: float) -> None:
        """Set the strength of every part."""
        for part in self.parts:
            for inner in part.modules():
                inner.strength = alpha

    def remove(self) -> None:
        """Leave the module as it was."""
        for hook in self._hooks:
            hook.remove()
        for owner, name in self._places:
            delattr(owner, name)
        self._hooks, self._places = [], []

    def adapted(
        self,
        *,
        also: Iterable[str] = (),
        fold: Callable[[], None] | None = None,
        line: bool = False,
        **changes: Any,
    ) -> Adapted:
        """Return the module with the method: what was added learns, and of its own parameters those called `also`.

        `fold` puts what was added into the module's own parameters; the parts are taken out after it. `line` scales by a
        walk from the values at the start to those at the end, instead of by the strength of the parts.
        """
        inside = {id(p) for part in self.parts for p in part.parameters()}
        own = dict(self.module.named_parameters())
        learning = {*also, *(name for name, p in own.items() if id(p) in inside)}
        trainable = {name: 1.0 for name in own if name in learning}
        for name in trainable:
            own[name].requires_grad_(True)
        buffers = {id(b) for part in self.parts for b in part.buffers()}
        kept = (*trainable, *(name for name, b in self.module.named_buffers() if id(b) in buffers))
        return replace(
            self.base, trainable=trainable, kept=kept, train=self.train,
            scale=Line(self.module, kept).scale if line else self.scale, merge=partial(self._merge, fold) if fold else None, **changes,
        )  # fmt: skip

    def train(self, mode: bool) -> None:
        """Set training mode of what was added, and of drop path."""
        drops = [part for part in image_side(self.module)[0].modules() if isinstance(part, DropPath)]
        for part in (*self.parts, *drops):
            part.train(mode)

    def _merge(self, fold: Callable[[], None]) -> None:
        with torch.no_grad():
            fold()
        self.remove()


def _after(change: Change, _: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
    """Change what a part gives; of several values, as attentions give them, the first."""
    if isinstance(found, tuple):
        return (change(given[0], found[0]), *found[1:])
    return change(given[0], found)


def _before(change: Callable[[Tensor], Tensor], _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Change what a part is given, wherever it is given the same tensor (an attention: query, key and value)."""
    first, new = given[0], change(given[0])
    return tuple(new if value is first else value for value in given)


def _masked(
    make: Callable[[Tensor], Tensor | None], _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    mask = make(given[0])
    return None if mask is None else (given, {**named, "attn_mask": mask})
