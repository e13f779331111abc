"""The verb `analyze`: stores, runs and backbones on the same samples; a page that asks nobody for anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from featurecache.errors import ConfigError, FeatureCacheError
from pipelines.analyze import AnalyzeConfig, run
from pipelines.train_online import run as train
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.pipelines.online_samples import TINY, online, photos
from tests.pipelines.stores import made_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, a store of every token of them, and a run with ILA."""
    folder = tmp_path_factory.mktemp("analyze")
    data = photos(folder / "photos", each=8)
    extract(
        SaveFeaturesConfig(data=str(data), out=folder / "all.zarr", tokens="all", dtype="float32", quiet=True, **TINY)
    )
    train(online(data, folder / "ila", peft="ila", image_size=96, epochs=1))
    return folder


def asked(place: Path, what: str, *inputs: str, **changes: Any) -> AnalyzeConfig:
    settings = {"batch_size": 4, "samples": 8, "split": "all", "out": place / "out" / what, **changes}
    return AnalyzeConfig(what=what, inputs=inputs, **settings)


def test_a_store_and_the_backbone_that_made_it_are_alike_layer_by_layer(place):
    live = {"images": str(place / "photos"), "weights": ("random:0",), "image_size": 32}

    found = run(asked(place, "cka", str(place / "all.zarr"), "timm:test_vit", **live)).json()

    matrix = np.array(found["cka"])
    assert len(found["layers"]) == 12 and found["samples"] == 8 and found["batches"] == 2
    np.testing.assert_allclose(np.diag(matrix[:6, 6:]), 1, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix.T)
    assert not np.allclose(matrix[:6, :6], 1)


def test_the_page_is_whole_and_the_values_are_those_that_are_told(place):
    report = run(asked(place, "rollout", str(place / "ila"), samples=2))

    written = json.loads((report.out / "values.json").read_text())
    page = (report.out / "page.html").read_text()
    assert written["masks"] == report.json()["masks"]
    assert len(written["masks"]["ila"]) == 2 == len(list(report.out.glob("*.png")))
    assert '<img src="data:image/svg+xml;base64,' in page and 'src="http' not in page


def test_by_attention_layers_of_other_token_counts_are_compared(place):
    found = run(asked(place, "cka", str(place / "ila"), option={"of": "attention"})).json()

    assert found["layers"] == [f"ila blocks.{i}.attn" for i in range(6)]
    assert set(found["apart"]["ila blocks.5.attn"]) == {"mean", "std"}


@pytest.mark.parametrize(("inputs", "changes", "said"), [
    (("all.zarr",), {"option": {"of": "attention"}}, "all.zarr is a store, and attention is not kept in stores"),
    (("timm:test_vit",), {}, "none are named: give --images DATA"),
    (("all.zarr",), {"split": "other"}, "no samples in the split 'other'; it has test, train, val"),
    (("all.zarr",), {"option": {"off": 1}}, "analysis cka has no option 'off'. Did you mean 'of'"),
    (("all.zarr",), {"weights": ("a", "b")}, "weights are given 2 times, but 0 backbones"),
    ((), {"samples": 0}, "2 problems"),
])  # fmt: skip
def test_what_cannot_be_is_told(place, inputs, changes, said):
    known = [str(place / text) if (place / text).exists() else text for text in inputs]

    with pytest.raises(FeatureCacheError, match=said):
        run(asked(place, "cka", *known, **changes))


def test_a_store_of_other_samples_is_not_compared(place, tmp_path):
    made_store(tmp_path / "other.zarr")

    with pytest.raises(ConfigError, match="share no samples .all.zarr has 24, other.zarr has 120"):
        run(asked(place, "cka", str(place / "all.zarr"), str(tmp_path / "other.zarr")))


def test_on_the_command_line(place):
    words = [
        "analyze",
        "cka",
        str(place / "all.zarr"),
        "--split",
        "all",
        "--batch-size",
        "4",
        "--out",
        str(place / "cli"),
    ]

    done = CliRunner().invoke(main, words)

    assert done.exit_code == 0, done.output
    assert "CKA to the others" in done.output and "page.html" in done.output
