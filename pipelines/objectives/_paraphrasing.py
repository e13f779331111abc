"""Autoencoders that compress what a teacher says to half its width; trained by the loop of all trainings, kept for the next one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from featurecache.checks import check
from featurecache.features import FeatureBatch
from featurecache.files import write_atomic
from featurecache.seeding import seed_of
from featurecache.sources import FeatureSource, Order
from featurecache.sources.cached import Walk
from featurecache.sources.joined import teacher_array
from pipelines.objectives import Material
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.training.fitting import fit
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member

log = logging.getLogger("featurecache")

EPOCHS, PATIENCE, BATCH, RATE = 500, 10, 1024, 3e-4
"""At most so many epochs, ended when so many bring nothing on validation; rows a step, in their order; rate of Adam."""
FEATURES = "features"


class Autoencoder(nn.Module):
    """D -> D -> D // 2 -> D // 2 with a rectifier after each, and back D // 2 -> D -> D with rectifiers between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        code = width // 2
        encoder = [nn.Linear(width, width), nn.Linear(width, code), nn.Linear(code, code)]
        decoder = [nn.Linear(code, code), nn.Linear(code, width), nn.Linear(width, width)]
        self.encoder = nn.Sequential(*(part for layer in encoder for part in (layer, nn.ReLU())))
        self.decoder = nn.Sequential(*[part for layer in decoder for part in (layer, nn.ReLU())][:-1])

    def forward(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(B, D) -> (B, D) what is left of it."""
        found: Tensor = self.decoder(self.encoder(arrays[FEATURES]))
        return found


class ItsOwnTarget:
    """Rows of one teacher that are to be said again. See `FeatureSource`."""

    constants: Mapping[str, Tensor]

    def __init__(self, source: FeatureSource, array: str) -> None:
        self.source, self.array = source, array
        self.constants = {}

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, batch_size: int, *, order: Order = "sequential", seed: int = 0, start: int = 0
    ) -> Iterator[FeatureBatch]:
        """Yield every row once."""
        for batch in self.source.batches(batch_size, order=order, seed=seed, start=start):
            rows = batch.arrays[self.array]
            yield FeatureBatch(batch.rows, batch.sample_ids, rows, {FEATURES: rows})

    def walk(self, batch_size: int) -> Walk:
        """Return batches that can be walked more than once."""
        return Walk(self, batch_size)


def paraphraser(source: Material, number: int, width: int) -> nn.Module:
    """Return the encoder of one teacher, (B, D) -> (B, D // 2), trained or as it was kept, whatever teachers stood beside it.

    Raises:
        ConfigError: there are no validation rows to stop on.
    """
    autoencoder, array = Autoencoder(width), teacher_array(number)
    seed = seed_of("autoencoder", source.keys[number] if source.keys else array, width, EPOCHS, PATIENCE, BATCH, RATE)
    path = source.cache / f"{seed:016x}.safetensors" if source.cache else None
    if path is None or not _taken(path, autoencoder):
        _train(autoencoder, source, array, seed, path)
    return autoencoder.to(source.device).eval().requires_grad_(False).encoder


def _train(autoencoder: Autoencoder, source: Material, array: str, seed: int, path: Path | None) -> None:
    check((
        len(source.teachers["val"]) > 0,
        "the autoencoder of factor_transfer stops early on validation rows, and there are none. Give the data a val split",
    ))  # fmt: skip
    log.info("training the autoencoder of %s", array)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in autoencoder.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        train, validation = (ItsOwnTarget(source.teachers[split], array) for split in ("train", "val"))
        recipe = Recipe(
            epochs=EPOCHS, patience=PATIENCE, batch_size=BATCH, optimizer="adam", schedule="constant", order="sequential",
            device=source.device,
        )  # fmt: skip
        fit([Member(autoencoder, RATE)], train, validation, likelihood("regression"), recipe, "regression")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.cpu().contiguous() for key, value in autoencoder.state_dict().items()}
        write_atomic(path, safetensors.torch.save(tensors))


def _taken(path: Path, autoencoder: Autoencoder) -> bool:
    """Take the values that an earlier training kept; a file that cannot be read is as good as none."""
    try:
        autoencoder.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True
