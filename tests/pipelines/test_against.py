"""`verify --against`: two stores of one model, and in a sentence each what differs between them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from featurecache.stores import open_store
from pipelines.delete import DeleteConfig
from pipelines.delete import run as delete
from pipelines.verify import VerifyConfig
from pipelines.verify import run as verify
from save_features import run as extract
from tests.extraction_samples import pictures, settings
from tests.test_save_features_new_samples import add


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    extract(settings(folder, folder.parent / "x.zarr", layers="4-5"))
    return folder.parent / "x.zarr"


def against(store: Path, other: Path):
    return verify(VerifyConfig(store=store, against=other, quiet=True))


OTHERWISE = {
    "norm": ({"norm": "none"}, "the norm of the layers (backbone.norm): final in {store}, none in {other}."),
    "mean": (
        {"transform": {"mean": [0.1, 0.2, 0.3]}},
        "the normalisation (mean) (backbone.transform.mean): [0.5, 0.5, 0.5] in {store}, [0.1, 0.2, 0.3] in {other}.",
    ),
    "std": (
        {"transform": {"std": [0.1, 0.2, 0.3]}},
        "the normalisation (std) (backbone.transform.std): [0.5, 0.5, 0.5] in {store}, [0.1, 0.2, 0.3] in {other}.",
    ),
    "weights": ({"weights": "random:1"}, "the weights (backbone.weights): "),
    "batch size": ({"batch_size": 8}, "the batch size (backbone.batch_size): 16 in {store}, 8 in {other}."),
    "dtype": ({"dtype": "float32"}, "the dtype of the features (dtype): float16 in {store}, float32 in {other}."),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_made_the_other_otherwise_is_said_and_ends_in_1(name, store, folder, tmp_path):
    changes, sentence = OTHERWISE[name]
    other = tmp_path / "other.zarr"
    extract(settings(folder, other, layers="4-5", **changes))

    result = CliRunner().invoke(cli.main, ["verify", str(store), "--against", str(other), "--json"])

    told = json.loads(result.output)["against"]["sentences"]
    expected = sentence.format(store=store, other=other)
    assert [one for one in told if one.startswith(expected)]
    assert result.exit_code == 1


def test_rows_that_another_normalisation_changed_are_named_by_the_worst(store, folder, tmp_path):
    extract(settings(folder, tmp_path / "other.zarr", layers="4-5", transform={"mean": [0.1, 0.2, 0.3]}))

    found = against(store, tmp_path / "other.zarr").comparison

    (array,) = [one for one in found.arrays if one.array == "embedding"]
    ids = [str(name) for name in open_store(store).table().sample_id]
    mine, theirs = (
        open_store(path).read("embedding", slice(0, 40)).astype(float) for path in (store, tmp_path / "other.zarr")
    )
    sizes = np.maximum(np.linalg.norm(mine, axis=1), np.linalg.norm(theirs, axis=1))
    assert array.worst == ids[int((np.linalg.norm(mine - theirs, axis=1) / sizes).argmax())]
    assert f"rows differ by more than rounding; the largest difference is that of {array.worst!r}" in array.sentence()


def test_other_tokens_are_said_and_are_no_difference_of_the_features(store, folder, tmp_path):
    other = tmp_path / "other.zarr"
    extract(settings(folder, other, layers="4-5", tokens="mean"))

    report = against(store, other)

    assert f"the tokens (tokens): cls in {store}, mean in {other}." in report.comparison.sentences
    assert report.exit_code == 0


def test_one_changed_row_is_said_with_its_sample_and_the_size_of_the_difference(store, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    chunk = other / "layers/cls/05/c/0/0/0"
    values = np.frombuffer(chunk.read_bytes(), np.float16).reshape(-1, 64).copy()
    values[20, 3] += 1
    chunk.write_bytes(values.tobytes())

    report = against(store, other)

    name = str(open_store(store).table().sample_id[20])
    (sentence,) = report.comparison.sentences
    assert sentence.startswith("layers/cls/05: 1 of 40 rows differ by more than rounding; the largest difference is ")
    assert f"that of {name!r}: " in sentence
    assert "one value by 1." in sentence
    assert report.exit_code == 1


def test_another_order_of_the_rows_is_said_and_rows_are_joined_by_their_samples(tmp_path):
    folder, grown, fresh = pictures(tmp_path / "animals"), tmp_path / "grown.zarr", tmp_path / "fresh.zarr"
    extract(settings(folder, grown, layers="5"))
    add(folder, "cat/0-new", "dog/0-new")
    extract(settings(folder, grown, layers="5", extend=True))
    extract(settings(folder, fresh, layers="5"))

    report = against(grown, fresh)

    order = f"order of the rows: its own in {grown}, another; rows are joined by sample id in {fresh}."
    assert order in report.comparison.sentences
    assert {array.rows for array in report.comparison.arrays} == {42}
    assert report.exit_code == 0


def test_a_subset_is_said_with_the_first_sample_that_is_not_in_it_and_is_the_same_where_both_have_rows(store, tmp_path):
    fewer = pictures(tmp_path / "animals")
    (fewer / "dog/019.png").unlink()
    extract(settings(fewer, tmp_path / "fewer.zarr", layers="4-5"))

    report = against(store, tmp_path / "fewer.zarr")

    told = report.comparison.sentences
    assert any("rows that the other has not" in one and "1, the first is 'dog/019.png' in" in one for one in told)
    assert {array.rows for array in report.comparison.arrays} == {39}
    assert report.comparison.identity == ()
    assert report.exit_code == 0


def test_deleted_rows_are_counted_and_not_held_against_what_they_were(store, tmp_path):
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    delete(DeleteConfig(store=other, ids=("cat/003.png",)))

    report = against(store, other)

    assert report.comparison.sentences == (f"rows deleted: 0 in {store}, 1 in {other}.",)
    assert {array.rows for array in report.comparison.arrays} == {39}
    assert report.exit_code == 0
