"""The verb `verify`: finds what is damaged, mends it from images and backbone, and says whether two stores are the same."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cli
from featurecache.errors import ConfigError, StoreBusyError, StoreMismatchError, StoreNotFoundError
from featurecache.provenance import PROVENANCE
from featurecache.stores import open_store
from pipelines.maintain import ConvertConfig, convert
from pipelines.verify import VerifyConfig
from pipelines.verify import run as verify
from save_features import run as extract
from tests.extraction_samples import pictures, settings
from tests.faults.extent import ALL
from tests.faults.test_bit_flips import content_of, flip
from tests.pipelines.stores import made_store

FLIPS = 300 if ALL else 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The place of a finished store, `x.zarr`, and of the same in one file, `x.h5`."""
    place = folder.parent / "stores"
    extract(settings(folder, place / "zarr" / "x.zarr", layers="4-5"))
    (place / "h5").mkdir()
    convert(ConvertConfig(store=place / "zarr/x.zarr", out=place / "h5/x.h5"))
    return place


@pytest.fixture(params=["zarr", "h5"])
def store(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / request.param, tmp_path / "here")
    return tmp_path / "here" / f"x.{request.param}"


def checked(store: Path, **changes: object):
    return verify(VerifyConfig(store=store, quiet=True, **changes))


def without_provenance(place: Path) -> dict[str, bytes]:
    return {name: content for name, content in content_of(place).items() if not name.endswith(PROVENANCE)}


def damage_rows(store: Path) -> None:
    """Change one value of `layers/cls/04` in row 20."""
    if store.is_dir():
        flip(store / "layers/cls/04/c/0/0/0", 20 * 128 + 7, 3)
    else:
        row = open_store(store).read("layers/cls/04", slice(20, 21)).tobytes()
        flip(store, store.read_bytes().index(row) + 7, 3)


def test_a_whole_store_is_said_to_be_so(store):
    report = checked(store)

    assert report.exit_code == 0
    assert (report.damages, report.committed, report.finished) == ((), 40, True)
    assert any("40 rows are what was written" in note for table in report.tables() for note in table.notes)


def test_a_changed_value_is_told_with_file_array_and_rows_and_ends_in_1(store):
    damage_rows(store)

    result = CliRunner().invoke(cli.main, ["verify", str(store), "--json"])

    (damage,) = json.loads(result.output)["damages"]
    assert result.exit_code == 1
    assert damage["array"] == "layers/cls/04"
    assert damage["rows"][0] <= 20 < damage["rows"][1]
    assert damage["what"] == "does not hold the rows that were committed"
    assert damage["mends"] == "computed again from the images"


def test_a_repair_computes_the_damaged_rows_again_and_the_store_is_what_it_was(store, whole):
    before = without_provenance(store.parent)
    damage_rows(store)

    report = checked(store, repair=True)

    assert report.exit_code == 0
    assert [damage.array for damage in report.repaired] == ["layers/cls/04"]
    assert without_provenance(store.parent) == before
    assert checked(store).damages == ()


def test_flipped_bits_of_every_file_are_found_and_mended_by_the_command(store, tmp_path):
    before, draw = content_of(store.parent), random.Random(1)
    names = sorted(before)

    for number in range(FLIPS):
        place = tmp_path / f"flip{number}"
        shutil.copytree(store.parent, place)
        name = names[number % len(names)]
        flip(place / name, draw.randrange(len(before[name])), draw.randrange(8))
        copy = place / store.name

        damages = checked(copy).damages
        assert damages, f"{name} is not found to be damaged"
        assert checked(copy, repair=True).exit_code == 0, name
        after = content_of(place)
        notes = next(key for key in before if key.endswith(PROVENANCE))
        assert after[notes].startswith(before[notes]), "a line of provenance is not mended"
        assert {**after, notes: b""} == {**before, notes: b""}, name
        shutil.rmtree(place)


def test_a_file_of_features_that_is_gone_is_computed_again(whole, tmp_path):
    shutil.copytree(whole / "zarr", tmp_path / "here")
    store, before = tmp_path / "here/x.zarr", without_provenance(whole / "zarr")
    shutil.rmtree(store / "embedding/c")
    (store / "zarr.json").unlink()
    (store / "ledger.jsonl").unlink()
    (store / "sample_id/c/0").write_bytes(b"")

    assert {damage.file for damage in checked(store).damages} == {
        "ledger.jsonl", "zarr.json", "sample_id/c/0", "embedding/c/0/0/0",
    }  # fmt: skip
    assert checked(store, repair=True).exit_code == 0
    assert without_provenance(tmp_path / "here") == before


def test_a_cut_off_file_is_mended_from_images_and_its_block(whole, tmp_path):
    shutil.copytree(whole / "h5", tmp_path / "here")
    store, before = tmp_path / "here/x.h5", without_provenance(whole / "h5")
    store.write_bytes(store.read_bytes()[:-3000])

    assert any("bytes instead of" in damage.what for damage in checked(store).damages)
    assert checked(store, repair=True).exit_code == 0
    assert without_provenance(tmp_path / "here") == before


def test_an_old_file_without_a_block_is_examined_by_its_ledger(whole, tmp_path):
    shutil.copytree(whole / "h5", tmp_path / "here")
    store = tmp_path / "here/x.h5"
    content = store.read_bytes()
    store.write_bytes(content[content.index(b"\x89HDF\r\n\x1a\n") :])

    report = checked(store)
    assert report.damages == ()
    assert "written without a checksum of its own" in report.remarks[0]
    damage_rows(store)
    assert [damage.array for damage in checked(store).damages] == ["layers/cls/04"]


def test_an_unfinished_store_is_examined_as_far_as_it_is_committed(tmp_path):
    store = made_store(tmp_path / "x.zarr", stop_at=64)
    with open(store / "ledger.jsonl", "ab") as ledger:
        ledger.write(b'deadbeef {"kind":"comm')

    report = checked(store)
    assert report.exit_code == 0
    assert (report.finished, report.committed) == (False, 64)
    assert "ends in a torn line, as a kill leaves it" in report.remarks[0]

    flip(store / "embedding/c/0/0/0", 10, 1)
    assert [damage.rows for damage in checked(store).damages] == [range(64)]


def test_a_file_that_does_not_belong_is_told_and_is_no_damage(whole, tmp_path):
    shutil.copytree(whole / "zarr", tmp_path / "here")
    (tmp_path / "here/x.zarr/embedding/notes.txt").write_text("mine")

    report = checked(tmp_path / "here/x.zarr")

    assert report.strangers == ("embedding/notes.txt",)
    assert report.exit_code == 0


def test_a_repair_without_the_images_is_refused_with_the_way_and_mends_what_it_can(whole, tmp_path):
    store = made_store(tmp_path / "x.zarr")
    before = content_of(store)
    flip(store / "embedding/c/0/0/0", 10, 1)
    flip(store / "ledger.jsonl", 30, 1)

    with pytest.raises(Exception, match=r"no provenance that says (where its images are|what built its backbone)"):
        checked(store, repair=True)
    assert (store / "ledger.jsonl").read_bytes() == before["ledger.jsonl"]


def test_other_images_are_not_taken_for_those_of_the_store(store, tmp_path):
    damage_rows(store)
    fewer = pictures(tmp_path / "fewer", cat=20, dog=19)
    others = pictures(tmp_path / "others", ant=20, bee=20)

    with pytest.raises(
        StoreMismatchError,
        match=r"1 samples .* gone from the data.*'dog/019.png'.* right one as the second argument, DATA",
    ):
        checked(store, repair=True, data=str(fewer))
    with pytest.raises(
        StoreMismatchError,
        match=r"is not what made .*\n  fingerprint: the store has .*\nGive the right one as the second argument, DATA",
    ):
        checked(store, repair=True, data=str(others))


def test_rows_that_come_out_otherwise_are_left_and_told_unless_they_are_accepted(store, folder, tmp_path):
    damage_rows(store)
    moved = tmp_path / "moved" / "animals"
    shutil.copytree(folder, moved)
    image = next(iter(sorted(moved.rglob("*.png"))))
    size = image.stat().st_size
    for shade in range(255):  # another picture of the same number of bytes
        Image.new("RGB", (8, 8), (shade, 255 - shade, 7)).save(image)
        if image.stat().st_size <= size:
            break
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))
    before = without_provenance(store.parent)

    report = checked(store, repair=True, data=str(moved))
    assert report.exit_code == 1
    assert "is not what is recorded" in report.unlike[0].what
    assert without_provenance(store.parent) == before

    assert checked(store, repair=True, accept=True, data=str(moved)).exit_code == 0
    assert checked(store).damages == ()
    assert checked(store, recompute=40, data=str(moved)).changed


def test_a_repair_beside_a_writer_is_refused(whole, tmp_path):
    store = made_store(tmp_path / "x.zarr", stop_at=64)
    flip(store / "embedding/c/0/0/0", 10, 1)
    flip(store / "layers/cls/00/c/0/0/0", 10, 1)
    shutil.copytree(store, tmp_path / "y.zarr")
    from featurecache.stores._locking import acquire

    lock = acquire(store)
    with pytest.raises(StoreBusyError, match=f"process {os.getpid()} on "):
        checked(store, repair=True)
    lock.release(for_good=False)


def test_recomputed_rows_are_equal_to_the_last_bit_and_the_largest_difference_is_told(store):
    report = checked(store, recompute=16)

    assert [array.array for array in report.recomputed] == ["embedding", "layers/cls/04", "layers/cls/05"]
    assert all(array.rows >= 16 and array.relative == 0 for array in report.recomputed)
    assert any("the largest difference of all is 0.0e+00" in n for table in report.tables() for n in table.notes)


def test_precision_is_told_for_every_array_and_form(store):
    report = checked(store, precision=True, recompute=40)

    losses = {(loss.array, loss.form): loss for loss in report.precision.losses}
    assert len(losses) == 3 * 3
    for array in ("embedding", "layers/cls/04", "layers/cls/05"):
        half, brain, eight = (losses[array, form] for form in ("float16", "bfloat16", "int8 per channel"))
        assert 0 < half.relative < brain.relative < eight.relative < 2e-2
        assert half.overflow == brain.overflow == eight.overflow == 0
        assert abs(half.logme) < 1e-2 and abs(half.ridge) < 1e-2
    assert report.precision.rows == report.precision.labelled == 40


def test_too_few_labels_are_said_and_not_scored(folder, tmp_path):
    few = pictures(tmp_path / "few", cat=4, dog=4)
    extract(settings(few, tmp_path / "x.zarr", layers="none"))

    found = checked(tmp_path / "x.zarr", precision=True).precision

    assert "8 labelled rows are too few to score (at least 20)" in found.remarks[0]
    assert {loss.logme for loss in found.losses} == {None}


DIFFERING = {
    "norm": ({"norm": "none"}, {"backbone.norm"}),
    "weights": ({"weights": "random:1"}, {"backbone.weights"}),
    "batch_size": ({"batch_size": 8}, {"backbone.batch_size"}),
    "precision": ({"precision": "bf16"}, {"backbone.precision"}),
    "dtype": ({"dtype": "float32"}, {"dtype"}),
    "transform": ({"transform": {"mean": [0.1, 0.2, 0.3]}}, {"backbone.transform.mean"}),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_what_made_another_store_otherwise_is_named(name, whole, folder, tmp_path):
    changes, fields = DIFFERING[name]
    extract(settings(folder, tmp_path / "other.zarr", layers="4-5", **changes))

    found = checked(whole / "zarr/x.zarr", against=tmp_path / "other.zarr").comparison

    assert fields <= {field for field, _, _ in found.identity}
    assert {field.split(".")[0] for field, _, _ in found.identity} <= {"backbone", "dtype", "norm of layer"}
    assert not found.same
    assert f"not the same features: {found.identity[0][0]}" in found.verdict


def test_other_tokens_are_other_contents_of_the_same_features(whole, folder, tmp_path):
    extract(settings(folder, tmp_path / "other.zarr", layers="4-5", tokens="mean"))

    report = checked(whole / "zarr/x.zarr", against=tmp_path / "other.zarr")

    assert ("tokens", "cls", "mean") in report.comparison.contents
    assert report.comparison.verdict == "the same features, bit for bit, though one holds more"
    assert report.exit_code == 0


def test_the_same_store_in_another_format_is_the_same_bit_for_bit(whole):
    report = checked(whole / "zarr/x.zarr", against=whole / "h5/x.h5")

    assert report.comparison.verdict == "the same features, bit for bit"
    assert report.comparison.contents == ()


def test_one_changed_row_is_named_by_its_sample(whole, tmp_path):
    shutil.copytree(whole / "zarr", tmp_path / "here")
    other = tmp_path / "here/x.zarr"
    chunk = other / "layers/cls/05/c/0/0/0"
    values = np.frombuffer(chunk.read_bytes(), np.float16).reshape(-1, 64).copy()
    values[20] += 1
    chunk.write_bytes(values.tobytes())

    report = checked(whole / "zarr/x.zarr", against=other)

    (array,) = [array for array in report.comparison.arrays if array.differ]
    assert (array.array, array.differ, array.beyond) == ("layers/cls/05", 1, 1)
    assert array.first == (open_store(other).table().sample_id[20],)
    assert array.absolute == pytest.approx(1, abs=1e-2)
    assert "layers/cls/05 differ in up to 1 rows" in report.comparison.verdict
    assert report.exit_code == 1


def test_a_path_without_a_store_and_options_that_contradict_are_refused(tmp_path):
    with pytest.raises(StoreNotFoundError, match="does not exist. Name a store"):
        checked(tmp_path / "x.zarr")
    with pytest.raises(ConfigError, match="give it with repair"):
        VerifyConfig(store=tmp_path / "x.zarr", accept=True)
