"""A sweep over C of logistic regression, in one walk a step, against scikit-learn's L-BFGS run once for every C.

Both solve the same float32 features in one process, in turns, each C of ours after the whole sweep is done. The objective
C * sum(loss) + |W|^2 / 2 of every solution is computed again from its weights, in float64, by code of neither.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


def theirs(features: Features, labels: Labels, strengths: list[float]) -> list[Solution]:
    """Return scikit-learn's solutions."""
    found = []
    for strength in strengths:
        model = LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MOST_STEPS).fit(features, labels)
        found.append((model.coef_.astype(np.float64), model.intercept_.astype(np.float64)))
    return found


def ours(features: Features, labels: Labels, strengths: list[float]) -> list[Solution]:
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


def measure(rows: int, width: int, classes: int, spread: float, strengths: list[float], repeats: int) -> dict[str, Any]:
    """Time both in turns, and compare the objectives of every C."""
    features, labels = make(rows, width, classes, spread)
    turns = []
    for _ in range(repeats):
        turn = []
        for solve in (theirs, ours):
            start = time.perf_counter()
            solutions = solve(features, labels, strengths)
            turn.append((time.perf_counter() - start, solutions))
        turns.append(turn)
    (their_seconds, them), (seconds, us) = (min(turn, key=lambda timed: timed[0]) for turn in zip(*turns, strict=True))
    both = list(zip(strengths, them, us, strict=True))
    expected = [objective(features, labels, strength, solution) for strength, solution, _ in both]
    reached = [objective(features, labels, strength, solution) for strength, _, solution in both]
    return {
        "rows": rows, "width": width, "classes": classes, "strengths": strengths,
        "scikit_learn_seconds": their_seconds, "seconds": seconds, "ratio": their_seconds / seconds,
        "ratio_of_each_turn": [them[0] / us[0] for them, us in turns],
        "differences": [ours / theirs - 1 for ours, theirs in zip(reached, expected, strict=True)],
    }  # fmt: skip


def report(found: dict[str, Any]) -> bool:
    """Print each figure beside its limit; return whether all are kept."""
    worst, best = max(found["differences"]), min(found["differences"])
    quick, equal = found["ratio"] >= LIMIT, worst <= AGREEMENT
    print(
        f"{len(found['strengths'])} values of C at {found['rows']} x {found['width']}, {found['classes']} classes: "
        f"scikit-learn {found['scikit_learn_seconds']:.1f} s, ours {found['seconds']:.1f} s"
    )
    print(f"ratio {found['ratio']:.1f}x (at least {LIMIT:g}x: {'ok' if quick else 'MISSED'})")
    print(
        f"objective against scikit-learn's: {best:+.1e} to {worst:+.1e} "
        f"(at most {AGREEMENT:.0e}: {'ok' if equal else 'MISSED'})"
    )
    return quick and equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="N")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--classes", type=int, default=10, help="K")
    parser.add_argument("--spread", type=float, default=0.15, help="distance of the classes' means, in deviations")
    parser.add_argument("--strengths", type=int, default=48, help="values of C, from --least to --most")
    parser.add_argument("--least", type=float, default=1e-6, help="smallest C")
    parser.add_argument("--most", type=float, default=1e5, help="largest C")
    parser.add_argument("--repeats", type=int, default=1, help="turns; the best time of each counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    strengths = np.geomspace(options.least, options.most, options.strengths).tolist()
    found = measure(options.rows, options.width, options.classes, options.spread, strengths, options.repeats)
    kept = report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
