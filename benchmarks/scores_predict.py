"""Does a score predict the probe?

    python benchmarks/scores_predict.py [--backbone NAME[=WEIGHTS]]... [--data DATA]... [--folder DIR] [--out FILE]

All layers of every backbone over every data set are extracted (class token and mean, logits where the model has a head),
every score of every vector array is computed, and linear probes are trained on every array through the flow of
`train-head`: chosen on the validation rows, told on the test rows with its 95 % interval. Then, for each score, the weighted Kendall
tau between the score and the probes, with its bootstrap interval over arrays: over the arrays of each backbone (does it
choose the layer?), over those of all (does it choose the backbone too?), and the mean of the latter over data sets.
"loss of its choice" is how many points of accuracy one gives away who trains only on the array that scores best.

LEEP and NCE score a backbone by its own head, so they stand beside its embedding, and need three backbones for a tau.
With --folder, stores, scores and probes are kept, and a second run only reads them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _extracting
import _probing
from _extracting import Asked, extracted, plain_name
from _probing import Probe, trained
from _reporting import machine, markdown

from featurecache.features import parse_layer_array
from featurecache.metrics import Measured, primary
from featurecache.seeding import generator
from featurecache.stores import open_store
from pipelines.rank import RankConfig
from pipelines.rank import run as rank
from pipelines.scores import SCORES
from pipelines.scores._against import DRAWS, LEAST, weighted_tau

RATES = ("linear?lr=0.001", "linear?lr=0.01")
"""Probes of an array, of which validation chooses: narrow arrays need the higher rate, wide ones overfit at it."""
ALL = "all"
"""What the arrays of all backbones together are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One array: what the scores say of it, and what a probe on it reaches."""

    data: str
    backbone: str
    array: str
    scores: Mapping[str, float]
    probe: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How well one score orders some arrays of one data set."""

    data: str
    backbone: str
    """One, or `ALL`."""
    metric: str
    arrays: int
    tau: Measured | None
    """Weighted Kendall tau; None where there are too few arrays."""
    loss: float
    """Points between the best probe and the probe on the array that scores best."""


def probes(store: Path, folder: Path, heads: Sequence[Probe], steps: int) -> dict[str, tuple[Path, Measured]]:
    """Return array -> (run, accuracy on the test rows) of the head that is best on validation, on that array alone."""
    opened, found = open_store(store), {}
    for spec in opened.header.arrays:
        layer = parse_layer_array(spec.name)
        if len(spec.tail) > 1 or not (layer or spec.name == "embedding"):
            continue
        words = {"layers": str(layer[1]), "tokens": layer[0]} if layer else {"layers": "embedding"}
        runs = [folder / f"{store.stem}-{spec.name.replace('/', '-')}-{head.label}-{steps}" for head in heads]
        metrics = [
            trained(head, steps, store=store, out=run, **words)["metrics"]
            for head, run in zip(heads, runs, strict=True)
        ]
        metric = primary(opened.header.task)
        best = max(range(len(heads)), key=lambda number: metrics[number]["val"][metric]["value"])
        reached = Measured(**metrics[best].get("test", metrics[best]["val"])[metric])
        found[spec.name] = (runs[best], reached)
        print(f"{runs[best].name}: {reached}", file=sys.stderr, flush=True)
    return found


def measured(
    data: str, backbones: Sequence[Asked], folder: Path, heads: Sequence[Probe], steps: int
) -> tuple[list[Line], list[Verdict]]:
    """Extract, score and probe one data set with every backbone."""
    name, lines, verdicts = plain_name(data), [], []
    stores = {b.label: extracted(b, data, folder / f"{b.label}-{name}.zarr") for b in backbones}
    runs: dict[str, list[Path]] = {}
    for label, store in stores.items():
        chosen = probes(store, folder / "runs", heads, steps)
        runs[label] = [run for run, _ in chosen.values()]
        reached = {array: value for array, (_, value) in chosen.items()}
        scores: dict[str, dict[str, float]] = {array: {} for array in reached}
        for entry in rank(RankConfig(stores=(store,), metric=("all",))).entries:
            array = "embedding" if entry["array"] == "logits" else entry["array"]
            scores.get(array, {}).update(entry["scores"])
        lines += [Line(data=name, backbone=label, array=a, scores=scores[a], probe=reached[a]) for a in reached]
    groups = {label: [label] for label in stores} | ({ALL: list(stores)} if len(stores) > 1 else {})
    for group, labels in groups.items():
        config = RankConfig(
            stores=tuple(stores[label] for label in labels), metric=("all",),
            against=tuple(run for label in labels for run in runs[label]),
        )  # fmt: skip
        for found in rank(config).agreements or ():
            among = [line for line in lines if line.backbone in labels and found.metric in line.scores]
            verdicts.append(Verdict(
                data=name, backbone=group, metric=found.metric, arrays=found.points, tau=found.tau,
                loss=100 * loss(among, found.metric),
            ))  # fmt: skip
    return lines, verdicts


def loss(lines: Sequence[Line], metric: str) -> float:
    """Return how far the probe on the array that scores best stays behind the best probe."""
    return max(line.probe.value for line in lines) - max(lines, key=lambda line: line.scores[metric]).probe.value


def overall(lines: Sequence[Line], metric: str) -> Measured | None:
    """Return the mean over data sets of the tau over all arrays; each draw takes arrays anew within every data set."""
    sets: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if metric in line.scores:
            sets.setdefault(line.data, []).append((line.scores[metric], line.probe.value))
    pairs = [np.array(found).T for found in sets.values() if len(found) >= LEAST]
    if not pairs:
        return None
    draw = generator("bootstrap", "overall tau", 0)
    drawn = [_mean_tau(pairs, lambda count: draw.integers(0, count, count)) for _ in range(DRAWS)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Measured(_mean_tau(pairs, np.arange), float(low), float(high))


def _mean_tau(pairs: Sequence[npt.NDArray[Any]], places: Callable[[int], npt.NDArray[np.int64]]) -> float:
    return float(np.mean([weighted_tau(*found[:, places(found.shape[1])]) for found in pairs]))


def show(lines: Sequence[Line], verdicts: Sequence[Verdict]) -> dict[str, Measured | None]:
    """Print one table a data set, then what each score predicts; return the latter's means over data sets."""
    metrics = [name for name in ("logme", *SCORES.names()) if any(name in line.scores for line in lines)]
    metrics = list(dict.fromkeys(metrics))
    for data in dict.fromkeys(line.data for line in lines):
        rows = [
            (line.backbone, line.array, *(_number(line.scores.get(name)) for name in metrics), _points(line.probe))
            for line in lines if line.data == data
        ]  # fmt: skip
        print(f"\n{data}\n\n" + markdown(("backbone", "array", *metrics, "probe, % [95 %]"), rows))
    rows = [(v.metric, v.data, v.backbone, v.arrays, _tau(v.tau), _given_up(v)) for v in verdicts]
    columns = ("score", "data", "backbone", "arrays", "weighted Kendall tau [95 %]", "loss of its choice, points")
    print("\n" + markdown(columns, sorted(rows, key=lambda row: (metrics.index(row[0]), row[1]))))
    means = {name: overall(lines, name) for name in metrics}
    rows = [(name, _tau(means[name])) for name in metrics]
    print("\n" + markdown(("score", "mean tau over data sets, all arrays [95 %]"), rows))
    return means


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def _points(found: Measured) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _given_up(verdict: Verdict) -> str:
    return f"{verdict.loss:.1f}" if verdict.arrays > 1 else "-"


def _tau(found: Measured | None) -> str:
    return "-" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def write(
    out: Path, lines: Sequence[Line], verdicts: Sequence[Verdict], means: Mapping[str, Any], settings: Any
) -> None:
    """Write one line an array where `out` is a .csv, else everything as JSON."""
    if out.suffix == ".csv":
        metrics = list(dict.fromkeys(name for line in lines for name in line.scores))
        with out.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("data", "backbone", "array", *metrics, "probe", "low", "high"))
            for line in lines:
                scores = (line.scores.get(name, "") for name in metrics)
                table.writerow((line.data, line.backbone, line.array, *scores, *asdict(line.probe).values()))
        return
    found = {
        "settings": settings, "machine": machine(), "arrays": [asdict(line) for line in lines],
        "verdicts": [asdict(v) for v in verdicts], "means": {name: m and asdict(m) for name, m in means.items()},
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


def main() -> None:
    """Measure every data set, print, and write where that is wanted."""
    options = parse()
    backbones = [Asked.parse(text) for text in options.backbone or ("demo", "demo=random:0")]
    heads = [Probe.parse(text) for text in options.head or RATES]
    lines: list[Line] = []
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for data in options.data or ("digits",):
            more, found = measured(data, backbones, folder, heads, options.steps)
            lines, verdicts = [*lines, *more], [*verdicts, *found]
    means = show(lines, verdicts)
    if options.out:
        write(options.out, lines, verdicts, means, vars(options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    several = "; may be given several times"
    parser.add_argument("--backbone", action="append", help=_extracting.GRAMMAR + several)
    parser.add_argument("--data", action="append", help="data set, as extract-features takes it" + several)
    parser.add_argument(
        "--head", action="append", help=f"a probe: {_probing.GRAMMAR}{several} (default: {' and '.join(RATES)})"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps of a probe, at least (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where stores and probes are kept; default: for this run only")
    parser.add_argument("--out", type=Path, help="write the figures here: .csv, one line an array, or all as .json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
