"""LogME against the published procedure: how much faster, how close, and with how much memory.

Both score the same float32 features in one run, in turns. The published procedure is written out here: cast
to float64, SVD of the Gram matrix, U = F V / s formed, a Python loop over the classes. Peak memory is what
each adds to a fresh process that has made the data and nothing else.
"""

import argparse
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from logme import LogME, Moments, logme

LIMIT = 4.0  # times faster; the aim is 5
AGREEMENT = 1e-8  # relative; 1e-6 where the features are ill-conditioned
MEMORY_LIMIT = 1.1  # streamed peak at N over that at N / 10
BATCH = 4096

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def make(rows: int, width: int, classes: int, decay: float) -> tuple[Features, Labels]:
    """Class-structured features (rows, width), the last column 10^-decay of the first, and labels (rows,).

    Made in batches, so that the peak memory of a process is that of the data.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    centres = 0.3 * rng.standard_normal((classes, width), dtype=np.float32)
    features = np.empty((rows, width), dtype=np.float32)
    for start in range(0, rows, BATCH):
        batch = features[start : start + BATCH]
        rng.standard_normal(dtype=np.float32, out=batch)
        batch += centres[labels[start : start + BATCH]]
        batch *= np.logspace(0, -decay, width, dtype=np.float32)
    return features, labels


def published_column(
    left: NDArray[np.float64], squared: NDArray[np.float64], target: NDArray[np.float64], width: int
) -> float:
    """Evidence / N of one column by the fixed point, from U (N, k) and s^2 (k,)."""
    rows = len(target)
    energy = (left.T @ target) ** 2
    outside = target @ target - energy.sum()
    alpha = beta = 1.0
    for _ in range(11):
        ratio = alpha / beta
        gamma = (squared / (squared + ratio)).sum()
        weight = (squared * energy / (ratio + squared) ** 2).sum()
        error = (energy / (1 + squared / ratio) ** 2).sum() + outside
        alpha, beta = gamma / (weight + 1e-5), (rows - gamma) / (error + 1e-5)
        log_det = np.log(alpha + beta * squared).sum()
        evidence = width * math.log(alpha) + rows * math.log(beta / (2 * math.pi)) - log_det
        if abs(alpha / beta - ratio) / ratio <= 1e-3:
            break
    return float((evidence - beta * error - alpha * weight) / (2 * rows))


def published(features: Features, labels: Labels) -> float:
    """Score of the published procedure for N > D."""
    matrix = features.astype(np.float64)
    _, squared, basis = np.linalg.svd(matrix.T @ matrix)
    singular = np.sqrt(squared)
    kept = singular > 1e-10
    left = matrix @ basis[kept].T / singular[kept]
    columns = ((labels == label).astype(np.float64) for label in range(labels.max() + 1))
    scores = [published_column(left, squared[kept], column, features.shape[1]) for column in columns]
    return float(np.mean(scores))


def streamed(rows: int, width: int, classes: int) -> float:
    """Score of features that never exist as a whole: drawn, added and forgotten batch by batch."""
    rng = np.random.default_rng(0)
    moments = Moments(width, classes)
    for start in range(0, rows, BATCH):
        batch = min(BATCH, rows - start)
        moments.update(rng.standard_normal((batch, width), dtype=np.float32), rng.integers(0, classes, batch))
    return LogME().fit_moments(moments).score_


def peak_of(name: str, rows: int, width: int, classes: int) -> float:
    """MiB that one scoring adds to a process; run in a fresh process."""
    data = make(rows, width, classes, 1.0) if name != "streamed" else None
    np.linalg.eigh(np.eye(16))  # the thread buffers of BLAS are not ours
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if data is None:
        streamed(rows, width, classes)
    else:
        (published if name == "published" else logme)(*data)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_fresh_process(name: str, *shape: int) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (name, *shape))


def timed(score: Callable[[Features, Labels], float], *data: Any) -> tuple[float, float]:
    start = time.perf_counter()
    value = score(*data)
    return time.perf_counter() - start, value


def measure_speed(rows: int, width: int, classes: int, repeats: int) -> dict[str, Any]:
    """Best time of each in turns, and relative difference of the scores, also on ill-conditioned features."""
    data = make(rows, width, classes, 1.0)
    turns = [(timed(published, *data), timed(logme, *data)) for _ in range(repeats)]
    (theirs, expected), (ours, score) = (min(turn) for turn in zip(*turns, strict=True))
    hard = make(rows, width, classes, 5.0)
    difference = abs(published(*hard) / logme(*hard) - 1)
    return {
        "published_seconds": theirs,
        "seconds": ours,
        "ratio": theirs / ours,
        "ratio_of_each_turn": [them[0] / us[0] for them, us in turns],
        "difference": abs(score / expected - 1),
        "difference_ill_conditioned": difference,
    }


def measure_memory(rows: int, width: int, classes: int) -> dict[str, float]:
    """Peak MiB of both, and of streamed moments at N and at a tenth (but above D, where the Gram begins)."""
    tenth = max(rows // 10, width + 1)
    few, many = (in_fresh_process("streamed", n, width, classes) for n in (tenth, rows))
    return {
        "published_mib": in_fresh_process("published", rows, width, classes),
        "mib": in_fresh_process("logme", rows, width, classes),
        "streamed_mib": many,
        "streamed_mib_tenth": few,
        "streamed_ratio": many / few,
    }


def verdict(passed: bool) -> str:
    return "ok" if passed else "MISSED"


def report(found: dict[str, Any]) -> None:
    """Print each figure beside its limit."""
    print(
        f"published {found['published_seconds']:.2f} s, ours {found['seconds']:.2f} s: "
        f"{found['ratio']:.1f}x (at least {LIMIT:g}x: {verdict(found['ratio'] >= LIMIT)})"
    )
    for key, limit in (("difference", AGREEMENT), ("difference_ill_conditioned", 100 * AGREEMENT)):
        print(f"{key} {found[key]:.1e} (at most {limit:.0e}: {verdict(found[key] <= limit)})")
    print(f"peak memory: published {found['published_mib']:.0f} MiB, ours {found['mib']:.0f} MiB")
    many, few = found["streamed_mib"], found["streamed_mib_tenth"]
    print(f"streamed: {many:.0f} MiB, with a tenth of the rows {few:.0f} MiB")
    ratio = found["streamed_ratio"]
    print(f"streamed ratio {ratio:.2f}x (at most {MEMORY_LIMIT:g}x: {verdict(ratio <= MEMORY_LIMIT)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000, help="N")
    parser.add_argument("--width", type=int, default=768, help="D")
    parser.add_argument("--classes", type=int, default=100, help="K")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the best time of each counts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    shape = (options.rows, options.width, options.classes)
    if options.rows <= options.width:
        parser.error(f"--rows must be above --width, got {options.rows} and {options.width}")
    found = dict(zip(("rows", "width", "classes"), shape, strict=True)) | measure_memory(*shape)
    found |= measure_speed(*shape, options.repeats)
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
