"""What the default number of threads costs: CPU time against one thread on few rows, wall time against the better choice on many.

Every measurement is a process of its own, so that libraries begin with the threads that the machine gives them. Of several
repetitions the least counts. What other processes do beside it is part of the question: threads that wait for each other
wait longest on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MOST_CPU, MOST_WALL = 1.3, 1.1
HEADS = ("linear", "ridge", "logistic", "knn", "mlp", "lfa")
FEW, MANY = ((245, 192, 12), (1000, 384, 1), (5000, 768, 1)), (20000, 768, 1)
"""Rows, width and number of arrays."""
CLASSES, LEAST_EPOCHS, ROWS_SEEN = 10, 5, 20000
"""Epochs are as many as show that many rows, so that few rows take a time that can be told from chance."""


def features(rows: int, width: int, count: int) -> tuple[dict[str, object], object]:
    """Return classes that overlap, as arrays like those of layers, and their labels."""
    import numpy as np

    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, rows)
    middles = draw.standard_normal((CLASSES, width), dtype=np.float32)
    arrays = {
        f"layers/cls/{number:02d}": middles[labels] + 3 * draw.standard_normal((rows, width), dtype=np.float32)
        for number in range(count)
    }
    return arrays, labels


def measure(head: str, rows: int, width: int, count: int) -> tuple[float, float]:
    """Return (CPU seconds, wall seconds) of training and asking a head, in this process."""
    from pipelines.estimator import HeadClassifier

    arrays, labels = features(rows, width, count)
    few, some = {name: values[:512] for name, values in arrays.items()}, labels[:512]  # type: ignore[index]
    HeadClassifier(head, epochs=1).fit(few, some)  # what is done once in a process
    cpu, wall = _cpu(), time.perf_counter()
    fitted = HeadClassifier(head, epochs=max(LEAST_EPOCHS, ROWS_SEEN // rows)).fit(arrays, labels)
    fitted.predict(arrays)
    return _cpu() - cpu, time.perf_counter() - wall


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def apart(head: str, shape: tuple[int, int, int], threads: int | None, repeats: int) -> tuple[float, float]:
    """Return the least (CPU, wall) of `repeats` processes; threads None is the default."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, __file__, "--measure", head, *map(str, shape)]
    found = []
    for _ in range(repeats):
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found.append(json.loads(out))
    return min(cpu for cpu, _ in found), min(wall for _, wall in found)


def main() -> None:
    """Print ratios against limits, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=4, metavar=("HEAD", "ROWS", "WIDTH", "ARRAYS"))
    parser.add_argument("--heads", nargs="*", default=list(HEADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("threads.json"))
    options = parser.parse_args()
    if options.measure:
        head, *numbers = options.measure
        print(json.dumps(measure(head, *map(int, numbers))))
        return
    from featurecache.threads import cores

    lines = []
    for head in options.heads:
        for shape in FEW:
            default, one = (apart(head, shape, threads, options.repeats) for threads in (None, 1))
            lines.append({"head": head, "shape": shape, "cpu_ratio": default[0] / one[0], "at_most": MOST_CPU})
            print(
                f"{head:9} {shape}: CPU of the default {lines[-1]['cpu_ratio']:.2f} of one thread's (at most {MOST_CPU})"
            )
        if head == "lfa":
            continue  # several arrays of that size are no question of its own
        default, one, all_of_them = (apart(head, MANY, threads, options.repeats) for threads in (None, 1, cores()))
        ratio = default[1] / min(one[1], all_of_them[1])
        lines.append({"head": head, "shape": MANY, "wall_ratio": ratio, "at_most": MOST_WALL,
                      "one": one[1], "all": all_of_them[1], "cores": cores()})  # fmt: skip
        print(f"{head:9} {MANY}: wall of the default {ratio:.2f} of the better of one thread's {one[1]:.2f} s "
              f"and {cores()} threads' {all_of_them[1]:.2f} s (at most {MOST_WALL})")  # fmt: skip
    options.out.write_text(json.dumps({"load": os.getloadavg(), "lines": lines}, indent=2))
    bad = [line for line in lines if line.get("cpu_ratio", line.get("wall_ratio")) > line["at_most"]]
    print(f"{len(bad)} of {len(lines)} beyond their limit")


if __name__ == "__main__":
    main()
