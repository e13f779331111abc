"""Images through a backbone as training batches: the same arrays by the same names as a store's, with gradients where asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featurecache.backbones import Backbone, Request
from featurecache.datasets import ImageDataset
from featurecache.decoders import Decoder
from featurecache.errors import BackboneError, UnreadableSampleError
from featurecache.features import FeatureBatch
from featurecache.peft import Adapted
from featurecache.seeding import generator
from featurecache.sources import Order, ParameterGroup
from featurecache.sources._augmenting import Drawing, drawing
from featurecache.sources._held import HeldImages
from featurecache.sources._problems import PictureNotes
from featurecache.sources._workers import Workers
from featurecache.sources.cached import Ids, Walk, ordered
from featurecache.sources.images import AHEAD, Feed, Threads
from featurecache.threads import cores
from featurecache.views import Views

FORWARD = 64
"""Images of a forward pass that keeps no gradients, at most: whatever rows are asked for at once, memory stays bounded."""

Rows = npt.NDArray[np.int64]


class LiveImages:
    """Images of any rows of a data set, clean or as a pass of training sees them, decoded by one pool for all passes."""

    def __init__(
        self,
        backbone: Backbone,
        dataset: ImageDataset,
        *,
        augment: str = "none",
        options: Mapping[str, Any] | None = None,
        decoder: Decoder = "pillow",
        threads: int | None = None,
        workers: int = 0,
        batch: int = FORWARD,
        views: Views | None = None,
        held: HeldImages | None = None,
    ) -> None:
        """Prepare to decode at most `batch` images at a time, in `workers` processes or, with none, on `threads` threads.

        With `views` a pass of training sees one of these views, by the same draw a store keeps, and not a view of its own.
        `held` keeps clean pictures for the next pass.
        """
        self.dataset, self.augments, self.batch, self.views, self.held = dataset, augment != "none", batch, views, held
        filler: Any = drawing(backbone, dataset, augment, options or {}, decoder, views)
        self._feed: Feed
        if workers:
            self._ahead = max(AHEAD, -(-2 * workers // batch))
            self._feed = Workers(filler, backbone.input_size, count=workers, batch=batch, slots=self._ahead + 1)
        else:
            self._ahead = 0 if backbone.device.type == "cpu" else AHEAD
            self._feed = Threads(filler, backbone.input_size, threads or cores())
        self._filler: Drawing = filler
        self._notes = PictureNotes()

    def batches(self, pieces: Sequence[Rows], number: int = 0) -> Generator[Tensor]:
        """Yield (B, 3, H, W) images of every piece, as pass `number` sees them; 0 is the clean picture.

        Raises:
            UnreadableSampleError: the first image that cannot be read.
            WorkerError: a worker process died.
        """
        held = None if number else self.held
        there = [held is not None and held.has(piece) for piece in pieces]
        missing = (piece for piece, known in zip(pieces, there, strict=True) if not known)
        started = (self._feed.begin([(int(row), number) for row in piece]) for piece in missing)
        waiting = deque(islice(started, self._ahead))
        try:
            for piece, known in zip(pieces, there, strict=True):
                if known and held is not None:
                    yield held.take(piece)
                    continue
                waiting += islice(started, 1)
                images, found = waiting.popleft()()
                self._notes.add(found)
                for one in found:
                    if isinstance(one, UnreadableSampleError):
                        raise one
                if held is not None:
                    held.keep(piece, images[0])
                yield images[0]
        finally:
            for finish in waiting:  # its memory is given to the next pass
                finish()

    def number(self, order: Order, seed: int) -> int:
        """Return the number under which the images of a pass are drawn; 0 is the clean picture."""
        if not self.augments or order == "sequential":
            return 0
        return seed if self.views is None else int(generator("view of a pass", seed).integers(0, self.views.count))

    def unreadable(self, rows: Rows) -> dict[int, str]:
        """Decode every row once; return row -> why it cannot be read."""
        found: dict[int, str] = {}
        for piece in _cut(rows, self.batch):
            seen = self._feed.begin([(int(row), 0) for row in piece])()[1]
            self._notes.add(seen)
            errors = ((int(row), one) for row, one in zip(piece, seen, strict=True))
            found |= {row: one.reason for row, one in errors if isinstance(one, UnreadableSampleError)}
        self._notes.report()
        return found

    def close(self, *, at_once: bool = False) -> None:
        """End threads or processes, and report what is to be known of pictures."""
        self._notes.report()
        self._feed.close(at_once=at_once)


class LiveSource:
    """Some rows and some arrays of a data set, computed when they are asked for. See `FeatureSource`.

    A pass that is not sequential is one of training: its images are augmented. What a row gives depends on the images of
    its batch in the last bits, as in a store (libraries choose other kernels for other sizes): about 1e-6 of its size.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: LiveImages,
        rows: Rows,
        arrays: Mapping[str, tuple[int, ...]],
        request: Request,
        *,
        constants: Mapping[str, Tensor] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Give `arrays`, name -> shape of a row, of which `request` asks the backbone.

        `part` (i, n) leaves of every batch rows i, i + n, ... to this process; n processes share the work so.
        """
        self.backbone, self.images, self.rows, self.request, self.part = backbone, images, rows, request, part
        self.arrays = dict(arrays)
        self.constants: Mapping[str, Tensor] = constants or {}
        table = images.dataset.table
        self._targets, self._ids = torch.from_numpy(np.asarray(table.target)), np.asarray(table.sample_id)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once; see `FeatureSource`. `seed` also fixes how images are augmented."""
        rows = ordered(self.rows, order, seed)
        first, count = self.part
        wholes = [rows[i : i + batch_size][first::count] for i in range(start, len(rows), batch_size)]
        number = self.images.number(order, seed)
        cuts = [cut for whole in wholes for cut in _cut(whole, self.images.batch)]
        with closing(self.images.batches(cuts, number)) as images:
            for whole in wholes:
                arrays = self._of(list(islice(images, len(_cut(whole, self.images.batch)))))
                yield FeatureBatch(whole, self.sample_ids(whole), self.targets(whole), arrays)

    def view_of(self, order: Order, seed: int) -> int:
        """Return which of the views that stores keep a pass sees; the clean one where it sees none of them."""
        return self.images.number(order, seed) if self.images.views is not None else 0

    def targets(self, rows: Rows) -> Tensor:
        """Return (B,) or (B, K) targets of some rows."""
        return self._targets.index_select(0, torch.from_numpy(rows))

    def sample_ids(self, rows: Rows) -> Sequence[str]:
        """Return the B sample ids of some rows."""
        return Ids(self._ids, rows)

    def _of(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Return the arrays of a batch whose images come in pieces."""
        with torch.no_grad():
            found = [self._computed(piece, self._frozen) for piece in images]
        return self._joined(found)

    def _frozen(self, images: Tensor, request: Request) -> dict[str, Tensor]:
        if self.backbone.learn is not None:
            return self.backbone.learn(images, request)
        # what inference mode gave cannot be used in training, its copy can
        return {name: values.clone() for name, values in self.backbone.forward(images, request).items()}

    def _computed(self, images: Tensor, forward: Any) -> dict[str, Tensor]:
        found = forward(images.to(self.backbone.device, non_blocking=True), self.request)
        return {name: found[name] for name in self.arrays}

    def _joined(self, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        if not found:  # a part of a batch that has fewer rows than there are processes
            return {name: torch.empty(0, *tail, device=self.backbone.device) for name, tail in self.arrays.items()}
        return {name: _cat([piece[name] for piece in found]) for name in self.arrays}

    def walk(self, batch_size: int) -> Walk:
        """Return sequential batches that can be walked more than once; every walk computes them anew."""
        return Walk(self, batch_size)


class LearningSource(LiveSource):
    """Features that learn with the head. See `TrainedSource`.

    On a CPU, depthwise convolutions keep the channels of a pixel beside each other: training takes two thirds of the time.
    """

    def __init__(self, *given: Any, adapted: Adapted, lr_factor: float, **named: Any) -> None:
        """Take what a `LiveSource` takes; the method learns at `lr_factor` times the rate of the head.

        Raises:
            BackboneError: the backbone does not let gradients through.
        """
        super().__init__(*given, **named)
        if self.backbone.learn is None:
            raise BackboneError(
                f"{self.backbone.name} is a ready Backbone without `learn`, so nothing of it can be trained. Give it one, "
                "return its module instead, or give --peft none."
            )
        self.adapted, self.lr_factor, self._learns = adapted, lr_factor, False
        depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in adapted.module.modules())
        if depthwise and self.backbone.device.type == "cpu":
            adapted.module.to(memory_format=torch.channels_last)

    def _of(self, images: list[Tensor]) -> dict[str, Tensor]:
        if not self._learns or not images:
            return super()._of(images)
        batch = _cat(images)
        with _kept_statistics(self.adapted.module) if len(batch) == 1 else nullcontext():
            return self._joined([self._computed(batch, self.backbone.learn)])

    def groups(self) -> list[ParameterGroup]:
        """Return the parameters to train, one group for each rate."""
        values = self.adapted.parameters()
        found = []
        for factor in sorted(set(self.adapted.trainable.values())):
            names = [name for name, own in self.adapted.trainable.items() if own == factor]
            found.append(ParameterGroup({name: values[name] for name in names}, self.lr_factor * factor))
        return found

    def train(self, mode: bool) -> None:
        """Set training mode: only then batches carry gradients."""
        self._learns = mode
        self.adapted.train(mode)

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that training changes, by name."""
        return self.adapted.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        self.adapted.load(state)

    def averages(self) -> list[Tensor]:
        """Return the buffers that follow the rows that were seen."""
        own, trained = self.adapted.module.state_dict(), self.adapted.trainable
        return [own[name] for name in self.adapted.kept if name not in trained and own[name].is_floating_point()]


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorms use their running statistics: one image, such as an odd last batch, has no spread of its own."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _cat(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
