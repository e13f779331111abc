"""Only the vectors: the rows of the file are the embeddings of the images, in a form that needs none of our code."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from featurecache.backbones import Request, load_backbone
from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError, UnreadableSampleError
from pipelines.embed import EmbedConfig, run


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "insects" / name).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "insects" / name / f"{number}.png")
    return tmp_path / "insects"


@pytest.fixture
def expected(folder):
    backbone, data = load_backbone("demo"), open_dataset(folder)
    images = torch.stack([backbone.transform(data.read(row)) for row in range(len(data))])
    return backbone.forward(images, Request())["embedding"].numpy()


def test_a_npy_holds_the_embeddings_and_a_csv_names_its_rows(folder, tmp_path, expected):
    out = tmp_path / "new" / "vectors.npy"

    report = run(EmbedConfig(data=str(folder), backbone="demo", out=out, quiet=True))

    found = np.load(out)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    assert report.shape == expected.shape
    with open(out.with_suffix(".csv")) as file:
        lines = list(csv.DictReader(file))
    assert [line["sample_id"] for line in lines] == [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(5)]
    assert [line["label"] for line in lines] == ["ant"] * 5 + ["bee"] * 5
    assert sorted(path.name for path in out.parent.iterdir()) == ["vectors.csv", "vectors.npy"]


def test_a_parquet_holds_the_embeddings_beside_their_names(folder, tmp_path, expected):
    out = tmp_path / "vectors.parquet"

    run(EmbedConfig(data=str(folder), backbone="demo", out=out, quiet=True))

    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["sample_id", "label", "split", "embedding"]
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)


def test_a_bad_image_stops_and_the_next_call_goes_on_or_leaves_it_out(folder, tmp_path, expected):
    bad, out = folder / "bee" / "4.png", tmp_path / "vectors.npy"
    bad.write_bytes(bad.read_bytes()[:50])
    settings = {"data": str(folder), "backbone": "demo", "out": out, "quiet": True}

    with pytest.raises(UnreadableSampleError, match=r"bee/4\.png"):
        run(EmbedConfig(**settings))
    report = run(EmbedConfig(**settings, on_error="skip"))

    assert report.skipped == 1
    assert np.allclose(np.load(out), expected[:9], atol=1e-5)


def test_a_format_that_nothing_says_is_asked_for():
    with pytest.raises(ConfigError, match=r"vectors does not say its format: end it in \.npy or \.parquet"):
        EmbedConfig(data="x", backbone="demo", out=Path("vectors"))
