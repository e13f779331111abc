"""Is a sweep over C of logistic regression quicker than scikit-learn's L-BFGS, and does it end as low?

    python benchmarks/logistic.py [--rows 20000] [--width 768] [--strengths 48] [--every 1]

Ours solves all values of C in one sweep. scikit-learn solves one after the other, of which the middle one of every four in
a row is run and stands for them in the time; `--every 1` runs them all. Both solve the same float32 features in one
process with the same number of threads, in turns. The objective C * sum(loss) + |W|^2 / 2 of every pair of solutions is
computed again from the weights, in float64, by code of neither.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _reporting import Ratio, conclude, middle

from featurecache.features import FeatureBatch
from heads import HeadSpec
from heads.logistic import build, solve_together

LIMIT = 5.0  # times faster
AGREEMENT = 1e-5  # of the objective, relatively; ours may lie below
BATCH = 4096
TOLERANCE = 1e-4  # of scikit-learn's gradient; its default
MOST_STEPS = 10_000  # of scikit-learn's: every C shall reach its tolerance

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Solution = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weights (K, D) and intercepts (K,)."""
Timed = tuple[float, float]
"""Seconds of the clock, and of the CPU."""


def make(rows: int, width: int, classes: int, spread: float) -> tuple[Features, Labels]:
    """Standardised features (rows, width) of overlapping classes, correlated as those of a backbone, and labels (rows,)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    features = rng.standard_normal((rows, width), dtype=np.float32) * np.logspace(0, -1.5, width, dtype=np.float32)
    features += (
        spread
        * rng.standard_normal((classes, width), dtype=np.float32)[labels]
        * np.logspace(0, -1.5, width, dtype=np.float32)
    )
    mixed = features @ rng.standard_normal((width, width), dtype=np.float32)
    return (mixed - mixed.mean(0)) / mixed.std(0), labels


def theirs(features: Features, labels: Labels, strength: float) -> Solution:
    """Return scikit-learn's solution for one C."""
    model = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MOST_STEPS).fit(features, labels)
    return model.coef_.astype(np.float64), model.intercept_.astype(np.float64)


def ours(features: Features, labels: Labels, strengths: Sequence[float]) -> list[Solution]:
    """Return the solutions of one sweep, from batches as a store gives them."""
    pieces = [slice(start, start + BATCH) for start in range(0, len(labels), BATCH)]
    batches = [
        FeatureBatch(
            np.arange(len(labels))[piece], [], torch.from_numpy(labels[piece]),
            {"embedding": torch.from_numpy(features[piece])},
        )
        for piece in pieces
    ]  # fmt: skip
    spec = HeadSpec(shapes={"embedding": features.shape[1:]}, num_classes=int(labels.max()) + 1)
    heads = [build(spec, C=strength) for strength in strengths]
    solve_together(heads, batches)
    return [(head.map.weight.double().numpy(), head.map.bias.double().numpy()) for head in heads]


def objective(features: Features, labels: Labels, strength: float, solution: Solution) -> float:
    """C * sum of the losses + half the squared weights, in float64."""
    weight, bias = solution
    total = 0.0
    for start in range(0, len(labels), BATCH):
        logits = features[start : start + BATCH].astype(np.float64) @ weight.T + bias
        highest = logits.max(1)
        normaliser = np.log(np.exp(logits - highest[:, None]).sum(1)) + highest
        total += float((normaliser - logits[np.arange(len(logits)), labels[start : start + BATCH]]).sum())
    return strength * total + float(np.square(weight).sum()) / 2


class Race:
    """Features, the values of C, and what one turn of both takes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.features, self.labels = make(options.rows, options.width, options.classes, options.spread)
        self.strengths = np.geomspace(options.least, options.most, options.strengths).tolist()
        self.run = range(len(self.strengths))[(options.every - 1) // 2 :: options.every]
        """Places of the values that scikit-learn solves."""
        self.expected: dict[float, float] = {}
        """C -> scikit-learn's objective."""
        self.differences: dict[float, float] = {}
        """C -> our objective over scikit-learn's, less one."""

    def turn(self) -> tuple[Timed, Timed]:
        """Return what scikit-learn would take for all values of C, and what we take."""
        spent = [self._alone(self.strengths[place]) for place in self.run]
        scale = len(self.strengths) / len(spent)
        walls, cpus = (scale * sum(times) for times in zip(*spent, strict=True))
        say(f"scikit-learn: {len(spent)} values of C, times {scale:g}: {walls:.1f} s, {cpus:.1f} s of CPU")
        (wall, cpu), solutions = timed(lambda: ours(self.features, self.labels, self.strengths))
        say(f"ours: {len(self.strengths)} values of C, {wall:.1f} s, {cpu:.1f} s of CPU")
        for place in self.run:
            strength = self.strengths[place]
            reached = objective(self.features, self.labels, strength, solutions[place])
            self.differences[strength] = reached / self.expected[strength] - 1
            say(f"ours: C = {strength:.2e}, {self.differences[strength]:+.1e} of scikit-learn's objective")
        return (walls, cpus), (wall, cpu)

    def _alone(self, strength: float) -> Timed:
        (wall, cpu), solution = timed(lambda: theirs(self.features, self.labels, strength))
        self.expected[strength] = objective(self.features, self.labels, strength, solution)
        say(f"scikit-learn: C = {strength:.2e}, {wall:.2f} s, {cpu:.2f} s of CPU")
        return wall, cpu


def timed(act: Callable[[], Any]) -> tuple[Timed, Any]:
    """Return the seconds of the clock and of the CPU that a call takes, and what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = act()
    return (time.perf_counter() - wall, time.process_time() - cpu), found


def say(line: str) -> None:
    """Print at once: the whole takes minutes."""
    print(line, flush=True)


def measure(options: argparse.Namespace) -> list[Ratio]:
    """Run the turns, and hold times and objectives against their limits."""
    race = Race(options)
    turns = [race.turn() for _ in range(options.turns)]
    by_clock, by_cpu = ([them[kind] / us[kind] for them, us in turns] for kind in range(2))
    worst = max(race.differences.values())
    figures = {
        "highest less one": worst, "ours s": middle([us[0] for _, us in turns]), "scikit-learn s": middle([them[0] for them, _ in turns]),
        "values of C it ran": len(race.run), "lowest objective of ours": min(race.differences.values()),
    }  # fmt: skip
    what = f"{len(race.strengths)} values of C at {options.rows} x {options.width}, {options.classes} classes"
    return [
        Ratio(what=what, against="scikit-learn, one by one", value=middle(by_clock), limit=LIMIT, of_each_turn=by_clock,
              figures=figures),
        Ratio(what=what, against="the same, seconds of the CPU", value=middle(by_cpu), of_each_turn=by_cpu),
        Ratio(what="highest objective of ours, less one", against="scikit-learn's", value=worst,
              limit=AGREEMENT, bound="at most"),
    ]  # fmt: skip


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    with threadpool_limits(options.threads):
        ratios = measure(options)
    return conclude("Logistic regression over values of C", ratios, settings, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="N")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--classes", type=int, default=10, help="K")
    parser.add_argument("--spread", type=float, default=0.15, help="distance of the classes' means, in deviations")
    parser.add_argument("--strengths", type=int, default=48, help="values of C, from --least to --most")
    parser.add_argument("--least", type=float, default=1e-6, help="smallest C")
    parser.add_argument("--most", type=float, default=1e5, help="largest C")
    parser.add_argument("--every", type=int, default=4, help="scikit-learn runs one of so many values of C; 1: all")
    parser.add_argument("--turns", type=int, default=1, help="measurements of each, in turns; the middle ratio counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of both")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
