"""`train-student`: teachers joined by sample id, the run folder of any training, the same weights as without teachers at prec 0."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from featurecache.datasets import open_dataset
from featurecache.progress import Stopwatch
from featurecache.sources.images import decoded
from featurecache.stores import open_store
from pipelines import train_student as module
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate import run as evaluate
from pipelines.export import ExportConfig
from pipelines.export import run as export
from pipelines.merge import MergeConfig
from pipelines.merge import run as merge
from pipelines.objectives import _paraphrasing
from pipelines.online.planning import images_of, sources_of
from pipelines.predict import Predictor
from pipelines.report import ReportConfig
from pipelines.report import run as report
from pipelines.students.cells import cells_of
from pipelines.students.guiding import StudentGuide
from pipelines.students.planning import Opened, planned
from pipelines.students.rows import part_of, whole_epochs
from pipelines.train_student import run
from pipelines.training.distributed import ALONE
from tests.pipelines.online_samples import photos
from tests.pipelines.student_samples import student, teacher


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("students") / "photos")


@pytest.fixture(scope="module")
def stores(data):
    """Two teachers of other widths; the second one keeps three views."""
    return [
        teacher(data, data.parent / "one.zarr"),
        teacher(data, data.parent / "two.zarr", backbone="timm:test_resnet", views=3, augment="crop"),
    ]


@pytest.fixture(scope="module")
def taught(data, stores):
    """A run with both teachers."""
    out = data.parent / "taught"
    run(student(data, out, *stores, epochs=3))
    return out


def record(folder) -> dict:
    return json.loads((folder / "record.json").read_text())


def weights(folder) -> dict:
    return load_file(folder / "backbone.safetensors") | load_file(folder / "head.safetensors")


def test_a_run_keeps_what_was_learnt_and_says_of_whom(taught, stores):
    found = record(taught)

    assert found["objective"] == {"name": "aft", "options": {}, "prec": 1.0, "parameters": 64 + 96, "mode": "honest"}
    assert [one["width"] for one in found["teachers"]] == [64, 96]
    for one, store in zip(found["teachers"], stores, strict=True):
        assert one["store"] == str(store) and len(one["scales"]) == one["width"]
        assert one["scales_mean"] == pytest.approx(np.mean(one["scales"]), abs=1e-4) and one["scales_std"] > 0
        assert 0 < one["kernel_distance"]["after"] < 2 and one["kernel_distance"]["before"] > 0
    scales = load_file(taught / "objective.safetensors")["s"].sigmoid()
    assert [value for one in found["teachers"] for value in one["scales"]] == pytest.approx(scales.tolist(), abs=1e-5)
    lines = [json.loads(line) for line in (taught / "history.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        assert line["train_loss"] == pytest.approx(line["train_likelihood"] + line["train_distance"], rel=1e-4)
        assert {"train_scales_mean", "train_scales_std", "val_top1"} <= line.keys()


def test_it_predicts_evaluates_and_is_exported_like_any_run(data, taught, tmp_path):
    lines = pq.read_table(taught / "predictions.parquet").to_pydict()
    files = [data / name for name in lines["sample_id"]]

    found = Predictor.load(taught).predict(files, topk=3)
    judged = evaluate(EvaluateConfig(run_folder=taught, test=(str(data),), split="test"))
    proof = export(ExportConfig(run_folder=taught, out=tmp_path / "exported"))

    assert [one.answer for one in found] == lines["pred"]
    assert judged.found[0]["metrics"]["top1"]["value"] == record(taught)["metrics"]["test"]["top1"]["value"]
    assert (tmp_path / "exported/model.safetensors").exists() and "labels equal" in str(proof.tables())


def test_prec_0_gives_the_weights_of_none_bit_for_bit(data, stores, tmp_path):
    run(student(data, tmp_path / "none", objective="none", epochs=1))
    for name in ("aft", "b_tuning"):
        run(student(data, tmp_path / name, *stores, objective=name, prec=0.0, epochs=1))

        values = weights(tmp_path / name)
        assert all(torch.equal(values[key], value) for key, value in weights(tmp_path / "none").items()), name


def test_teachers_whose_rows_lie_in_another_order_teach_the_same(data, tmp_path):
    whole, some = tmp_path / "whole", tmp_path / "photos"
    shutil.copytree(data, whole)
    halves = [
        [path.relative_to(whole) for path in sorted(whole.rglob("*.png")) if int(path.stem) % 2 == odd]
        for odd in (1, 0)
    ]
    exact = {"dtype": "float32", "batch_size": 1}
    for number, half in enumerate(halves):  # a store of each half, and one that has grown by the second
        shutil.rmtree(some, ignore_errors=True)
        for name in half:
            (some / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(whole / name, some / name)
        teacher(some, tmp_path / f"half{number}.zarr", **exact)
    shutil.copytree(whole, some, dirs_exist_ok=True)
    teacher(some, tmp_path / "given.zarr", **exact)
    merge(MergeConfig(stores=(tmp_path / "half0.zarr", tmp_path / "half1.zarr"), out=tmp_path / "merged.zarr"))
    teacher(some, tmp_path / "half1.zarr", **exact, extend=True)

    for name in ("given", "merged", "half1"):
        run(student(some, tmp_path / name, tmp_path / f"{name}.zarr", epochs=1))

    given = weights(tmp_path / "given")
    for name in ("merged", "half1"):
        assert (
            open_store(tmp_path / f"{name}.zarr").table().sample_id[1]
            != open_store(tmp_path / "given.zarr").table().sample_id[1]
        )
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, given[key], rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_fit_memory_stay_mapped_and_teach_the_same(data, stores, taught, tmp_path, monkeypatch):
    monkeypatch.setattr("featurecache.sources.teachers._room", lambda device: 0)

    run(student(data, tmp_path / "run", *stores, epochs=3))

    assert all(torch.equal(weights(tmp_path / "run")[key], value) for key, value in weights(taught).items())


class TestAugmentedStudents:
    def test_a_student_sees_the_views_that_its_teacher_keeps(self, data, stores, tmp_path):
        config = student(data, tmp_path / "run", stores[1], augment="views")
        plan = planned(config, Opened.of(config))

        kept, seen = open_store(stores[1]), set()
        with images_of(plan.online, plan.settings, ALONE) as images:
            sources, _ = sources_of(plan.online, images, plan.settings, ALONE)
            train, _ = StudentGuide(plan, tmp_path).begin(sources, lambda *_: None, ALONE)
            for seed in range(6):
                view = sources["train"].view_of("shuffled", seed)
                batch = next(iter(train.batches(4, order="shuffled", seed=seed)))
                seen.add(view)
                told = kept.read("embedding", batch.rows, view).astype(np.float32)
                np.testing.assert_array_equal(batch.arrays["teacher/00"].numpy(), told)
                pictures = next(images.batches([batch.rows], images.number("shuffled", seed)))
                cached = decoded(
                    plan.online.backbone, plan.online.dataset, [range(int(row), int(row) + 1) for row in batch.rows],
                    Stopwatch(), on_error="stop", threads=1, views=plan.online.views,
                )  # fmt: skip
                for picture, (_, drawn, _) in zip(pictures, cached, strict=True):
                    assert torch.equal(picture, drawn[view, 0])

        assert seen == {0, 1, 2}

    def test_other_augmentations_keep_the_teachers_row(self, data, stores, tmp_path):
        found = run(student(data, tmp_path / "run", *stores, augment="crop", epochs=1)).record

        assert found["teachers"][0]["kernel_distance"]["after"] > 0


class TestReference:
    def test_it_does_as_the_published_code_and_says_so(self, data, stores, tmp_path):
        config = student(data, tmp_path / "run", stores[0], reference=True, steps=12, train_frac=0.5)
        plan = planned(config, Opened.of(config))

        found = run(config).record

        table = open_dataset(data).table
        whole = [row for row, split in enumerate(table.split) if split != "test"]
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(42)).tolist()
        count = len(plan.rows["train"])
        assert plan.rows["train"].tolist() == sorted(whole[place] for place in order[:count])
        assert count in (len(whole) // 2, len(whole) // 2 + 1) and len(plan.rows["val"]) == len(whole) // 10
        assert found["objective"]["mode"] == "reference" and found["epochs"] == whole_epochs(12, count, 8) == 4
        assert found["best_epoch"] == 4, "the last values are kept"

    def test_few_batches_come_again_and_many_are_drawn_anew(self, data, stores, tmp_path):
        for reference, size, reshuffles in ((True, 8, False), (False, 8, True)):
            config = student(data, tmp_path, stores[0], reference=reference, batch_size=size)
            guide = StudentGuide(planned(config, Opened.of(config)), tmp_path)
            assert (guide.reshuffles, guide.keeps_best) == (reshuffles, not reference)


def test_a_part_of_the_rows_is_of_every_class_and_grows():
    classes, ids = np.repeat([0, 1, 2], [40, 20, 1]), [f"{n}.png" for n in range(100)]
    rows = np.arange(30, 91)

    half, most = (part_of(rows, classes, ids, fraction, 0) for fraction in (0.5, 0.8))

    assert [int((classes[half - 30] == one).sum()) for one in (0, 1, 2)] == [20, 10, 1]
    assert set(half) < set(most) < set(rows) and list(half) == sorted(half)
    assert part_of(rows, classes, ids, 1.0, 0) is rows and not np.array_equal(half, part_of(rows, classes, ids, 0.5, 1))


def test_the_same_command_twice_is_a_no_op(data, stores, taught, monkeypatch):
    monkeypatch.setattr(module, "train_online", lambda *_: pytest.fail("it trains again"))

    again = run(student(data, taught, *stores, epochs=3))

    assert again.repeated and again.record == record(taught)


def test_factor_transfer_keeps_its_autoencoders_where_it_is_told(data, stores, tmp_path, monkeypatch):
    monkeypatch.setattr(_paraphrasing, "EPOCHS", 3)
    settings = {"objective": "factor_transfer", "cache": tmp_path / "cache", "epochs": 1}

    run(student(data, tmp_path / "first", stores[0], **settings))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    run(student(data, tmp_path / "second", stores[0], **settings, seed=1))
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    run(student(data, tmp_path / "third", stores[1], stores[0], **settings))

    assert len(kept) == 1 and again == kept
    both = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(both) == 2 and kept.items() <= both.items(), "a teacher's own serves beside another teacher too"


SWEEP = {"objective": "none,aft,concat_probe", "teachers": "1+2", "prec": "0.5,2", "seed": "0,1"}


@pytest.fixture(scope="module")
def swept(data, stores):
    out = data.parent / "swept"
    run(student(data, out, *stores, sweep=SWEEP, epochs=1))
    return out


class TestSweep:
    def test_every_combination_that_differs_is_a_cell(self, data, stores, tmp_path):
        cells = cells_of(student(data, tmp_path, *stores, sweep={**SWEEP, "teachers": "1,1+2"}))

        names = [cell.name for cell in cells]
        assert len(names) == 2 + 2 * 2 * 2 + 2 * 2, "none has no teachers, and neither none nor the probe has a prec"
        assert "objective=none,seed=1" in names and "objective=aft,teachers=1+2,prec=2.0,seed=0" in names
        for cell in cells:
            assert cell.config.seed == cell.config.data_seed == cell.named["seed"] and cell.config.out.name == cell.name
            wanted = stores[:1] if cell.named.get("teachers") == "1" else stores
            assert list(cell.config.teacher) == wanted and (cell.config.prec is None) == (cell.config.named != "aft")
        assert {cell.config.cache for cell in cells} == {tmp_path / "shared"}

    def test_prec_is_chosen_on_validation_and_compared_in_pairs(self, swept):
        found = record(swept)

        lines = found["students"]["results"]
        assert [(one["objective"], one["teachers"]) for one in lines] == [
            ("none", ""), ("aft", "1+2"), ("concat_probe", "1+2")
        ]  # fmt: skip
        for line in lines[1:2]:
            values = {
                prec: np.mean([
                    record(swept / f"cells/objective=aft,teachers={line['teachers']},prec={prec},seed={seed}")["metrics"]["val"]["top1"]["value"]
                    for seed in (0, 1)
                ]) for prec in (0.5, 2.0)
            }  # fmt: skip
            assert values[line["prec"]] == max(values.values()) == pytest.approx(line["val_top1"])
        gaps = found["students"]["differences"]
        for line, gap in zip(lines[1:], gaps, strict=True):
            assert (
                gap["mean"] == pytest.approx(line["mean"] - lines[0]["mean"])
                and gap["low"] <= gap["mean"] <= gap["high"]
            )
            assert gap["against_objective"] == "none"
        assert {path.name for path in swept.glob("*.csv")} == {"sweep.csv", "results.csv", "differences.csv"}

    def test_its_folder_is_the_run_of_the_best_student(self, data, swept):
        found = record(swept)

        assert not found["cell"].startswith("objective=concat_probe")
        for file in ("backbone.safetensors", "predictions.parquet"):
            assert (swept / file).read_bytes() == (swept / "cells" / found["cell"] / file).read_bytes()
        lines = pq.read_table(swept / "predictions.parquet").to_pydict()
        assert [
            one.answer for one in Predictor.load(swept).predict([data / name for name in lines["sample_id"]])
        ] == lines["pred"]

    def test_a_stopped_sweep_trains_only_what_is_missing(self, data, stores, swept, tmp_path, monkeypatch):
        shutil.copytree(swept, tmp_path / "run")
        for name in ("record.json", "cells/objective=none,seed=1/record.json"):
            (tmp_path / "run" / name).unlink()
        config = json.loads((tmp_path / "run/config.json").read_text())
        trained = []
        act = module.train_student
        monkeypatch.setattr(
            module, "train_student", lambda plan, ranks: trained.append(plan.config.out.name) or act(plan, ranks)
        )

        again = run(student(data, tmp_path / "run", *stores, sweep=SWEEP, epochs=1))

        assert trained == ["objective=none,seed=1"] and config["sweep"] == SWEEP
        assert again.record["students"] == record(swept)["students"]

    def test_a_report_shows_it(self, swept, taught, tmp_path):
        made = report(ReportConfig(runs=(swept, taught), out=tmp_path / "page.html"))

        page = (tmp_path / "page.html").read_text()
        assert "Students and teachers" in page and "paired by row and by seed" in page
        assert "concat_probe" in page and "scales of the teachers&#39; dimensions" in page and made

    def test_a_cell_that_diverges_is_told_and_not_chosen(self, data, stores, tmp_path):
        found = run(student(
            data, tmp_path / "run", stores[0], objective="kd", optimizer="sgd", sweep={"prec": "0.1,1e30"}, epochs=1
        )).record  # fmt: skip

        assert [line["diverged_in_epoch"] for line in found["sweep"]["cells"]] == [None, "yes"]
        assert found["students"]["results"][0]["prec"] == 0.1


def test_a_probe_on_teachers_reads_no_image(data, stores, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "featurecache.sources.live.LiveImages.__init__", lambda *_, **__: pytest.fail("an image is read")
    )
    monkeypatch.setattr("pipelines.online.planning.load_backbone", lambda *_: pytest.fail("a backbone is built"))

    for head in ("ridge", "logistic", "linear"):
        settings = {"objective": "concat-probe", "student": None, "from_scratch": False, "image_size": None}
        found = run(student(data, tmp_path / head, *stores, **settings, objective_option={"head": head})).record

        assert found["arrays"] == ["teacher/00", "teacher/01"] and found["closed_form"]
        answers = pq.read_table(tmp_path / head / "predictions.parquet")["pred"].to_pylist()
        assert len(set(answers)) > 1, "random teachers tell six images apart, however well"
