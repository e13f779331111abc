"""Class names of any letters come through tables, pages, cards and exports as they are; so do odd numbers of images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import export
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate import run as evaluate
from pipelines.exporting import proving, standalone
from pipelines.exporting.model_card import code
from pipelines.predict import PredictConfig
from pipelines.predict import run as predict
from pipelines.predicting.predictor import Predictor
from pipelines.report import ReportConfig
from pipelines.report import run as report
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from tests.pipelines.exporting.here import said_here
from tests.pipelines.pictures import CLASSES, picture, store_of

NAMES = ('a,b "q"; | `c`', "<b>$x_$", "été\nzwei", "nan", "-1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` of oddly named classes, `store.zarr`, the run `ridge` and its export `out`."""
    place = tmp_path_factory.mktemp("names")
    for split, first, count in (("train", 0, 8), ("test", 50, 3)):
        for kind, name in enumerate(NAMES):
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                picture((*CLASSES, "grey")[kind % 4], number).save(folder / f"{number}.png")
    store = store_of(place / "photos", place / "store.zarr", layers="none")
    train(TrainHeadConfig(store=store, head="ridge", out=place / "ridge", quiet=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proving, "_said", said_here)
        export.run(export.ExportConfig(run_folder=place / "ridge", out=place / "out"))
    return place


def test_tables_of_predictions_have_the_names_letter_by_letter(place, tmp_path):
    files = sorted((place / "photos/test").rglob("*.png"))
    found = predict(PredictConfig(run_folder=place / "ridge", inputs=tuple(files), out=tmp_path / "x.csv", quiet=True))

    table = pq.read_table(place / "ridge/predictions.parquet")
    with open(tmp_path / "x.csv", newline="") as file:
        lines = list(csv.DictReader(file))

    assert set(table["label"].to_pylist()) == set(NAMES)
    assert table.column_names[3:] == [f"prob_{name}" for name in sorted(NAMES)]
    assert [line["answer"] for line in lines] == [one.answer for one in found.found] and len(lines) == 15
    assert {line["answer"] for line in lines} <= set(NAMES)


def test_the_table_of_an_evaluation_has_them_too(place, tmp_path):
    report = evaluate(EvaluateConfig(run_folder=place / "ridge", out=tmp_path / "x.csv"))

    with open(tmp_path / "x.csv", newline="") as file:
        metrics = [line["metric"] for line in csv.DictReader(file)]
    assert [name for name in metrics if name.startswith("recall:")] == [f"recall:{name}" for name in sorted(NAMES)]
    assert [row[0] for row in report.tables()[1].rows] == sorted(NAMES)


def test_a_report_draws_and_escapes_them(place, tmp_path):
    report(ReportConfig(runs=(place / "ridge",), out=tmp_path / "page.html"))

    page = (tmp_path / "page.html").read_text()
    assert "<b>$x_$" not in page and "&lt;b&gt;$x_$" in page
    values = json.loads(re.search(r'id="values">(.*?)</script>', page, re.S)[1])
    assert values["summary"][0]["class_names"] == sorted(NAMES)


def test_a_model_card_shows_them_as_code_of_one_line(place):
    card = (place / "out/README.md").read_text()

    assert '`` a,b "q"; | `c` ``' in card and "`<b>$x_$`" in card and r"`été\nzwei`" in card


@pytest.mark.parametrize(("text", "shown"), [
    ("cat", "`cat`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a``b`", "``` a``b` ```"), ("x\ny", r"`x\ny`"), (" ", "`   `"),
])  # fmt: skip
def test_code_is_fenced_by_more_than_it_holds(text, shown):
    assert code(text) == shown


def test_an_export_answers_with_them_whatever_the_size_of_the_last_batch(place, capsys, monkeypatch):
    model, files = standalone.Model.load(place / "out"), sorted((place / "photos/test").rglob("*.png"))[:5]

    whole, predictor = model.logits(files, batch_size=5), Predictor.load(place / "ridge")
    for size in (1, 2, 3, 4, 32):
        np.testing.assert_allclose(model.logits(files, batch_size=size), whole, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            predictor.predict_proba(files, batch_size=size), model.probabilities(whole), atol=1e-3
        )
    assert model.logits([]).shape == (0, 5) and model.predict(files[:1])[0]["answer"] in NAMES

    monkeypatch.setattr(standalone, "HERE", place / "out")
    assert standalone.main([str(place / "photos/test" / "été\nzwei"), "--topk", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and r"été\nzwei/50.png" in lines[0]
    assert standalone.main([str(files[0]), "--batch-size", "0"]) == 1
    assert "must be positive, got 5 and 0" in capsys.readouterr().err


def test_every_file_of_an_export_and_a_run_is_readable_as_the_umask_says(place):
    (place / "new").touch()
    mode = (place / "new").stat().st_mode & 0o777
    private = [path.name for path in place.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 != mode]

    assert private == []
