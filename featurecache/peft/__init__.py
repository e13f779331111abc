"""Methods that change what a backbone says by training little of it, none of it, or all of it. One method, one file.

A file of this room defines `LEARNING_RATE`, the rate of what it trains when the user names none (0 where it trains nothing),
and `apply(module, **options) -> Adapted` with keyword-only options that have defaults. Where it applies it also defines
`PAPER`, the source; and `STARTS_AS_BACKBONE = False`, where the method changes what is said before it has learned anything.

What every method promises; the suite of the room's tests holds each file to it:

- `apply` works on a module that has its weights already, changes it in place and puts it in eval mode. It draws its values
  from torch's global generator.
- The keys of the module's own state dict, and their values, stay what they are: submodules, parameters and hooks are added
  to blocks, no block is wrapped in another module.
- What the method does shows in the module itself, so that every kind of feature has it: in `forward_features`,
  `forward_intermediates` and `forward_head` of timm's interface. Tokens that it adds are gone again after each block, unless
  they are part of `tokens_per_layer` to the end.
- Only `trainable` requires gradients. `train(True)` puts into training mode what the method added or trains whole, and drop
  path (which is there only when asked for); frozen blocks, and batch norms and dropouts in them, stay in eval mode.
- `state()` is all that training changes, and no more: with the backbone's weights it gives the same features again.
- `scale(alpha)` walks from the backbone, 0, to the trained model, 1 (WiSE); at 1 the bits are those of training. It is for
  models in eval mode; training goes on from 1.
- `merge`, where there is one, folds what was added into the module's own parameters, so that a plain model says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featurecache.errors import BackboneError
from featurecache.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT = Registry("method", "featurecache.peft")

ADAPTED = "backbone.safetensors"
"""File of a run that holds what was trained in its backbone."""

OF_THE_PASS = ("precision", "batch_size", "views", "decoder")
"""What an identity says beside the backbone: how it is computed, and how images come to it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Adapted:
    """A module with a method in it."""

    module: nn.Module
    """The one that was given."""
    trainable: Mapping[str, float]
    """Names of the parameters that learn, in the module -> factor on the method's rate (deep layers may learn faster)."""
    kept: tuple[str, ...]
    """Names in the module's state dict that training changes: `trainable`, and buffers such as those of batch norms."""
    embed: Callable[[Tensor], Tensor]
    """(B, 3, H, W) -> (B, dim), the pooled vector before a classifier."""
    dim: int
    """0 where the module does not say it."""
    tokens_per_layer: tuple[int, ...]
    """Tokens that each block is given; () for nets that have none."""
    train: Callable[[bool], None]
    """Set training mode, as in `nn.Module`, where the method wants it."""
    scale: Callable[[float], None]
    merge: Callable[[], None] | None = None
    """None: the method cannot be folded in."""
    wider: int = 0
    """Numbers that the method puts before the pooled vector of the backbone; `dim` counts them."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name."""
        own = dict(self.module.named_parameters())
        return {name: own[name] for name in self.trainable}

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that training changes, by name."""
        own = self.module.state_dict()
        return {name: own[name].detach().clone() for name in self.kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        own = self.module.state_dict()
        for name in self.kept:
            own[name].detach().copy_(state[name])


class Apply(Protocol):
    """What `apply` in every file of this room must accept."""

    def __call__(self, module: nn.Module, **options: Any) -> Adapted:
        """Put the method into a module.

        Raises:
            BackboneError: the module has not the parts that the method changes; names them.
            ConfigError: lists every option out of range.
        """


def adapt(name: str, module: nn.Module, options: Mapping[str, Any]) -> Adapted:
    """Put the method called `name` into a module.

    Raises:
        UnknownNameError: there is no such method.
        BackboneError, ConfigError: as `Apply`; every option that is wrong is listed.
    """
    from featurecache.checks import bind_options

    room = PEFT.load(name)
    bound = bind_options(room.apply, options, f"method {name}")
    try:
        found: Adapted = room.apply(module, **bound)
    except BackboneError as refused:
        from featurecache.peft._refusing import methods_for

        raise BackboneError(
            f"{refused} It can take: {', '.join(methods_for(module)) or 'none of our methods'}."
        ) from refused
    return found


def save_adapted(
    folder: Path, adapted: Adapted, name: str, options: Mapping[str, Any], backbone: Mapping[str, Any]
) -> None:
    """Write what was trained, alone, with the method and the identity of the backbone that it belongs to."""
    from featurecache.peft._saving import save

    save(folder / ADAPTED, adapted, name, options, backbone)


def load_adapted(folder: Path, module: nn.Module, backbone: Mapping[str, Any]) -> Adapted | None:
    """Put into a module what `save_adapted` wrote; None where nothing was trained.

    Raises:
        RunError: the file is damaged, or its values are of another backbone; names what differs.
    """
    from featurecache.peft._saving import load

    path = folder / ADAPTED
    return load(path, module, backbone) if path.exists() else None


def load_published(adapted: Adapted, family: str, file: Path) -> None:
    """Set what a method trains from a checkpoint in the names of a paper's code; `family` says whose.

    Raises:
        UnknownNameError: there is no such family of names.
        WeightsError: the file is no checkpoint.
        RunError: its values are not of this method, these options or this backbone; names what is missing or differs.
    """
    from featurecache.peft._published import read_state, set_published

    set_published(adapted, family, read_state(file))


def published_families() -> list[str]:
    """Return the names of the families of names of papers' code."""
    from featurecache.peft._published import families

    return families()


def read_published(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of a paper's code.

    Raises:
        WeightsError: the file is no checkpoint.
    """
    from featurecache.peft._published import read_state

    return read_state(file)


def published_state(adapted: Adapted, family: str) -> dict[str, Tensor]:
    """Return all that training changes, in the names of a paper's code."""
    from featurecache.peft._published import published

    return published(adapted, family, adapted.state())


def methods_for(module: nn.Module) -> list[str]:
    """Return the names of the methods that go into a module with their default options; it is not changed."""
    from featurecache.peft._refusing import methods_for as found

    return found(module)


def foldable_in(module: nn.Module) -> list[str]:
    """Return the names of the methods that go into a module and can be folded into its own parameters."""
    from featurecache.peft._refusing import methods_for

    return methods_for(module, folded=True)


def of_the_backbone(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an identity is the backbone itself; drop path, which is nothing outside of training, is left out."""
    known = {name: value for name, value in identity.items() if name not in OF_THE_PASS}
    architecture = dict(known.get("architecture", {}))
    architecture.pop("drop_path_rate", None)
    return {**known, "architecture": architecture}
