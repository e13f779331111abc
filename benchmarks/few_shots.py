"""Is every head at one to sixteen shots as good as scikit-learn's logistic regression on the same rows?

    python benchmarks/few_shots.py STORE [STORE ...] [--classes STORE:CLASS,CLASS] [--shots 1,2,4,8,16] [--seeds 10]

Heads are trained as `run-protocol few-shot:...` trains them, with no option but its defaults. scikit-learn learns from the very
rows of each trial: `LogisticRegression` on raw features, on features standardised by all training rows and by those of the
trial, and `LogisticRegressionCV` over folds where every class has two rows. The best of the means of these counts, and a head
may be one point below it. `--classes` adds the named store cut to some of its classes. Prints the table as Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _reporting import Ratio, conclude, markdown

from featurecache.stores import FeatureStore, open_store
from pipelines._arrays import select_arrays
from pipelines.protocols import Trial, of_classes, parse
from pipelines.run_protocol import RunProtocolConfig, planned, run_protocol

HEADS = ("linear", "logistic", "ridge", "knn", "prototype", "lfa")
LIMIT = -0.01  # accuracy against scikit-learn's best
STEPS = 3000  # of L-BFGS, so that it converges
FOLDS = 5

Matrix = NDArray[np.float64]


def fit_scikit_learn(store: FeatureStore, trials: Sequence[Trial]) -> dict[str, float]:
    """Return name -> mean accuracy over the trials of every way to use scikit-learn."""
    (array,), _ = select_arrays(store.header, "last", None, "auto")
    features = np.asarray(store.to_numpy(array), dtype=np.float64)
    targets = np.asarray(store.table().target)
    found: dict[str, list[float]] = {}
    for trial in trials:
        every = trial.fold.standardise_by or trial.fold.train
        train, test = trial.fold.train.rows, trial.tests["test"].rows
        scaled = {
            "raw": features,
            "all rows": standardise(features, every.rows),
            "own rows": standardise(features, train),
        }
        for name, values in scaled.items():
            model = LogisticRegression(max_iter=STEPS).fit(values[train], targets[train])
            found.setdefault(name, []).append(float(model.score(values[test], targets[test])))
        folds = min(FOLDS, int(np.bincount(targets[train])[np.unique(targets[train])].min()))
        if folds > 1:
            chosen = LogisticRegressionCV(cv=StratifiedKFold(folds), max_iter=STEPS)
            chosen.fit(scaled["all rows"][train], targets[train])
            found.setdefault("CV", []).append(float(chosen.score(scaled["all rows"][test], targets[test])))
    return {name: float(np.mean(values)) for name, values in found.items()}


def standardise(features: Matrix, rows: NDArray[np.int64]) -> Matrix:
    """Return features standardised by the mean and deviation of some rows."""
    deviation = features[rows].std(0)
    return np.asarray((features - features[rows].mean(0)) / np.where(deviation > 1e-9, deviation, 1.0))


def compare(store: FeatureStore, title: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one line for every number of shots: scikit-learn's accuracies and those of the heads."""
    seeds = ",".join(map(str, range(1, options.seeds + 1)))
    asked = parse(f"few-shot:{options.shots}?seed={seeds}")
    config = RunProtocolConfig(
        protocol=asked.full,
        stores=(store.path,),
        heads=tuple(options.heads.split(",")),
        out=folder / title,
        leaks=False,
        quiet=True,
    )
    works = planned(asked, [store], config)
    report = run_protocol(asked, works, config)
    lines = []
    for shots in dict.fromkeys(trial.labels["shots"] for trial in works[0].plan.trials):
        trials = [trial for trial in works[0].plan.trials if trial.labels["shots"] == shots]
        ours = {line["head"]: line["mean"] for line in report.record["results"] if line["shots"] == shots}
        theirs = fit_scikit_learn(store, trials)
        lines.append({"data": title, "shots": shots, "best": max(theirs.values()), "theirs": theirs, "ours": ours})
    return lines


def draw_table(lines: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> str:
    """Return the table; a head that is more than a point below scikit-learn's best is marked."""
    ways = ("raw", "all rows", "own rows", "CV")

    def format_cell(line: Mapping[str, Any], head: str) -> str:
        mark = "*" if line["ours"][head] < line["best"] + LIMIT else ""
        return f"{line['ours'][head]:.3f}{mark}"

    rows = [
        (line["data"], line["shots"], *(f"{line['theirs'][way]:.3f}" if way in line["theirs"] else "" for way in ways),
         *(format_cell(line, head) for head in heads)) for line in lines
    ]  # fmt: skip
    return markdown(("data", "shots", *(f"LR {way}" for way in ways), *heads), rows)


def measure_heads(lines: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[Ratio]:
    """Return for every head its least distance to scikit-learn's best, over all data and shots."""
    found = []
    for head in heads:
        gaps = {f"{line['data']}, {line['shots']} shots": line["ours"][head] - line["best"] for line in lines}
        worst = min(gaps, key=lambda place: gaps[place])
        found.append(Ratio(what=f"{head}, worst: {worst}", against="scikit-learn's best, accuracy", value=gaps[worst],
                           limit=LIMIT, figures={"mean over all": float(np.mean(list(gaps.values())))}))  # fmt: skip
    return found


def parse_options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--classes", action="append", default=[], metavar="STORE:CLASS,CLASS")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    warnings.simplefilter("ignore")
    cases: dict[str, Callable[[], FeatureStore]] = {
        path.stem: lambda path=path: open_store(path) for path in options.stores
    }
    for text in options.classes:
        path, _, names = text.rpartition(":")
        title = f"{Path(path).stem}-{names.replace(',', '-')}"
        cases[title] = lambda path=path, names=names: of_classes(open_store(Path(path)), names.split(","))
    heads = options.heads.split(",")
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for title, open_case in cases.items():
            lines += compare(open_case(), title, options, Path(folder))
            print(draw_table(lines[-len(options.shots.split(",")) :], heads), flush=True)
    print("\n" + draw_table(lines, heads) + "\n")
    settings = {name: str(value) for name, value in vars(options).items() if name != "out"}
    return conclude("heads of few shots", measure_heads(lines, heads), settings, options.out)


if __name__ == "__main__":
    sys.exit(main())
