"""Verbs that only read take a store where it lies, behind a URL, and answer as they do for the one on disk."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import cli
from featurecache.stores import open_store
from tests.pipelines.stores import made_store

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def stores(tmp_path) -> tuple[str, str]:
    """One finished store on disk and its copy in memory."""
    path, url = made_store(tmp_path / "x.zarr"), f"memory://{tmp_path.name}/x.zarr"
    fsspec.filesystem("memory").put(str(path), url, recursive=True)
    return str(path), url


def said(*arguments: str):
    result = CliRunner().invoke(cli.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_info_tells_the_same(stores):
    local, there = (said("info", store) for store in stores)

    assert local == there


def test_logme_ranks_both_alike(stores):
    entries = said("logme", *stores)

    scores = {(entry["store"], entry["array"]): entry["score"] for entry in entries}
    assert len(scores) == 2 * len(open_store(stores[0]).header.arrays)
    assert all(scores[stores[0], array] == scores[stores[1], array] for _, array in scores)


def test_a_head_trained_from_there_is_the_head_trained_from_disk(stores, tmp_path):
    runs = [tmp_path / "local", tmp_path / "there"]

    for store, out in zip(stores, runs, strict=True):
        said("train-head", store, "--epochs", "3", "--out", str(out), "--quiet")

    heads = [(out / "head.safetensors").read_bytes() for out in runs]
    assert heads[0] == heads[1]
    assert json.loads((runs[1] / "config.json").read_text())["store"] == stores[1]
    assert said("train-head", stores[1], "--epochs", "3", "--out", str(runs[1]), "--quiet")


def test_a_run_is_not_looked_for_there():
    result = CliRunner().invoke(cli.main, ["info", "memory://nowhere/run"])

    assert result.exit_code == 1
    assert "memory://nowhere/run does not exist" in result.stderr
