"""Training and validation rows, and heads that begin to learn from them."""

from __future__ import annotations

import torch

from heads._checkpoint import build_head
from pipelines.training.stack import Member
from tests.heads.samples import ONE, batches, spec_of
from tests.pipelines.sources import InMemory


def sources(task: str = "classification", widths: dict = ONE, noise: float = 2.0) -> tuple[InMemory, InMemory]:
    """Return training rows, and validation rows of the same kind."""
    parts = batches(task, widths, rows=160, size=40, noise=noise)
    return InMemory(parts[:3]), InMemory(parts[3:])


def member(name: str, train: InMemory, task: str, lr: float, decay: float, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    spec = spec_of(task, {key: v.shape[1] for key, v in train.whole.arrays.items()}, standardised_by=train.walk(50))
    head = build_head(name, spec, {})
    if hasattr(head, "solve"):
        head.solve(train.walk(50))
    return Member(head, lr, decay)
