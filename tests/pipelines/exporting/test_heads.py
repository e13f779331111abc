"""Runs of every kind of head become folders that prove themselves, with features of a real backbone, for any number of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from heads import HEADS
from pipelines.export import ExportConfig, run
from pipelines.exporting import proving
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from tests.featurecache.backbones.clip_samples import VIT, written
from tests.pipelines.exporting.here import said_here
from tests.pipelines.pictures import CLASSES, pictures, store_of


def kind_of(name: str) -> tuple[object, ...]:
    """Return what sets the export of a head apart: what it reads, and whether its sizes are known before it is solved."""
    room = HEADS.load(name)
    return room.CONSUMES, bool(getattr(room, "CONSTANTS", ())), room.LEARNING_RATE > 0


KINDS = tuple({kind_of(name): name for name in HEADS.names()}.values())
"""One head of each kind; test_graph.py looks at the graph of every head."""
OF_CLIP = tuple(name for name in HEADS.names() if getattr(HEADS.load(name), "CONSTANTS", ()) or "clip" in name)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures and two stores of them: by the demo backbone, and by a CLIP with what it says of the classes."""
    place = tmp_path_factory.mktemp("heads")
    pictures(place / "photos/train", dict.fromkeys(CLASSES, 8))
    pictures(place / "photos/test", dict.fromkeys(CLASSES, 6), first=50)
    store_of(place / "photos", place / "demo.zarr", layers="0,5", tokens="cls+all")
    store_of(place / "photos", place / "clip.zarr", backbone=written(VIT, place), weights="random:0")
    return place


@pytest.fixture
def _here(monkeypatch):
    monkeypatch.setattr(proving, "_said", said_here)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("head", KINDS)
def test_a_run_of_every_kind_of_head_is_exported_with_its_proof(place, tmp_path, head):
    store = place / ("clip.zarr" if head in OF_CLIP else "demo.zarr")
    train(TrainHeadConfig(store=store, out=tmp_path / "run", head=head, epochs=1, quiet=True))

    record = run(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out")).record

    proof = record["proof"]
    assert record["batch"] is None
    assert proof["of"] == "images of rows the run has predicted" and proof["images"] == 16
    assert proof["labels_equal"] == 16 and proof["largest_difference"] <= proof["tolerance"]
