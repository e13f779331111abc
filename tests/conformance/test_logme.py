"""LogME against the recorded numbers of the original implementation, one test id for each fixture file."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurecache.features import FeatureBatch
from featurecache.sources.joined import teacher_array
from logme import LogME, LogMEWarning, Moments, logme
from pipelines.objectives import Dimensions, Guidance, Material, guided
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.scores import Rows
from pipelines.scores.leep import score as leep
from pipelines.scores.nce import score as nce

Arrays = dict[str, np.ndarray[Any, Any]]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEATURECACHE_CONFORMANCE", REPOSITORY / ".." / "shared" / "conformance"))
FILES = sorted(FOLDER.glob("logme_*.npz"))

LEEP_NCE = "logme_leep_nce"
LEEP_NCE_ARRAYS = {
    *("source_prob", "target_label", "source_label", "source_label_gap"),  # inputs
    *("leep", "nce", "nce_gap", "leep_onehot"),  # compared
}
INPUTS = {"features", "labels", "is_regression"}
FIXED_POINT = {"fp_score", "fp_evidence", "fp_alpha", "fp_beta", "fp_m", "fp_rank_k", "fp_pred"}
CORRECTED = {"fp_score_rank_corrected"}
EVIDENCE = {"icml_score", "icml_alpha", "icml_beta", "icml_m"}

if not FILES:
    pytest.skip(
        f"no logme_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE to the folder of fixtures",
        allow_module_level=True,
    )

SCORES = [path for path in FILES if path.stem != LEEP_NCE and "btuning" not in path.stem]
BTUNING = [path for path in FILES if "btuning" in path.stem]
PREDICTIONS = [path for path in FILES if path.stem == LEEP_NCE]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


def read(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def fit(arrays: Arrays, **options: Any) -> LogME:
    task = "regression" if arrays["is_regression"] else "classification"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogMEWarning)  # tests/test_logme.py checks the warnings
        return LogME(task=task, **options).fit(arrays["features"], arrays["labels"])


def assert_near(actual: Any, expected: Any, rtol: float = 1e-8) -> None:
    """Relative to the largest entry: single weights may be round-off."""
    size = float(np.abs(expected).max())
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * size)


def assert_each_near(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=0)


def weight_tolerance(arrays: Arrays) -> float:
    """Weights have fewer digits where rows are few, or where directions are nearly empty."""
    rows, width = arrays["features"].shape
    return 1e-6 if rows < width or np.linalg.cond(arrays["features"]) > 1e4 else 1e-8


@each(PREDICTIONS)
def test_every_array_of_leep_and_nce_is_an_input_or_is_compared(path: Path) -> None:
    assert set(read(path)) == LEEP_NCE_ARRAYS


@each(PREDICTIONS)
def test_leep_and_nce_reproduce_the_published_numbers(path: Path) -> None:
    arrays = read(path)
    labels, guesses = arrays["target_label"], arrays["source_prob"]
    certain, gap = (certainly(arrays[name], guesses.shape[1]) for name in ("source_label", "source_label_gap"))

    assert_each_near(leep(Rows.of(np.log(guesses), labels)), arrays["leep"])
    assert_each_near(nce(Rows.of(np.log(guesses), labels)), arrays["nce"])
    assert_each_near(nce(Rows.of(certain, labels)), arrays["nce"])
    assert_each_near(nce(Rows.of(gap, labels)), arrays["nce_gap"])
    assert_each_near(leep(Rows.of(certain, labels)), arrays["leep_onehot"])


def certainly(source_labels: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any]:
    """Logits whose softmax is one-hot in float64."""
    return np.asarray(1e4 * np.eye(classes)[source_labels])


@each(SCORES)
def test_every_array_is_an_input_or_is_compared(path: Path) -> None:
    assert set(read(path)) == INPUTS | FIXED_POINT | CORRECTED | EVIDENCE


@each(BTUNING)
def test_every_array_of_b_tuning_is_claimed(path: Path) -> None:
    fitted = {"student_score", "teacher_scores", "student_m", "teacher_m", "pi"}
    trained = {"btuning_mse", "btuning_weighted", "grad_student_batch"}
    inputs = {"student_features_fit", "teacher_features_fit", "teacher_dims", "labels", "temperature"}
    inputs |= {"student_batch", "teacher_batch", "tradeoff"}

    assert set(read(path)) == inputs | fitted | trained


@each(SCORES)
def test_fixed_point_reproduces_the_published_numbers(path: Path) -> None:
    arrays = read(path)

    model = fit(arrays, variant="reference")

    assert_each_near(model.score_, arrays["fp_score"])
    assert_near(model.evidence_, arrays["fp_evidence"])
    assert_each_near(model.alpha_, arrays["fp_alpha"])
    assert_each_near(model.beta_, arrays["fp_beta"])
    assert_near(model.weights_, arrays["fp_m"], weight_tolerance(arrays))
    assert_near(model.evidence_.mean(), arrays["fp_score"])


@each(SCORES)
def test_predictions_for_the_first_rows(path: Path) -> None:
    arrays = read(path)
    expected = arrays["fp_pred"]

    predicted = fit(arrays, variant="reference").predict(arrays["features"][: len(expected)])

    if arrays["is_regression"]:
        assert_near(predicted, expected, weight_tolerance(arrays))
    else:
        np.testing.assert_array_equal(predicted, expected)


@each(SCORES)
def test_retained_directions(path: Path) -> None:
    """Recorded for information: directions of pure round-off may fall on either side of 1e-10."""
    arrays = read(path)
    singular = np.linalg.svd(arrays["features"].astype(np.float64), compute_uv=False)

    published, ours = fit(arrays, variant="reference").rank_, fit(arrays).rank_

    assert ours <= arrays["fp_rank_k"] <= min(arrays["features"].shape)
    assert ours == int((singular > 1e-7 * singular[0]).sum())
    if ours == min(arrays["features"].shape):
        assert published == arrays["fp_rank_k"]


@each(SCORES)
def test_the_corrected_score_is_the_published_one_less_the_missing_determinant(path: Path) -> None:
    """Exact also where the original keeps round-off directions: each adds ln alpha to both sides."""
    arrays = read(path)
    rows, width = arrays["features"].shape
    surplus = (width - int(arrays["fp_rank_k"])) / (2 * rows) * np.log(arrays["fp_alpha"])
    expected = arrays["fp_evidence"] - surplus

    model = fit(arrays)

    assert_near(expected.mean(), arrays["fp_score_rank_corrected"])
    occurring = np.arange(len(expected)) if arrays["is_regression"] else np.unique(arrays["labels"])
    np.testing.assert_array_equal(model.classes_, occurring)
    assert_near(model.evidence_, expected[occurring])
    if len(occurring) == len(expected):
        assert_each_near(model.score_, arrays["fp_score_rank_corrected"])


@each(SCORES)
def test_evidence_maximisation_reproduces_the_published_numbers(path: Path) -> None:
    arrays = read(path)

    model = fit(arrays, algorithm="evidence", variant="reference")

    assert_each_near(model.score_, arrays["icml_score"])
    assert_each_near(model.alpha_, arrays["icml_alpha"])
    assert_each_near(model.beta_, arrays["icml_beta"])
    assert_near(model.weights_, arrays["icml_m"], weight_tolerance(arrays))


@each(SCORES)
def test_streamed_moments_give_the_published_numbers(path: Path) -> None:
    arrays = read(path)
    task = "regression" if arrays["is_regression"] else "classification"
    labels = arrays["labels"]
    columns = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    moments = Moments(arrays["features"].shape[1], columns, task=task)
    for start in range(0, len(labels), 7):
        moments.update(arrays["features"][start : start + 7], labels[start : start + 7])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogMEWarning)
        model = LogME(task=task, variant="reference").fit_moments(moments)

    assert_each_near(model.score_, arrays["fp_score"])
    assert_each_near(model.alpha_, arrays["fp_alpha"])


@each([path for path in SCORES if read(path)["is_regression"] and np.isin(read(path)["labels"], (0, 1)).all()])
def test_a_matrix_of_zeros_and_ones_scores_the_same_as_multilabel(path: Path) -> None:
    arrays = read(path)

    score = logme(arrays["features"], arrays["labels"], task="multilabel", variant="reference")

    assert_each_near(score, arrays["fp_score"])


@each(BTUNING)
def test_scores_weights_and_mixture_of_b_tuning(path: Path) -> None:
    arrays = read(path)
    blocks = np.split(arrays["teacher_features_fit"], np.cumsum(arrays["teacher_dims"])[:-1], axis=1)

    student = LogME(variant="reference").fit(arrays["student_features_fit"], arrays["labels"])
    teachers = [LogME(variant="reference").fit(block, arrays["labels"]) for block in blocks]
    scores = np.array([teacher.score_ for teacher in teachers])
    weights = np.exp((scores - scores.max()) / arrays["temperature"])

    assert_each_near(student.score_, arrays["student_score"])
    assert_each_near(scores, arrays["teacher_scores"])
    assert_near(student.weights_, arrays["student_m"])
    assert_near(np.concatenate([teacher.weights_ for teacher in teachers], axis=1), arrays["teacher_m"])
    assert_each_near(weights / weights.sum(), arrays["pi"])


def taught_by(arrays: Arrays, ending: str) -> FeatureBatch:
    """Return the rows of student and teachers as a batch."""
    blocks = np.split(arrays[f"teacher_{ending}"], np.cumsum(arrays["teacher_dims"])[:-1], axis=1)
    told = {teacher_array(place): torch.from_numpy(block.copy()) for place, block in enumerate(blocks)}
    student = torch.from_numpy(arrays[f"student_{ending}"].copy()).requires_grad_()
    labels = torch.from_numpy(arrays["labels"])[: len(student)]
    return FeatureBatch(np.arange(len(student)), (), labels, {**told, "embedding": student})


@dataclass(frozen=True)
class OneBatch:
    """A source of one batch."""

    batch: FeatureBatch

    def walk(self, batch_size: int) -> list[FeatureBatch]:
        return [self.batch]


@each(BTUNING)
def test_the_objective_fits_and_measures_as_the_original(path: Path) -> None:
    arrays = read(path)
    seen: Any = OneBatch(taught_by(arrays, "features_fit"))
    widths = tuple(arrays["teacher_dims"].tolist())
    dimensions = Dimensions(arrays["student_batch"].shape[1], widths, num_classes=int(arrays["labels"].max()) + 1)
    guidance = Guidance(likelihood=likelihood("classification"), prec=float(arrays["tradeoff"]))
    options = {"temperature": float(arrays["temperature"]), "variant": "reference"}
    objective = guided("b_tuning", dimensions, guidance, options).double()
    batch = taught_by(arrays, "batch")

    objective.prepare(Material(teachers={"train": seen}, student=seen))
    total, parts = objective({**batch.arrays, "logits": torch.zeros(len(batch), 4, dtype=torch.float64)}, batch)
    (total / guidance.prec).backward()

    tuning: Any = objective.distance
    assert_near(tuning.own.numpy(), arrays["student_m"])
    assert_near(tuning.means.numpy(), arrays["teacher_m"])
    assert_each_near(tuning.shares.numpy(), arrays["pi"])
    assert_each_near(parts["distance"].item(), arrays["btuning_mse"])
    assert_each_near((total - parts["likelihood"]).item(), arrays["btuning_weighted"])
    assert_near(batch.arrays["embedding"].grad.numpy(), arrays["grad_student_batch"])
