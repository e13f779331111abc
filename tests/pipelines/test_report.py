"""A report is one page that asks nobody for anything, and whose numbers are those of the runs."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from featurecache.errors import ConfigError, RunError
from featurecache.runs import is_done, write_record
from pipelines.report import ReportConfig, run
from pipelines.sections import SECTIONS, Run
from pipelines.sections._near import nearest_training_rows
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from pipelines.train_online import run as train_online
from tests.pipelines.online_samples import online, photos
from tests.pipelines.stores import made_store

SHOWN_OF_A_CLASSIFIER = {"summary", "layers", "sweep", "curves", "confusion", "attention", "neighbours", "labels"}


@pytest.fixture(scope="module")
def runs(digits_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three runs: a sweep of linear heads over layers, a ridge, and an LFA."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in {
        "linear": {"head": "linear", "sweep": {"layer": "each", "lr": "1e-3,1e-2"}, "epochs": 3},
        "ridge": {"head": "ridge"},
        "lfa": {"head": "lfa", "epochs": 3, "lr": 1e-3},
    }.items():
        train(TrainHeadConfig(store=digits_store, out=folder / name, quiet=True, **settings))
    return folder


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    run(ReportConfig(runs=(runs,), out=out))
    return out.read_text()


def values_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="values">(.*?)</script>', page, re.S)
    return json.loads(found[1], parse_constant=pytest.fail)


class References(html.parser.HTMLParser):
    """Collects whatever a browser would fetch, and which elements are open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_shows_everything_that_runs_of_a_classification_have(page):
    assert set(values_in(page)) == SHOWN_OF_A_CLASSIFIER
    assert set(SECTIONS.names()) == SHOWN_OF_A_CLASSIFIER | {"compared", "costs", "students"}, (
        "a new section is to be shown here"
    )


def test_it_is_whole_and_fetches_nothing(page):
    parser = References()
    parser.feed(page)

    assert parser.open == []
    assert all(reference.startswith(("data:", "#")) for reference in parser.found)
    assert "default-src 'none'" in page
    for drawing in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page):
        svg = base64.b64decode(drawing).decode()
        assert not re.search(r'(?:href|src)="(?!#|data:)', svg) and "@import" not in svg


def test_its_accuracies_counted_again_are_those_of_the_records_and_the_predictions(page, runs):
    found = values_in(page)

    for one in found["summary"]:
        record = json.loads((runs / one["run"] / "record.json").read_text())
        label, answer = (np.array(one["predicted"][name]) for name in ("label", "answer"))
        table = pyarrow.parquet.read_table(runs / one["run"] / "predictions.parquet").to_pydict()
        top1 = record["metrics"]["test"]["top1"]["value"]
        assert (label == answer).mean() == pytest.approx(top1)
        assert np.mean([a == b for a, b in zip(table["label"], table["pred"], strict=True)]) == pytest.approx(top1)
        counts = np.array(found["confusion"][one["run"]]["counts"])
        assert np.trace(counts) / counts.sum() == pytest.approx(top1)
        shown = record["metrics"]["test"]["top1"]
        assert f"{top1:.4f} [{shown['low']:.4f}, {shown['high']:.4f}]" in page


def test_attention_sums_to_one_by_class_and_by_image(page):
    found = values_in(page)["attention"]

    assert list(found) == ["lfa"]
    lines = [found["lfa"]["mean"], *found["lfa"]["by_class"].values(), *found["lfa"]["images"].values()]
    np.testing.assert_allclose(np.array(lines).sum(1), 1, rtol=1e-5)
    assert len(found["lfa"]["mean"]) == 3


def test_the_starts_of_lfa_stand_beside_each_other_with_validation_test_and_a_curve_each(digits_store, tmp_path):
    starts = ("auto", "ridge", "published")
    for start in starts:
        settings = {"head": "lfa", "head_option": {"start": start} if start != "auto" else {}, "epochs": 2}
        train(TrainHeadConfig(store=digits_store, out=tmp_path / "runs" / f"a-{start}", quiet=True, **settings))

    run(ReportConfig(runs=(tmp_path / "runs",), out=tmp_path / "report.html"))

    page = (tmp_path / "report.html").read_text()
    assert values_in(page)["compared"] == {f"a-{start}": {"start": start} for start in sorted(starts)}
    part = re.search(r'<section id="compared">(.*?)</section>', page, re.S)[1]
    (drawing,) = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", part)
    for start in starts:
        metrics = json.loads((tmp_path / "runs" / f"a-{start}/record.json").read_text())["metrics"]
        (line,) = re.findall(rf"<tr><td>{start}</td>.*?</tr>", part, re.S)
        for split in ("val", "test"):
            assert f"<td>{metrics[split]['top1']['value']:.4f} [{metrics[split]['top1']['low']:.4f}" in line
        assert f"start={start} (a-{start})" in base64.b64decode(drawing).decode()


def test_a_sweep_over_starts_shows_all_on_validation_and_the_chosen_one_on_test(digits_store, tmp_path):
    sweep = {"head": "lfa", "sweep": {"start": "ridge,probe,published"}, "epochs": 1}
    found = train(TrainHeadConfig(store=digits_store, out=tmp_path / "run", quiet=True, **sweep)).record

    run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html"))

    page = (tmp_path / "report.html").read_text()
    part = re.search(r'<section id="sweep">(.*?)</section>', page, re.S)[1]
    assert set(re.findall(r"<tr><td>(\w+)</td>", part)) == {"ridge", "probe", "published"}
    assert f"test top1 of the chosen cell: {found['metrics']['test']['top1']['value']:.4f}" in part
    assert "compared" not in values_in(page)


def test_a_run_of_images_has_a_page_that_says_that_there_is_no_store(tmp_path):
    train_online(online(photos(tmp_path / "photos", each=8), tmp_path / "run", peft="full", epochs=1))

    written = run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html"))

    assert written.notes == ["run was trained on images, not on a store, so nothing is said of its features"]
    assert set(values_in((tmp_path / "report.html").read_text())) == {"summary", "costs", "curves", "confusion"}


def test_scores_and_probes_are_mapped_by_layer(page):
    found = values_in(page)["layers"]

    assert any(name.startswith("logme") and "layers/cls/05" in scores for name, scores in found.items())
    assert {"layers/cls/03", "layers/cls/04", "layers/cls/05"} <= set(found["val top1"])


def test_neighbours_are_the_nearest_training_rows_by_brute_force(runs):
    one = Run.read(runs / "ridge")
    table, rows = one.store.table(), one.rows[:7]
    train_rows = np.flatnonzero(np.asarray(table.split) == "train")
    features = one.store.to_numpy("embedding").astype(np.float64)
    features = features - features[train_rows].mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features[rows] @ features[train_rows].T

    found, similar = nearest_training_rows(one, rows, 3)

    np.testing.assert_allclose(similar, -np.sort(-cosines, axis=1)[:, :3], atol=1e-5)
    assert set(found[0]) == set(train_rows[np.argsort(-cosines[0])[:3]])


def test_a_wrong_label_is_among_the_suspicious(tmp_path):
    clean = made_store(tmp_path / "clean.zarr", rows=400)
    from featurecache.stores import open_store

    table = open_store(clean).table()
    targets = np.asarray(table.target).copy()
    planted = np.flatnonzero(np.asarray(table.split) == "test")[:3]
    targets[planted] = (targets[planted] + 1) % 3
    store = made_store(tmp_path / "x.zarr", rows=400, targets=targets)
    train(TrainHeadConfig(store=store, out=tmp_path / "run", head="ridge", layers="concat", quiet=True))

    run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html"))

    first = values_in((tmp_path / "report.html").read_text())["labels"]["run"][:8]
    assert {f"{row}.jpg" for row in planted} <= {line["sample_id"] for line in first}


def test_without_the_store_it_says_so_and_shows_the_rest(digits_store, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(digits_store, copy)
    train(TrainHeadConfig(store=copy, out=tmp_path / "run", head="lfa", epochs=2, quiet=True))
    shutil.rmtree(copy)

    written = run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html"))

    assert written.notes == [f"{copy} is not there, so nothing is said of its features"]
    assert set(values_in((tmp_path / "report.html").read_text())) == {"summary", "curves", "confusion"}


def test_pictures_are_shown_where_the_data_is_given(runs, tmp_path):
    digits = load_digits()
    for number in range(240):
        folder = tmp_path / "images" / f"digit {digits.target[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(folder / f"{number:03d}.png")

    run(ReportConfig(runs=(runs / "lfa",), out=tmp_path / "report.html", pictures=str(tmp_path / "images")))

    assert "data:image/jpeg;base64," in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_have_pages_too(tmp_path, task):
    store = made_store(tmp_path / "x.zarr", task)
    train(TrainHeadConfig(store=store, out=tmp_path / "run", epochs=2, quiet=True))

    written = run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html"))

    assert written.sections[0] == "Metrics" and "Confusions" not in written.sections


def test_names_cannot_write_into_the_page(tmp_path):
    store = made_store(tmp_path / "x.zarr", class_names=("<script>alert(1)</script>", "bee & </script>", "cow"))
    train(TrainHeadConfig(store=store, out=tmp_path / "run", head="ridge", quiet=True))

    run(ReportConfig(runs=(tmp_path / "run",), out=tmp_path / "report.html", title="<b>bold</b>"))

    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page and "<b>bold" not in page
    assert values_in(page)["summary"][0]["class_names"][1] == "bee & </script>"


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(RunError, match="is not a run folder"):
        run(ReportConfig(runs=(tmp_path / "empty",), out=tmp_path / "report.html"))
    is_done(tmp_path / "protocol", {"protocol": "holdout"})
    write_record(tmp_path / "protocol", {"protocol": "holdout", "metrics": []})
    with pytest.raises(RunError, match="holds a comparison and no head"):
        run(ReportConfig(runs=(tmp_path / "protocol",), out=tmp_path / "report.html"))
    with pytest.raises(ConfigError, match="is a folder. Give a file"):
        ReportConfig(runs=(tmp_path,), out=tmp_path)
    assert not (tmp_path / "report.html").exists()
