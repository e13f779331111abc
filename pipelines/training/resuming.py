"""Going on with a training that was stopped: all that changes in it, in one file, replaced whole every half minute.

The file holds tensors and plain values, and is read as nothing else: no class is ever unpickled from it.
"""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from featurecache.errors import RunError
from featurecache.files import write_whole
from pipelines.training.stack import random_state, set_random_state

log = logging.getLogger("featurecache")

SECONDS = 30.0
"""Between two files: what a kill costs at most."""
MEMBER = ("best", "best_epoch", "history", "diverged")
POSITION = ("epoch", "rows", "step", "totals", "kept", "kept_source", "kept_objective")


class Checkpoint:
    """The file of one training; with no path, none is written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._written = time.monotonic()

    def save(self, training: Any) -> None:
        """Write where the training stands, if the last time is long enough ago."""
        if self.path is None or time.monotonic() - self._written < SECONDS:
            return
        state = state_of(training)
        write_whole(self.path, lambda file: torch.save(state, file))
        self._written = time.monotonic()

    def restore(self, training: Any) -> bool:
        """Bring the training to where the file says it stood; returns whether there is one.

        Raises:
            RunError: the file is damaged, or of another training.
        """
        if self.path is None or not self.path.exists():
            return False
        try:
            state = torch.load(self.path, map_location=training.recipe.device, weights_only=True)
            load_state(training, state)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(
                f"{self.path} holds no training that can be gone on with ({reason}). Remove it; the run then starts anew."
            ) from error
        log.info("going on with epoch %d, after %d of its rows", training.epoch, training.rows)
        return True

    def remove(self) -> None:
        """Remove the file of a training that has come to its end."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def state_of(training: Any) -> dict[str, Any]:
    """Return all that changes in a training, as tensors and plain values."""
    return {
        **{name: getattr(training, name) for name in POSITION},
        "members": [{name: getattr(member, name) for name in MEMBER} for member in training.members],
        "values": [{name: p.detach() for name, p in stack.values.items()} for stack, _ in training.stacks],
        "draws": [stack.states for stack, _ in training.stacks],
        "optimizers": [optimizer.state_dict() for optimizer, _ in training.optimizers],
        "source": training.learning.state() if training.learning else {},
        "objective": training.criterion.state(),
        "told": training.criterion.sums,
        "scaler": training.scaler.state_dict(),
        "random": random_state(),
    }


def load_state(training: Any, state: dict[str, Any]) -> None:
    """Set what `state_of` returned."""
    for member, values in zip(training.members, state["members"], strict=True):
        for name in MEMBER:
            setattr(member, name, values[name])
    for (stack, _), values, draws in zip(training.stacks, state["values"], state["draws"], strict=True):
        if stack.values.keys() != values.keys():
            raise ValueError("it is of other heads")
        for name, value in values.items():
            stack.values[name].data.copy_(value)
        stack.states = [_on_cpu(draw) for draw in draws]
    for (optimizer, _), values in zip(training.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    if training.learning:
        training.learning.load(state["source"])
    training.criterion.load(state["objective"])
    training.criterion.sums = state["told"]
    training.scaler.load_state_dict(state["scaler"])
    for name in POSITION:
        setattr(training, name, state[name])
    set_random_state(_on_cpu(state["random"]))


def _on_cpu(state: Any) -> Any:
    return tuple(None if part is None else part.cpu() for part in state)
