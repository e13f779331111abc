"""From real images and a tiny CLIP through a store to trained heads, with nothing of the model left but what the store has."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import save_features
from featurecache.errors import ConfigError
from featurecache.sources.cached import CachedSource, split_rows
from featurecache.stores import FeatureStore, open_store
from heads import HEADS, HeadSpec
from heads._checkpoint import build_head, load_head, save_head
from pipelines.objectives.cross_entropy import build as cross_entropy
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.training.fitting import fit
from pipelines.training.outputs import outputs_of
from pipelines.training.recipe import Recipe
from pipelines.training.stack import Member
from save_features import SaveFeaturesConfig, run
from tests.conformance.lfa_store import backbone_of, read
from tests.shared_data import CIFAR, SHARED, needs_shared

TINY = Path(os.environ.get("FEATURECACHE_CONFORMANCE", SHARED / "conformance")) / "lfa_end_to_end_tiny_clip.npz"
RATE = 3e-3
"""For the short training of a tiny model; the heads' own ones are for real ones."""
CLASSES, OF_EACH = ("airplane", "frog", "truck"), 40
BEGIN, END = 58, 59
"""Of the tiny model's 60 words; the other ids stand for letters here."""


def spelled(texts: list[str]) -> torch.Tensor:
    """Return (n, 14) ids: the last letters of each text."""
    ids = torch.zeros(len(texts), 14, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        letters = [1 + ord(letter) % 50 for letter in text[-12:]]
        row[: len(letters) + 2] = torch.tensor([BEGIN, *letters, END])
    return ids


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store of float16 from pictures of three classes; pictures and model are gone when it is read."""
    folder = tmp_path_factory.mktemp("clip")
    with zipfile.ZipFile(CIFAR) as archive:
        for name in CLASSES:
            members = [m for m in archive.namelist() if m.startswith(f"train/{name}/")][:OF_EACH]
            for number, member in enumerate(members):
                split = ("train", "train", "val", "test")[number % 4]
                target = folder / "pictures" / split / name / Path(member).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    tiny = backbone_of(read(TINY), folder)
    text: Any = dataclasses.replace(tiny.text, tokenize=spelled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save_features, "load_backbone", lambda name, options: dataclasses.replace(tiny, text=text))
        run(SaveFeaturesConfig(data=str(folder / "pictures"), backbone="tiny", out=folder / "x.zarr", quiet=True,
                               layers="all", prompts="a photo of a {}."))  # fmt: skip
    (folder / "weights.safetensors").unlink()
    return open_store(folder / "x.zarr")


def arrays_of(name: str, store: FeatureStore) -> list[str]:
    if HEADS.load(name).CONSUMES == "projected":
        return ["projected"]
    layers = [f"layers/cls/{layer.index:02d}" for layer in store.header.layers]
    return layers[-1:] if HEADS.load(name).CONSUMES == "last" else layers


def spec_from(store: FeatureStore, name: str, source: CachedSource) -> HeadSpec:
    return HeadSpec(
        shapes={array: store.header.array(array).tail for array in arrays_of(name, store)},
        num_classes=len(store.header.class_names),
        constants={constant: source.constants[constant] for constant in HEADS.load(name).CONSTANTS},
    )


@needs_shared
@pytest.mark.skipif(not TINY.exists(), reason=f"needs the tiny CLIP of {TINY}")
@pytest.mark.parametrize(("name", "options"), [
    ("zero_shot", {}), ("clip_linear", {}), ("clip_adapter", {}), ("clip_projection", {}), ("lfa_clip", {}),
    ("lfa_clip", {"start": "dg", "rank": 4}),
])  # fmt: skip
def test_a_head_learns_from_the_store_and_says_the_same_when_it_is_loaded(store, name, options, tmp_path):
    train, val = (CachedSource(store, arrays_of(name, store), split_rows(store, split)) for split in ("train", "val"))
    spec = spec_from(store, name, train)
    torch.manual_seed(0)
    head = build_head(name, spec, options)
    start, targets = outputs_of(head.eval(), train, "cpu")
    recipe = Recipe(epochs=15, batch_size=20)

    fit([Member(head, RATE)], train, None, cross_entropy("classification"), recipe, "classification")

    learned, _ = outputs_of(head, train, "cpu")
    losses = [torch.nn.functional.cross_entropy(logits, targets).item() for logits in (start, learned)]
    assert (losses[1] < 0.9 * losses[0]) if list(head.parameters()) else torch.equal(start, learned)
    save_head(tmp_path, head, name, spec, options)
    if name == "clip_projection":
        projected = CachedSource(store, ["projected"], train.rows)
        zero_shot = build_head("zero_shot", spec_from(store, "zero_shot", projected), {})
        torch.testing.assert_close(start, outputs_of(zero_shot, projected, "cpu")[0], rtol=0.02, atol=0.02)
    again, _ = load_head(tmp_path)
    for source in (train, val):
        assert torch.equal(outputs_of(again, source, "cpu")[0], outputs_of(head, source, "cpu")[0])


@needs_shared
@pytest.mark.skipif(not TINY.exists(), reason=f"needs the tiny CLIP of {TINY}")
def test_the_verb_trains_each_beside_the_others_and_zero_shot_needs_no_label(store, tmp_path):
    sweep = {"head": "zero_shot,clip_linear,clip_adapter,clip_projection,lfa_clip,linear", "seed": "0,1"}

    record = train_head(
        TrainHeadConfig(store=store.path, out=tmp_path / "run", sweep=sweep, epochs=5, quiet=True)
    ).record
    alone = train_head(TrainHeadConfig(store=store.path, out=tmp_path / "zero", head="zero_shot", quiet=True)).record

    cells = {(line["head"], line["seed"]): line for line in record["sweep"]["cells"]}
    assert cells["zero_shot", 0]["val_top1"] == alone["metrics"]["val"]["top1"]["value"]
    assert cells["zero_shot", 0]["trained_parameters"] == 0
    assert (
        cells["lfa_clip", 0]["arrays"].startswith("layers/cls/00,") and cells["clip_linear", 0]["arrays"] == "projected"
    )
    with pytest.raises(ConfigError, match="the head lfa_clip reads features as they are: --standardise does not apply"):
        train_head(TrainHeadConfig(store=store.path, out=tmp_path / "no", head="lfa_clip", standardise=True))
