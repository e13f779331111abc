"""One training in several processes, as torchrun starts them: each takes its rows of every step, all make the same step.

Gradients are summed, not averaged over processes: each part already counts by its share of the step's rows, so that uneven
parts, and parts without a row, give what one process would have. Batch norms in training see the rows of their own process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from featurecache.devices import resolve_device
from featurecache.errors import DeviceError, FeatureCacheError
from featurecache.features import FeatureBatch
from featurecache.seeding import seed_of
from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import Walk

if TYPE_CHECKING:
    from featurecache.sources.live import LiveSource

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""What a process waits for another: the first one may write, or measure, for long."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is; alone, every act leaves things as they are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """Rows rank, rank + count, ... of every batch."""
        return self.rank, self.count

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors, of one kind and device, to their sums over all processes."""
        if self.count > 1:
            self._together(list(tensors))

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Set tensors to their means over all processes."""
        found = list(tensors)
        self.sum(found)
        for tensor in found if self.count > 1 else ():
            tensor /= self.count

    def sum_gradients(self, parameters: Sequence[Tensor], device: str) -> None:
        """Set every gradient to its sum; a process that has none adds nothing, and what nobody has stays absent."""
        if self.count == 1:
            return
        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device)
        self._together([there])
        wanted = [p for p, anyone in zip(parameters, there.tolist(), strict=True) if anyone]
        for p in wanted:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self._together([p.grad for p in wanted if p.grad is not None])

    def _together(self, tensors: list[Tensor]) -> None:
        """Sum in one message for each dtype."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in the same order in all processes
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            torch.distributed.all_reduce(flat)
            for tensor, piece in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.detach().copy_(piece.view_as(tensor))

    def gathered(self, part: Tensor, count: int, weight: int) -> Tensor:
        """Return all `count` rows of a batch, of which each process has its part; a gradient reaches the own rows, `weight` times.

        Where `weight` processes compute one loss of these rows, and each adds a `weight`-th of it, own rows so get the whole
        gradient of the loss, and what all have in common gets a share of it from each.
        """
        found = part.new_zeros(count, *part.shape[1:])
        found[self.rank :: self.count] = part.detach()
        torch.distributed.all_reduce(found)
        if part.requires_grad:
            found[self.rank :: self.count] = _Amplified.apply(part, weight)  # type: ignore[no-untyped-call]
        return found

    def draw(self, *parts: Any) -> None:
        """Let each of several processes draw numbers of its own, the same ones whenever it comes here again."""
        if self.count > 1:
            torch.manual_seed(seed_of("rank", self.rank, *parts))

    def by_first(self, act: Callable[[], T]) -> T:
        """Return what `act` returns in the first process, or raise there and everywhere what it raised."""
        if self.count == 1:
            return act()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = act()
            except FeatureCacheError as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        found: T = outcome[0]
        return found


class _Amplified(torch.autograd.Function):
    """The values as they are; their gradient a number of times."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: int) -> Tensor:
        """Return the values."""
        ctx.weight = weight
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values, amplified."""
        return gradients[0] * ctx.weight, None


ALONE = Ranks()


class Gathered:
    """Whole batches of a source that gives each process its part: what each computes, all have. See `FeatureSource`.

    Its batches come as the rows lie: it is for measuring and solving.
    """

    def __init__(self, source: LiveSource, ranks: Ranks) -> None:
        self.source, self.ranks = source, ranks
        self.constants = source.constants

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once."""
        assert order == "sequential", "each process trains on its own part"
        first = start
        for part in self.source.batches(batch_size, start=start):
            rows = self.source.rows[first : first + batch_size]
            arrays = {name: self._whole(values, len(rows)) for name, values in part.arrays.items()}
            self.ranks.sum(arrays.values())
            yield FeatureBatch(rows, self.source.sample_ids(rows), self.source.targets(rows), arrays)
            first += len(rows)

    def _whole(self, part: Tensor, count: int) -> Tensor:
        found = part.new_zeros(count, *part.shape[1:])
        found[self.ranks.rank :: self.ranks.count] = part
        return found

    def walk(self, batch_size: int) -> Walk:
        """Return batches that can be walked more than once."""
        return Walk(self, batch_size)


def whole(source: LiveSource, ranks: Ranks) -> FeatureSource:
    """Return the source with all of its rows in every process."""
    return source if ranks.count == 1 else Gathered(source, ranks)


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that torchrun started, if it did; yields this one's place among them, and its device.

    Raises:
        DeviceError: there are fewer GPUs than processes on this machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    where = str(resolve_device(device))
    if count == 1:
        yield ALONE, where
        return
    if where == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs: start one process for each, with "
                f"torchrun --nproc-per-node {torch.cuda.device_count()}, or give --device cpu."
            )
        where = f"cuda:{local}"
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if where.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(torch.distributed.get_rank(), count), where
    finally:
        torch.distributed.destroy_process_group()
