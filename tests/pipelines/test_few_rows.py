"""Heads of few rows against scikit-learn's logistic regression on the same rows, with no option but the defaults."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurecache.datasets import RowTable
from featurecache.errors import ConfigError
from featurecache.features import ArraySpec, Header
from featurecache.stores import create_store
from pipelines.estimator import HeadClassifier
from pipelines.run_protocol import RunProtocolConfig, run
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from tests.pipelines.stores import hidden, made_store

HEADS = ("linear", "logistic", "ridge", "knn", "prototype")
SEEDS = 10
NOISE = 0.02
"""Of a mean over few seeds of few hundred test rows, beside the point that heads may be below."""


def draw_digits(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels of some digits, features whose deviations differ by far, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    kept = labels < classes
    return pixels[kept].astype(np.float32), labels[kept]


def write_store(path: Path, classes: int) -> Path:
    """Write a store of digits: three in five to learn from, one to choose on, one to measure."""
    features, labels = draw_digits(classes)
    rows = len(labels)
    header = Header(
        backbone={"name": "pixels", "weights": "none"}, dataset={"name": "digits", "fingerprint": str(classes)}, rows=rows,
        views=1, task="classification", class_names=tuple(map(str, range(classes))), layers=(), tokens=(),
        arrays=(ArraySpec("embedding", features.shape[1:], "float32"),),
    )  # fmt: skip
    split = np.resize(["train", "train", "test", "train", "val"], rows).tolist()
    blank = [""] * rows
    table = RowTable(sample_id=[f"{row}" for row in range(rows)], target=labels, split=split, domain=blank, group=blank)
    store = create_store(path, header, table, chunk_multiple=64)
    store.begin(range(rows))
    store.write(range(rows), {"embedding": features[:, None]}, {})
    store.commit()
    store.finish()
    return path


def fit_scikit_learn(folder: Path, path: Path) -> float:
    """Return the better mean accuracy of raw and standardised features, on the rows that the trials were trained on."""
    features, labels = draw_digits(2 if "two" in path.stem else 10)
    found: dict[str, list[float]] = {"raw": [], "scaled": []}
    for trial in sorted((folder / "rows" / path.stem).iterdir()):
        train, test = (np.array((trial / f"{name}.txt").read_text().split(), dtype=int) for name in ("train", "test"))
        for name, model in (
            ("raw", LogisticRegression(max_iter=3000)),
            ("scaled", make_pipeline(StandardScaler(), LogisticRegression())),
        ):
            found[name].append(model.fit(features[train], labels[train]).score(features[test], labels[test]))
    return max(float(np.mean(values)) for values in found.values())


@pytest.mark.parametrize("classes", [2, 10], ids=["two classes", "ten classes"])
@pytest.mark.parametrize("shots", [1, 4])
def test_heads_of_few_shots_are_as_good_as_scikit_learns(tmp_path, shots, classes):
    path = write_store(tmp_path / ("two.zarr" if classes == 2 else "ten.zarr"), classes)
    seeds = ",".join(map(str, range(SEEDS)))

    report = run(
        RunProtocolConfig(
            protocol=f"few-shot:{shots}?seed={seeds}",
            stores=(path,),
            heads=HEADS,
            out=tmp_path / "run",
            leaks=False,
            quiet=True,
        )
    )

    least = fit_scikit_learn(tmp_path / "run", path) - 0.01 - NOISE
    ours = {line["head"]: line["mean"] for line in report.record["results"]}
    assert all(mean >= least for mean in ours.values()), f"{ours}, and scikit-learn allows {least:.3f}"


def test_features_of_few_shots_are_standardised_by_all_training_rows_and_the_record_says_so(tmp_path):
    path = write_store(tmp_path / "two.zarr", 2)
    run(
        RunProtocolConfig(
            protocol="few-shot:1?seed=0", stores=(path,), heads=("linear",), out=tmp_path / "run", quiet=True
        )
    )

    record = next((tmp_path / "run/trials").rglob("record.json")).read_text()

    features, _ = draw_digits(2)
    assert f'"rows": {(np.resize([1, 1, 0, 1, 0], len(features))).sum()}' in record
    assert '"labels": "not used"' in record


@pytest.mark.parametrize("rows", [10, 40])
@pytest.mark.parametrize("head", ["linear", "logistic"])
def test_a_head_behind_a_pca_of_few_rows_is_as_good_as_scikit_learns(head, rows):
    features, labels = draw_digits(4)
    rng, ours, theirs = np.random.default_rng(0), [], []
    for _ in range(SEEDS):
        picked = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:rows] for label in range(4)])
        rest = np.setdiff1d(np.arange(len(labels)), picked)
        for found, model in ((ours, HeadClassifier(head)), (theirs, LogisticRegression(max_iter=3000))):
            chain = make_pipeline(PCA(32, random_state=0), model).fit(features[picked], labels[picked])
            found.append(chain.score(features[rest], labels[rest]))

    assert np.mean(ours) >= np.mean(theirs) - 0.01


def test_a_linear_head_of_few_rows_ends_at_the_optimum_of_its_penalty():
    features, labels = draw_digits(3)
    picked = np.random.default_rng(0).permutation(len(labels))[:60]
    x = (features - features[picked].mean(0))[picked]

    fitted = HeadClassifier("linear", standardise=False).fit(x, labels[picked])

    model = LogisticRegression(C=fitted.chosen_["C"], max_iter=10_000, tol=1e-8).fit(x, labels[picked])
    np.testing.assert_allclose(fitted.predict_proba(x), model.predict_proba(x), atol=0.01)


def test_a_linear_head_that_is_asked_for_three_epochs_is_said_to_be_improving(tmp_path):
    store = made_store(tmp_path / "x.zarr", rows=400)

    report = train_head(TrainHeadConfig(store=store, out=tmp_path / "run", epochs=3, quiet=True))

    assert report.record["still_improving"]
    assert "linear was still improving" in "\n".join(note for table in report.tables() for note in table.notes)
    features, labels = draw_digits(3)
    with pytest.warns(ConvergenceWarning, match="linear was still improving when training ended"):
        HeadClassifier("linear", epochs=3).fit(features, labels)


def test_heads_at_their_defaults_are_not(tmp_path):
    store = made_store(tmp_path / "x.zarr", rows=400)

    report = run(
        RunProtocolConfig(
            protocol="holdout", stores=(store,), heads=("linear", "ridge"), out=tmp_path / "run", quiet=True
        )
    )

    assert not [remark for remark in report.record["remarks"] if "improving" in remark]
    features, labels = draw_digits(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        HeadClassifier("linear").fit(features, labels)


def test_a_protocol_names_the_heads_that_were_still_improving(tmp_path):
    store = made_store(tmp_path / "x.zarr", rows=400)

    report = run(
        RunProtocolConfig(
            protocol="holdout?seed=1,2,3",
            stores=(store,),
            heads=("linear", "ridge"),
            epochs=3,
            out=tmp_path / "run",
            quiet=True,
        )
    )

    (remark,) = [remark for remark in report.record["remarks"] if "improving" in remark]
    assert remark.startswith("linear was still improving in 3 of 3 trials: its best epoch is the last one")


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (100_000.0, 300_000.0), (10.0, 1950.0)], ids=["unit", "price", "year"]
)
@pytest.mark.parametrize("head", ["linear", "mlp", "lfa", "ifa", "scalar_mix"])
def test_a_regression_trained_by_steps_does_not_depend_on_the_unit_of_its_targets(tmp_path, head, scale, shift):
    store = made_store(tmp_path / "x.zarr", "regression", rows=300, targets=hidden(300) * scale + shift)
    settings = {"epochs": 60, "lr": 0.01, "quiet": True}

    report = train_head(TrainHeadConfig(store=store, out=tmp_path / "run", head=head, **settings))

    assert report.record["metrics"]["test"]["r2"]["value"] > 0.7


@pytest.mark.parametrize("setting", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}])
def test_what_changes_the_loss_of_steps_is_refused_for_a_head_that_takes_none(tmp_path, setting):
    store = made_store(tmp_path / "x.zarr")

    with pytest.raises(ConfigError, match=f"{next(iter(setting))} changes the loss of heads that are trained by steps"):
        train_head(TrainHeadConfig(store=store, out=tmp_path / "run", head="ridge", quiet=True, **setting))
