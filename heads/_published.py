"""Values in the names of the papers' own code, into a head.

A family of names is a file `_published_<family>.py` of this room with `HEAD`, whose values they are; `OPTIONAL`, the first
words of values that a file may leave out; and `ours(state) -> dict`, what of a published state is of the family, by the
names that it has in the head.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from featurecache.checks import check
from featurecache.errors import UnknownNameError
from featurecache.peft import published_families as of_methods
from featurecache.peft import read_published
from featurecache.registry import nearest, plain
from featurecache.shadowing import qualify_name

SHOWN = 12
"""Names of a list that are spelt out."""


def families() -> list[str]:
    """Return the names of the families."""
    found = Path(__file__).parent.glob("_published_*.py")
    return sorted(path.stem.removeprefix("_published_") for path in found)


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """A checkpoint of the code of a paper, that heads are to begin at."""

    family: str
    state: Mapping[str, Tensor]
    """Tensors by their published names."""

    @classmethod
    def read(cls, family: str, file: Path) -> Published:
        """Read a checkpoint.

        Raises:
            UnknownNameError: there is no such family of a head.
            WeightsError: the file is no checkpoint.
        """
        _room(family)
        return cls(family, read_published(file))

    def set(self, name: str, head: nn.Module) -> None:
        """Set a head; what the family does not name stays as it is.

        Raises:
            ConfigError: lists all that is missing, that is of another form of the head, or of another shape.
        """
        check(*((False, problem) for problem in self.refusals(name, head)))
        own = head.state_dict()
        for key, value in _room(self.family).ours(self.state).items():
            if key in own:
                own[key].detach().copy_(value)

    def refusals(self, name: str, head: nn.Module) -> list[str]:
        """Return every reason why a head, which may be without memory, cannot begin at the values."""
        room, family = _room(self.family), self.family
        if plain(name) != room.HEAD:
            return [
                f"--load-published {family} brings values of the head {room.HEAD}, not of {name}: give --head {room.HEAD}"
            ]
        found, own = room.ours(self.state), {key: tuple(value.shape) for key, value in head.named_parameters()}
        missing = [key for key in own if key not in found and not key.startswith(room.OPTIONAL)]
        foreign = [key for key in found if key not in own and not key.startswith(room.OPTIONAL)]
        unlike = [
            f"{key} is {tuple(found[key].shape)}, but {own[key]} is wanted"
            for key in own if key in found and tuple(found[key].shape) != own[key]
        ]  # fmt: skip
        said = [
            f"{len(names)} {what}: {_listed(names)}"
            for what, names in (("missing", missing), ("foreign to it", foreign), ("of another shape", unlike)) if names
        ]  # fmt: skip
        said += [f"names in the file that mean nothing: {_listed(list(self.state))}"] if not found else []
        return [
            f"these values, in the names of {family}, are not of {name} with these options ({'; '.join(said)}): give the "
            "--head-option that they were trained with, rank for low-rank ones, and the model that they were trained on"
        ] if said else []  # fmt: skip


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:SHOWN]
    return ", ".join([*shown, *([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])])


def _room(family: str) -> ModuleType:
    known = families()
    if plain(family) in of_methods():
        raise UnknownNameError(
            f"--load-published {family} brings what a method learned in a backbone, which only train-online --peft takes. "
            f"Values of heads: {', '.join(known)}."
        )
    if plain(family) not in known:
        raise UnknownNameError(
            f"there are no published names called {family!r}.{nearest(family, [*known, *of_methods()])} Known: those of "
            f"heads, {', '.join(known)}, and those of methods, {', '.join(of_methods())}."
        )
    return importlib.import_module(qualify_name(f"heads._published_{plain(family)}"))
