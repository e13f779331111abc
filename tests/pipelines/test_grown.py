"""Stores that took in new samples or lost some: every verb reads their rows in their own order, and what is deleted stays so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import save_features
from featurecache.errors import StoreContentsError, StoreMismatchError
from featurecache.provenance import PROVENANCE, provenance
from featurecache.stores import open_store
from pipelines import plan
from pipelines.delete import DeleteConfig
from pipelines.delete import run as delete
from pipelines.maintain import ConvertConfig, convert
from pipelines.merge import MergeConfig
from pipelines.merge import run as merge
from pipelines.plan import PlanConfig
from pipelines.verify import VerifyConfig
from pipelines.verify import run as verify
from tests.extraction_samples import Forwards, pictures, settings
from tests.faults.test_bit_flips import content_of, flip
from tests.test_save_features_new_samples import add

GONE = ("cat/000.png", "cat/017.png", "dog/005.png")
"""Samples that are taken out."""


def extracted(data: Path, out: Path, **changes):
    return save_features.run(settings(data, out, **{"layers": "4-5", **changes}))


def checked(store: Path, **changes):
    return verify(VerifyConfig(store=store, quiet=True, **changes))


def lasting(place: Path) -> dict[str, bytes]:
    """Return the content of everything in a folder but the provenance and the scores."""
    found = content_of(place)
    return {name: content for name, content in found.items() if PROVENANCE not in name and "scores/" not in name}


@pytest.fixture(scope="module")
def grown_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `animals`, and `x.zarr` and `x.h5`, which hold 40 of its samples, then 13, then 5."""
    place = tmp_path_factory.mktemp("grown")
    folder = pictures(place / "animals")
    extracted(folder, place / "zarr/x.zarr", layers="5")
    add(folder, *(f"cat/0-new-{n}" for n in range(7)), *(f"dog/z-new-{n}" for n in range(6)))
    extracted(folder, place / "zarr/x.zarr", layers="5", extend=True)
    add(folder, *(f"cat/1-new-{n}" for n in range(5)))
    extracted(folder, place / "zarr/x.zarr", layers="5", extend=True)
    extracted(folder, place / "zarr/x.zarr", layers="4-5", extend=True)
    (place / "h5").mkdir()
    convert(ConvertConfig(store=place / "zarr/x.zarr", out=place / "h5/x.h5"))
    return place


@pytest.fixture(params=["zarr", "h5"])
def grown(request: pytest.FixtureRequest, grown_place: Path, tmp_path: Path) -> Path:
    shutil.copytree(grown_place / request.param, tmp_path / "here")
    return tmp_path / "here" / f"x.{request.param}"


def test_rows_of_a_grown_store_are_recomputed_in_its_order(grown):
    report = checked(grown, recompute=58)

    assert report.exit_code == 0
    assert {array.rows for array in report.recomputed} == {58}
    assert max(array.relative for array in report.recomputed) < 1e-3


def test_precision_of_a_grown_store_is_measured_with_its_own_labels(grown):
    found = checked(grown, recompute=58, precision=True).precision

    assert found.rows == found.labelled == 58
    assert all(abs(loss.logme) < 1e-2 for loss in found.losses if loss.form == "float16")


def damage_row(store: Path, array: str, row: int) -> None:
    values = open_store(store).read(array, slice(row, row + 1)).tobytes()
    holders = [store] if store.is_file() else [path for path in (store / array / "c").rglob("*") if path.is_file()]
    (file,) = [path for path in holders if values in path.read_bytes()]
    flip(file, file.read_bytes().index(values) + 3, 2)


@pytest.mark.parametrize("array", ["layers/cls/04", "layers/cls/05"])
def test_damaged_rows_of_a_grown_store_are_mended_to_the_bit(array, grown):
    """Layer 5 was computed in the batches of three runs, layer 4 in those of one."""
    before = lasting(grown.parent)
    for row in (35, 45, 56):
        damage_row(grown, array, row)

    report = checked(grown, repair=True)

    assert [unlike.what for unlike in report.unlike] == []
    assert report.exit_code == 0
    assert lasting(grown.parent) == before


@pytest.mark.parametrize("column", ["sample_id", "target", "split"])
def test_a_column_of_a_grown_store_that_is_gone_is_made_again_in_its_order(column, grown_place, tmp_path):
    shutil.copytree(grown_place / "zarr", tmp_path / "here")
    store, before = tmp_path / "here/x.zarr", lasting(grown_place / "zarr")
    shutil.rmtree(store / column / "c")
    shutil.rmtree(store / "embedding/c")

    assert checked(store, repair=True).exit_code == 0
    assert lasting(tmp_path / "here") == before


def test_the_order_of_a_grown_store_is_noted_when_it_grows(grown_place):
    notes = [line["grown"] for line in provenance(grown_place / "zarr/x.zarr") if "grown" in line]

    assert [(line["held"], line["rows"]) for line in notes] == [(40, 53), (53, 58)]
    assert [sum(stop - first for first, stop in line["new"]) for line in notes] == [13, 5]


def test_an_order_that_nobody_noted_is_left_and_no_row_is_taken_for_another(grown_place, tmp_path):
    shutil.copytree(grown_place / "zarr", tmp_path / "here")
    store = tmp_path / "here/x.zarr"
    lines = (store / PROVENANCE).read_bytes().splitlines(keepends=True)
    (store / PROVENANCE).write_bytes(b"".join(line for line in lines if b'"grown"' not in line))
    shutil.rmtree(store / "sample_id/c")
    damage_file = store / "embedding/c/0/0/0"
    flip(damage_file, 700, 1)
    damaged = damage_file.read_bytes()

    report = checked(store, repair=True, accept=True)

    assert report.exit_code == 1
    assert "no longer the one" in next(one.what for one in report.unlike if one.file.startswith("sample_id"))
    assert damage_file.read_bytes() == damaged


def test_pictures_that_came_since_do_not_hinder_a_verification(grown, grown_place, tmp_path):
    folder = tmp_path / "animals"
    shutil.copytree(grown_place / "animals", folder)
    add(folder, "cat/2-newer")
    damage_row(grown, "embedding", 50)

    assert checked(grown, repair=True, recompute=16, data=str(folder)).exit_code == 0


def planned(data: Path, out: Path, **changes) -> plan.Plan:
    config = settings(data, out, **{"layers": "4-5", **changes})
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return plan.run(PlanConfig(**given, probe_seconds=0.2))


def test_a_plan_counts_the_new_samples_and_the_bytes_of_all_rows(grown_place, tmp_path):
    folder, store = tmp_path / "animals", tmp_path / "x.zarr"
    shutil.copytree(grown_place / "animals", folder)
    shutil.copytree(grown_place / "zarr/x.zarr", store)

    assert planned(folder, store).rows_left == 0
    add(folder, "cat/2-newer", "dog/2-newer")
    found = planned(folder, store, extend=True)
    extracted(folder, store, extend=True)

    assert (found.rows, found.rows_left) == (60, 2)
    assert found.arrays["embedding"] == sum(p.stat().st_size for p in (store / "embedding/c").rglob("*") if p.is_file())
    assert planned(folder, store, layers="3-5", extend=True).rows_left == 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "animals")


@pytest.fixture(params=[".zarr", ".h5"])
def out(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A store of 40 samples, three of which were deleted."""
    path = tmp_path / "stores" / f"x{request.param}"
    extracted(folder, path)
    delete(DeleteConfig(store=path, ids=GONE))
    return path


def rows_of(store) -> list[int]:
    ids = [str(name) for name in store.table().sample_id]
    return [ids.index(name) for name in GONE]


def check_still_deleted(path: Path) -> None:
    store = open_store(path)
    ids = [str(name) for name in store.table().sample_id]
    assert len(set(ids)) == len(ids)
    assert [str(store.status()[row]) for row in rows_of(store)] == ["deleted"] * 3
    for spec in store.header.arrays:
        assert not store.read(spec.name, np.array(rows_of(store))).any()
    assert len(store.to_numpy("embedding")) == len(ids) - 3


def remove_pictures(folder: Path) -> None:
    for name in GONE:
        (folder / name).unlink()


@pytest.mark.parametrize("gone", [False, True], ids=["pictures there", "pictures gone"])
def test_the_identical_command_does_nothing_after_a_deletion(gone, out, folder, monkeypatch):
    if gone:
        remove_pictures(folder)
    before, watched = lasting(out.parent), Forwards().watch(monkeypatch)

    report = extracted(folder, out)

    assert report.was_finished
    assert watched.requests == []
    assert lasting(out.parent) == before


@pytest.mark.parametrize("gone", [False, True], ids=["pictures there", "pictures gone"])
def test_more_layers_after_a_deletion_are_those_of_all_other_samples(gone, out, folder, tmp_path):
    extracted(folder, tmp_path / "fresh.zarr", layers="3-5")
    if gone:
        remove_pictures(folder)

    extracted(folder, out, layers="3-5", extend=True)

    check_still_deleted(out)
    store, fresh = open_store(out), open_store(tmp_path / "fresh.zarr")
    others = np.setdiff1d(np.arange(40), rows_of(store))
    np.testing.assert_array_equal(store.read("layers/cls/03", others), fresh.read("layers/cls/03", others))


def test_pictures_of_deleted_samples_are_not_even_read(out, folder):
    for name in GONE:  # of the same size, so that the data set is the same, and nothing that could be decoded
        (folder / name).write_bytes(bytes((folder / name).stat().st_size))

    extracted(folder, out, layers="3-5", extend=True)

    check_still_deleted(out)


@pytest.mark.parametrize("gone", [False, True], ids=["pictures there", "pictures gone"])
def test_rows_beside_deleted_ones_are_verified_and_mended(gone, out, folder):
    before = lasting(out.parent)
    if gone:
        remove_pictures(folder)
    damage_row(out, "layers/cls/05", 1)

    report = checked(out, repair=True, recompute=40)

    assert report.exit_code == 0
    assert {array.rows for array in report.recomputed} == {37}
    assert lasting(out.parent) == before
    check_still_deleted(out)


def test_new_samples_come_behind_and_the_deleted_stay_deleted_when_their_pictures_come_back(out, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "kept")
    remove_pictures(folder)
    add(folder, "cat/new")

    assert extracted(folder, out, extend=True).added == ("1 new samples",)
    check_still_deleted(out)
    assert extracted(folder, out).was_finished
    for name in GONE:
        shutil.copy(tmp_path / "kept" / name, folder / name)
    assert extracted(folder, out, extend=True).was_finished
    add(folder, "dog/newer")
    extracted(folder, out, extend=True)

    assert open_store(out).header.rows == 42
    check_still_deleted(out)
    assert checked(out, recompute=42).exit_code == 0


def test_a_sample_that_is_gone_and_was_not_deleted_is_refused_with_the_way(out, folder):
    remove_pictures(folder)
    (folder / "dog/006.png").unlink()

    with pytest.raises(StoreMismatchError, match=r"1 samples .* is 'dog/006.png'.*taken out with featurecache delete"):
        extracted(folder, out)


def test_another_file_in_the_place_of_a_deleted_one_is_refused_with_the_way(out, folder):
    (folder / GONE[0]).write_bytes(b"taken down")

    with pytest.raises(StoreMismatchError, match=r"changed its size.*one that was deleted, remove its file"):
        extracted(folder, out)


def test_other_pictures_under_old_names_are_found_before_anything_is_added(out, folder):
    remove_pictures(folder)
    names = sorted(folder.rglob("*.png"))
    for one, other in zip(names, [*names[1:], names[0]], strict=True):
        one.rename(other.with_suffix(".moved"))
    for path in folder.rglob("*.moved"):
        path.rename(path.with_suffix(".png"))

    with pytest.raises(StoreMismatchError, match="written with data of all samples; now there is data without"):
        extracted(folder, out, layers="3-5", extend=True)


def test_a_class_of_which_every_sample_was_deleted_may_be_gone(tmp_path):
    folder, out = pictures(tmp_path / "animals", ant=3, cat=20, dog=20), tmp_path / "x.zarr"
    extracted(folder, out)
    delete(DeleteConfig(store=out, ids=tuple(f"ant/00{number}.png" for number in range(3))))
    shutil.rmtree(folder / "ant")

    assert extracted(folder, out).was_finished
    add(folder, "dog/new")
    extracted(folder, out, extend=True)

    store = open_store(out)
    assert store.header.class_names == ("ant", "cat", "dog")
    assert store.table().target[-1] == 2
    assert extracted(folder, out).was_finished
    assert checked(out, recompute=44).exit_code == 0


def test_what_is_deleted_from_one_share_does_not_come_back_from_another(tmp_path):
    folder = pictures(tmp_path / "animals", cat=600, dog=600)
    parts = [tmp_path / f"{number}.zarr" for number in range(2)]
    for number, part in enumerate(parts):
        extracted(folder, part, layers="none", shard=f"{number}/2")
    share = open_store(parts[1]).missing()[0]
    theirs = str(open_store(parts[0]).table().sample_id[share.stop + 1])
    delete(DeleteConfig(store=parts[0], ids=(theirs,)))

    with pytest.raises(
        StoreContentsError, match=rf"deleted from .*0.zarr are still in .*1.zarr, the first is '{theirs}'"
    ):
        merge(MergeConfig(stores=tuple(parts), out=tmp_path / "x.zarr"))
    delete(DeleteConfig(store=parts[1], ids=(theirs,)))
    merge(MergeConfig(stores=tuple(parts), out=tmp_path / "x.zarr"))

    assert list(open_store(tmp_path / "x.zarr").status()).count("deleted") == 1


def test_a_copy_in_another_dtype_keeps_what_is_deleted_deleted(folder, tmp_path):
    extracted(folder, tmp_path / "x.zarr", dtype="float32")
    delete(DeleteConfig(store=tmp_path / "x.zarr", ids=GONE))

    convert(ConvertConfig(store=tmp_path / "x.zarr", out=tmp_path / "y.h5", dtype="float16"))

    check_still_deleted(tmp_path / "y.h5")


def test_a_store_of_several_data_sets_says_where_it_can_be_mended(folder, tmp_path):
    other = pictures(tmp_path / "more" / "beasts", cat=3, dog=3)
    for path in other.rglob("*.png"):
        path.rename(path.with_name(f"more-{path.name}"))
    extracted(folder, tmp_path / "one.zarr")
    extracted(other, tmp_path / "other.zarr")
    merge(MergeConfig(stores=(tmp_path / "one.zarr", tmp_path / "other.zarr"), out=tmp_path / "x.zarr"))

    with pytest.raises(StoreContentsError, match=r"merged from stores of different data \(animals, beasts\).*mend the"):
        checked(tmp_path / "x.zarr", recompute=16)
