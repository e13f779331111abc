"""CPU time that a command takes which needs no model, beyond an empty Python: help, typos, lists, what is written down.

Every measurement is a process of its own, and of several the least counts. `report` draws its figures by matplotlib, whose
import alone is beyond the limit: it is told beside the others, without one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MOST_SECONDS = 0.3


def cpu_of(arguments: Sequence[str], repeats: int) -> float:
    """Return the least CPU seconds of a Python that is given these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    least = float("inf")
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def commands(folder: Path) -> dict[str, list[str]]:
    """Return name -> arguments of every command that is measured, of a store and a run that are made for it."""
    import cli

    store, run = str(folder / "digits.zarr"), str(folder / "run")
    for words in (
        ["extract-features", "digits", "--backbone", "demo", "--out", store, "--quiet"],
        ["train-head", store, "--head", "ridge", "--out", run, "--quiet"],
    ):
        subprocess.run([sys.executable, str(ROOT / "cli.py"), *words], check=True, capture_output=True)
    helped = {f"{verb} --help": [verb, "--help"] for verb in cli.VERBS}
    return {
        "--help": ["--help"], **helped, "a typo in a verb": ["trian-head"],
        "a typo in an option": ["train-head", store, "--haed", "lfa"],
        "a wrong number": ["train-head", store, "--out", run, "--lr", "fast"], "list": ["list"],
        "list peft lora": ["list", "peft", "lora"], "info RUN": ["info", run], "logme of kept scores": ["logme", store],
        "report": ["report", run, "--out", str(folder / "report.html")],
    }  # fmt: skip


def main() -> None:
    """Print seconds and ratios against the limit, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("start.json"))
    options = parser.parse_args()
    empty = cpu_of(["-c", "pass"], options.repeats)
    print(f"an empty Python: {empty:.3f} s of CPU; at most {MOST_SECONDS} s more, without torch")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands(Path(folder)).items():
            used = cpu_of([str(ROOT / "cli.py"), *words], options.repeats)
            limit = None if name == "report" else MOST_SECONDS
            lines.append({"command": name, "beyond": used - empty, "ratio": used / empty, "at_most": limit})
            print(f"{name:28} {used - empty:6.3f} s more, {used / empty:5.1f} times an empty Python")
    options.out.write_text(json.dumps({"empty": empty, "load": os.getloadavg(), "lines": lines}, indent=2))
    bad = [line["command"] for line in lines if line["at_most"] is not None and line["beyond"] > line["at_most"]]
    print(f"beyond the limit: {', '.join(bad) or 'none'}")


if __name__ == "__main__":
    main()
