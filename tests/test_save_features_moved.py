"""A folder of images that was renamed, moved or packed is the same data: for extraction, extension, repair, merge and runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import save_features
from featurecache.datasets import as_divided_before, open_dataset
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.stores import open_store
from pipelines.merge import MergeConfig
from pipelines.merge import run as merge
from pipelines.run_protocol import RunProtocolConfig
from pipelines.run_protocol import run as run_protocol
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.verify import VerifyConfig
from pipelines.verify import run as verify
from save_features import run
from tests.extraction_samples import lasting, pictures, settings
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip, encoded, tree


def renamed(folder: Path) -> Path:
    return folder.rename(folder.with_name("another name"))


def packed(folder: Path) -> Path:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    shutil.rmtree(folder)
    return Path(as_zip(files, folder.with_name("packed.zip")))


def compressed(folder: Path) -> Path:
    files = {f"around/{p.relative_to(folder)}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    shutil.rmtree(folder)
    return Path(as_tar(files, folder.with_name("packed.tar.gz"), "w:gz"))


moves = pytest.mark.parametrize("move", [renamed, packed, compressed])


@moves
def test_the_same_command_on_moved_images_has_nothing_to_do(move, tmp_path):
    folder, out = pictures(tmp_path / "pets"), tmp_path / "x.zarr"
    run(settings(folder, out, layers="last"))
    before = lasting(out)

    report = run(settings(move(folder), out, layers="last"))

    assert report.was_finished and lasting(out) == before


@moves
def test_a_store_is_extended_by_layers_and_samples_from_moved_images(move, tmp_path):
    folder, out = pictures(tmp_path / "pets"), tmp_path / "x.zarr"
    run(settings(folder, out, layers="last"))
    (folder / "dog" / "new.png").write_bytes(encoded(77, "PNG"))
    moved = move(folder)

    report = run(settings(moved, out, layers="all", extend=True))

    assert report.added[0] == "1 new samples"
    whole = tmp_path / "whole.zarr"
    run(settings(moved, whole, layers="all"))
    ours, theirs = open_store(out), open_store(whole)
    place = {str(name): row for row, name in enumerate(theirs.table().sample_id)}
    rows = [place[str(name)] for name in ours.table().sample_id]
    first = ours.read("layers/cls/00", slice(None)).astype(np.float32)
    np.testing.assert_allclose(first, theirs.read("layers/cls/00", slice(None)).astype(np.float32)[rows], atol=1e-2)


@moves
def test_a_store_is_mended_from_moved_images_where_they_are_named(move, tmp_path):
    folder, out = pictures(tmp_path / "pets"), tmp_path / "x.zarr"
    run(settings(folder, out, layers="last"))
    before = lasting(out)
    next(path for path in (out / "embedding/c").rglob("*") if path.is_file()).unlink()
    moved = move(folder)

    with pytest.raises(
        StoreContentsError, match="are not there any more .* say where they are now: featurecache verify"
    ):
        verify(VerifyConfig(store=out, repair=True, quiet=True))
    verify(VerifyConfig(store=out, data=str(moved), repair=True, quiet=True))

    assert lasting(out) == before


def test_another_picture_is_other_data_still(tmp_path):
    folder, out = pictures(tmp_path / "pets"), tmp_path / "x.zarr"
    run(settings(folder, out, layers="last"))
    moved = renamed(folder)
    (moved / "cat/000.png").write_bytes(encoded(5, "PNG", (40, 30)))

    with pytest.raises(StoreMismatchError, match="fingerprint"):
        run(settings(moved, out, layers="last"))


def test_runs_on_stores_of_the_data_under_another_name_are_those_that_are_there(tmp_path):
    folder, out = pictures(tmp_path / "pets"), tmp_path / "x.zarr"
    run(settings(folder, out, layers="last"))
    head = {"store": out, "out": tmp_path / "head", "head": "ridge", "quiet": True}
    protocol = {
        "protocol": "holdout",
        "stores": (out,),
        "out": tmp_path / "protocol",
        "heads": ("ridge",),
        "quiet": True,
    }
    assert not train_head(TrainHeadConfig(**head)).repeated
    assert not run_protocol(RunProtocolConfig(**protocol)).repeated
    shutil.rmtree(out)

    run(settings(renamed(folder), out, layers="last"))

    assert open_store(out).header.dataset["name"] == "another name"
    assert train_head(TrainHeadConfig(**head)).repeated
    assert run_protocol(RunProtocolConfig(**protocol)).repeated


def test_parts_of_one_data_set_under_two_names_are_merged_as_one(tmp_path):
    folder = pictures(tmp_path / "pets")
    first, second, whole = (tmp_path / f"{name}.zarr" for name in ("a", "b", "c"))
    run(settings(folder, first, layers="last"))
    run(settings(renamed(folder), second, layers="last"))

    report = merge(MergeConfig(stores=(first, second), out=whole))

    assert (report.rows, report.left) == (40, 0)
    assert lasting(whole).keys() == lasting(first).keys()


def test_where_the_images_are_is_recorded_with_the_options_of_the_name(tmp_path, monkeypatch):
    as_folder(tree({"photo/cat": 6, "photo/dog": 6, "sketch/cat": 6, "sketch/dog": 6}, ".png"), tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    run(settings(Path("pets?domains=none"), tmp_path / "x.zarr", layers="last"))

    facts = [json.loads(line) for line in (tmp_path / "x.zarr/provenance.jsonl").read_text().splitlines()]

    assert f"{tmp_path / 'pets'}?domains=none" in [line.get("data") for line in facts]
    monkeypatch.chdir("/")
    assert not verify(VerifyConfig(store=tmp_path / "x.zarr", recompute=4, quiet=True)).exit_code


# stores made when val stayed val


@pytest.fixture
def older(tmp_path, monkeypatch):
    """Return images in train and val, and a store of them as an older version made it."""
    folder, out = (
        Path(as_folder(tree({"train/cat": 20, "train/dog": 20, "val/cat": 6, "val/dog": 6}), tmp_path / "pets")),
        tmp_path / "x.zarr",
    )
    with monkeypatch.context() as patch:
        patch.setattr(
            save_features, "open_dataset", lambda *a, **k: as_divided_before(open_dataset(*a, **k), "folders")
        )
        run(settings(folder, out, layers="last"))
    assert Counter(map(str, open_store(out).table().split)) == {"train": 40, "val": 12}
    return folder, out


def test_a_store_of_the_older_rule_is_repeated_extended_and_verified_with_its_splits(older, caplog):
    caplog.set_level("INFO")
    folder, out = older
    before = lasting(out)

    assert run(settings(folder, out, layers="last")).was_finished and lasting(out) == before
    assert "was made when val without test stayed val: its splits stay so" in caplog.text
    (folder / "val/cat/new.jpg").write_bytes(encoded(99))
    run(settings(folder, out, layers="all", extend=True))

    table = open_store(out).table()
    assert Counter(map(str, table.split)) == {"train": 40, "val": 13}
    assert open_store(out).header.dataset["split_rule"] == "folders"
    assert not verify(VerifyConfig(store=out, recompute=4, quiet=True)).exit_code


def test_a_new_store_of_the_same_images_has_a_test(older, tmp_path):
    folder, _ = older
    run(settings(folder, tmp_path / "new.zarr", layers="last"))

    assert Counter(map(str, open_store(tmp_path / "new.zarr").table().split))["test"] == 12


def test_samples_whose_folders_are_read_as_other_classes_are_refused_with_the_way_out(tmp_path, monkeypatch):
    as_folder(tree({"photo/cat": 6, "photo/dog": 6, "sketch/cat": 6, "sketch/dog": 6}, ".png"), tmp_path / "pets")
    out = tmp_path / "x.zarr"
    run(settings(Path(f"{tmp_path}/pets?domains=none"), out, layers="last"))

    with pytest.raises(StoreMismatchError, match="classes were photo, sketch, and are cat, dog now.*domains=none"):
        run(settings(tmp_path / "pets", out, layers="last"))
    assert run(settings(Path(f"{tmp_path}/pets?domains=none"), out, layers="last")).was_finished
