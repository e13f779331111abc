"""`save_features.py` and `logme.py` run as scripts, with our names and with those of the papers' scripts."""

from __future__ import annotations

import json
import subprocess
import sys

import cli
from featurecache.stores import open_store
from tests.journeys.pages import ROOT


def script(name: str, *arguments: str, folder) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / name), *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)


def test_save_features_takes_the_names_of_the_papers_script(tmp_path):
    done = script(
        "save_features.py", "--model_class", "demo", "--dataset", "digits", "--save_path", "features", "--batch_size", "128",
        "--layers", "last", folder=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    header = open_store(tmp_path / "features.zarr").header
    assert header.backbone["name"] == "demo" and header.backbone["batch_size"] == 128
    assert header.dataset["name"] == "digits"


def test_logme_takes_a_model_and_a_data_set_and_then_the_store_it_made(tmp_path):
    first = script("logme.py", "--model_class=demo", "--dataset=digits", "--layers", "last", folder=tmp_path)
    again = script("logme.py", "digits-demo.zarr", "--json", folder=tmp_path)

    assert first.returncode == 0, first.stderr
    assert again.returncode == 0, again.stderr
    scores = {score["array"]: score["score"] for score in json.loads(again.stdout)}
    assert set(scores) == {"embedding", "layers/cls/05"}
    assert all(f"{score:.4f}" in first.stdout for score in scores.values())


def test_names_of_the_papers_are_ours_in_any_spelling():
    assert cli.translated(["--model-class", "m", "--dataset=d", "--save_path", "x.zarr"]) == [
        "--backbone", "m", "d", "--out", "x.zarr",
    ]  # fmt: skip
    assert cli.translated(["photos", "--transform", "mean=0.5", "--dtype=float32"]) == [
        "photos", "--transform", "mean=0.5", "--dtype=float32",
    ]  # fmt: skip
