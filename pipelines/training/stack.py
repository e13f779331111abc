"""M heads of equal shape as one: one batch in, (M, B, C) logits out, each head with values, rate and decay of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.training.convergence import is_improving

RandomState = tuple[Tensor, Tensor | None]
"""Of the generators of the CPU and of the current GPU, where it is used."""


@dataclass(slots=True, eq=False)
class Member:
    """One head of a training; after `fit` it holds the values that were best on validation."""

    head: nn.Module
    lr: float
    weight_decay: float = 0.0
    kind: Hashable = None
    """Heads of one kind differ in nothing but their values, and are trained as one stack."""
    random_state: Tensor | None = None
    """State of torch's generator from which this head draws its dropout; None: it goes on where the generator is."""
    best_epoch: int = 0
    """Epoch after which the kept values were reached; 0 is the start."""
    best: tuple[float, ...] = (-math.inf,)
    """What it was chosen by: the task's metric on validation, then minus its loss."""
    history: list[dict[str, float]] = field(default_factory=list)
    diverged: int = 0
    """Epoch in which the loss ceased to be a number; 0: it never did."""

    @property
    def still_improving(self) -> bool:
        """Whether training ended before the loss stopped falling."""
        return is_improving(self.history, self.best_epoch)


class Stack:
    """M heads as one. A single head is called directly, several through `torch.vmap`.

    Heads that draw random numbers in training are called one after the other, each with its own generator, so that every
    one learns what it would learn alone. What all of them share, such as the statistics of the features, is there once.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        self.heads = heads
        self.alone = len(heads) == 1
        self.states: list[RandomState] = []
        trained = {name for name, p in heads[0].named_parameters() if p.requires_grad}
        if self.alone:
            self.values = {name: p for name, p in heads[0].named_parameters() if name in trained}
            return
        states = [{**dict(head.named_parameters()), **dict(head.named_buffers())} for head in heads]
        self.values = {name: torch.stack([s[name].detach() for s in states]).requires_grad_() for name in trained}
        fixed = states[0].keys() - trained
        self._shared = {name: states[0][name].detach() for name in fixed if _equal([s[name] for s in states])}
        self._own = {name: torch.stack([s[name].detach() for s in states]) for name in fixed - self._shared.keys()}
        self._shell = copy.deepcopy(heads[0]).to("meta")
        self._draws: bool | None = None

    def __len__(self) -> int:
        return len(self.heads)

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Arrays of (B, ...) -> (M, B, C) logits."""
        if self.alone:
            return self.heads[0](arrays)[None]
        if self._shell.training and self._drawing(arrays):
            return self._one_by_one(arrays)
        if not self.values and not self._own:
            return self._of_one(({}, {}), arrays).expand(len(self), -1, -1)
        logits: Tensor = torch.vmap(lambda *values: self._of_one(values, arrays))(self.values, self._own)
        return logits

    def _of_one(self, values: Any, arrays: Mapping[str, Tensor]) -> Tensor:
        mine = {**values[0], **values[1], **self._shared}
        logits: Tensor = torch.func.functional_call(self._shell, mine, (arrays,))
        return logits

    def _numbered(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {k: v[number] for k, v in self.values.items()}, {k: v[number] for k, v in self._own.items()}

    def _drawing(self, arrays: Mapping[str, Tensor]) -> bool:
        """Try whether the heads draw random numbers, and leave the generators as they were."""
        if self._draws is None:
            before = random_state()
            with torch.no_grad():
                self._of_one(self._numbered(0), {name: values[:1] for name, values in arrays.items()})
            self._draws = not _same(before, random_state())
            set_random_state(before)
        return self._draws

    def _one_by_one(self, arrays: Mapping[str, Tensor]) -> Tensor:
        if not self.states:  # nobody gave them any: they draw from torch's own generator in turn
            return torch.stack([self._of_one(self._numbered(number), arrays) for number in range(len(self))])
        outputs, before = [], random_state()
        for number in range(len(self)):
            set_random_state(self.states[number])
            outputs.append(self._of_one(self._numbered(number), arrays))
            self.states[number] = random_state()
        set_random_state(before)
        return torch.stack(outputs)

    def train(self, mode: bool) -> None:
        """Set training mode, as in `nn.Module`."""
        for module in [*self.heads, *([] if self.alone else [self._shell])]:
            module.train(mode)

    def of(self, number: int) -> dict[str, Tensor]:
        """Return copies of the trained values of one head."""
        return {name: (p if self.alone else p[number]).detach().clone() for name, p in self.values.items()}


def stacked(members: Sequence[Member]) -> list[tuple[Stack, list[int]]]:
    """Return the members as stacks, each with the numbers of its members: one for every kind and shape."""
    groups: dict[Hashable, list[int]] = {}
    for number, member in enumerate(members):
        shapes = tuple((name, value.shape) for name, value in member.head.state_dict().items())
        groups.setdefault((member.kind, type(member.head), shapes), []).append(number)
    found = []
    for numbers in groups.values():
        stack = Stack([members[number].head for number in numbers])
        given = [members[number].random_state for number in numbers]
        if not stack.alone and None not in given:
            stack.states = [(state, random_state()[1]) for state in given if state is not None]
        found.append((stack, numbers))
    return found


def random_state() -> RandomState:
    """Return the state of the generators that torch draws from."""
    gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if gpu else None


def set_random_state(state: RandomState) -> None:
    """Let torch draw from here on as it did from there."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def _same(one: RandomState, other: RandomState) -> bool:
    on_gpu = one[1] is None or other[1] is None or torch.equal(one[1], other[1])
    return torch.equal(one[0], other[0]) and on_gpu


def _equal(tensors: Sequence[Tensor]) -> bool:
    return all(torch.equal(tensors[0], tensor) for tensor in tensors[1:])
