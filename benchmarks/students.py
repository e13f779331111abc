"""What do teachers cost a student, and what does a product of two of them cost?

    python benchmarks/students.py [--data DATA] [--teacher STORE ...] [--student NAME] [--image-size 32] [--rows N] [--epochs E]
                                  [--seeds S] [--objectives a,b,...] [--product-width D] [--product-rows B] [--out FILE]

Every objective is trained once a seed through the verb, from random weights, and so is `none`; they take turns. Told are

- the time of all objectives together over that of as many trainings of `none`: at most 1.2;
- the step of `aft` with 1, 2 and 4 teachers over that of `none`;
- how long an objective takes until its first step, when another one has been trained before;
- the kernel of two teachers' outer products over the one that makes the products: time, and peak memory in a process of
  its own. How far the two are apart is told at a quarter of the width, in float64: at most 1e-10.

Without --data pictures are drawn, and without --teacher four teachers of random weights are extracted first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _images import draw
from _reporting import Ratio, conclude, in_turns, middle, seconds

from pipelines.objectives._kernels import cosine_kernel, product_kernel
from pipelines.online.planning import images_of, sources_of
from pipelines.students.guiding import StudentGuide
from pipelines.students.planning import Opened, planned
from pipelines.train_student import TrainStudentConfig, run
from pipelines.training.distributed import ALONE
from save_features import SaveFeaturesConfig
from save_features import run as extract

SIX = "aft,kd,kernel_kd,feature_prior,rkd,b_tuning"
LIMIT = 1.2


def made(folder: Path, options: argparse.Namespace) -> tuple[str, list[Path]]:
    """Return data and teachers: those that are named, or made ones."""
    data = options.data
    if data is None:
        draw(folder / "images", options.rows, 48)
        data = str(folder / "images")
    stores = list(options.teacher)
    for seed in range(len(stores), 4):
        stores.append(folder / f"teacher{seed}.zarr")
        extract(SaveFeaturesConfig(
            data=data, backbone="timm:vit_tiny_patch16_224", weights=f"random:{seed}", image_size=32, layers="last",
            out=stores[-1], quiet=True,
        ))  # fmt: skip
    return data, stores


class Trainings:
    """Trainings of one student into folders of their own."""

    def __init__(self, folder: Path, data: str, stores: Sequence[Path], options: argparse.Namespace) -> None:
        self.folder, self.stores, self.count = folder, stores, 0
        self.shared = TrainStudentConfig(
            data=data, out=folder, student=options.student, from_scratch=True, image_size=options.image_size,
            epochs=options.epochs, batch_size=options.batch_size, cache=folder / "cache", quiet=True,
        )  # fmt: skip

    def config(self, objective: str, teachers: int, seed: int) -> TrainStudentConfig:
        """Return one training that was not made before."""
        self.count += 1
        return replace(
            self.shared, objective=objective, teacher=tuple(self.stores[:teachers]), seed=seed, data_seed=seed,
            out=self.folder / f"run{self.count}",
        )  # fmt: skip

    def seconds(self, objective: str, teachers: int, seed: int = 0) -> float:
        """Return how long a training takes, preparation and measuring included."""
        config = self.config(objective, teachers, seed)
        return seconds(lambda: run(config))

    def step(self, objective: str, teachers: int) -> float:
        """Return the seconds of a step."""
        return float(run(self.config(objective, teachers, 0)).json()["step_seconds"])

    def start(self, objective: str) -> float:
        """Return the seconds until the first step."""
        config = self.config(objective, 1, 0)
        began = time.perf_counter()
        plan = planned(config, Opened.of(config))
        with images_of(plan.online, plan.settings, ALONE) as images:
            sources, _ = sources_of(plan.online, images, plan.settings, ALONE)
            StudentGuide(plan, config.out).begin(sources, torch.nn.Identity(), ALONE)
        return time.perf_counter() - began


def of_objectives(trainings: Trainings, names: Sequence[str], seeds: int) -> Ratio:
    """Compare all objectives with as many trainings without teachers."""
    turns = []
    for seed in range(seeds):
        print(f"seed {seed}", file=sys.stderr, flush=True)
        acts = [lambda name=name, seed=seed: trainings.seconds(name, name != "none", seed) for name in ("none", *names)]
        turns += in_turns(acts, 1)
    ratios = [sum(rest) / (len(names) * bare) for bare, *rest in turns]
    each = {name: middle([turn[1 + n] / turn[0] for turn in turns]) for n, name in enumerate(names)}
    whole = sum(sum(rest) for _, *rest in turns) / (len(names) * sum(bare for bare, *_ in turns))
    return Ratio(
        what=f"{len(names)} objectives x {seeds} seeds", against="none, as many trainings", value=whole, limit=LIMIT,
        bound="at most", of_each_turn=ratios, figures={**each, "none_seconds": middle([turn[0] for turn in turns])},
    )  # fmt: skip


def of_teachers(trainings: Trainings, turns: int) -> list[Ratio]:
    """Compare steps with 1, 2 and 4 teachers with those of none."""
    counts = (0, 1, 2, 4)
    acts = [lambda count=count: trainings.step("aft" if count else "none", count) for count in counts]
    found = in_turns(acts, turns)
    return [
        Ratio(
            what=f"step of aft, {count} teacher{'s' * (count > 1)}", against="step of none",
            value=middle([turn[place] / turn[0] for turn in found]), of_each_turn=[turn[place] / turn[0] for turn in found],
            figures={"none_milliseconds": 1000 * middle([turn[0] for turn in found])},
        )
        for place, count in enumerate(counts) if count
    ]  # fmt: skip


MEMORY = """
import sys, torch
sys.path.insert(0, {root!r})
from pipelines.objectives._kernels import cosine_kernel, product_kernel
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
left, right = (torch.randn({rows}, {width}) for _ in range(2))
product_kernel(left[:2, :2], right[:2, :2])
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
{act}
print(peak() - before)
"""
ACTS = {
    "grams": "product_kernel(left, right)",
    "product": "cosine_kernel(torch.einsum('bi,bj->bij', left, right).flatten(1))",
}


def of_product(rows: int, width: int, turns: int) -> list[Ratio]:
    """Compare the two ways to the kernel of outer products."""
    left, right = (torch.randn(rows, width) for _ in range(2))
    acts = [
        lambda: seconds(lambda: product_kernel(left, right)),
        lambda: seconds(lambda: cosine_kernel(torch.einsum("bi,bj->bij", left, right).flatten(1))),
    ]
    times = in_turns(acts, turns)
    root = str(Path(__file__).resolve().parents[1])
    kib = {
        name: int(subprocess.run(
            [sys.executable, "-c", MEMORY.format(root=root, rows=rows, width=width, act=act)],
            capture_output=True, text=True, check=True,
        ).stdout) for name, act in ACTS.items()
    }  # fmt: skip
    small = [torch.randn(rows, max(1, width // 4), dtype=torch.float64) for _ in range(2)]
    apart = (product_kernel(*small) - cosine_kernel(torch.einsum("bi,bj->bij", *small).flatten(1))).abs().max().item()
    size = f"{rows} rows, {width} x {width}"
    ratios = [theirs / ours for ours, theirs in times]
    return [
        Ratio(what=f"making the products, {size}", against="not making them: time", value=middle(ratios), of_each_turn=ratios,
              figures={"milliseconds": 1000 * middle([one for one, _ in times]), "made": 1000 * middle([b for _, b in times])}),
        Ratio(what=f"making the products, {size}", against="not making them: memory", value=kib["product"] / max(kib["grams"], 1),
              figures={"mib": kib["grams"] / 1024, "made_mib": kib["product"] / 1024}),
        Ratio(what=f"the same, {width // 4} x {width // 4}", against="largest difference / 1e-10",
              value=apart / 1e-10, limit=1.0, bound="at most"),
    ]  # fmt: skip


def main() -> int:
    """Measure and conclude."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--teacher", action="append", type=Path, default=[])
    parser.add_argument("--student", default="timm:test_resnet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objectives", default=SIX)
    parser.add_argument("--product-width", type=int, default=1024)
    parser.add_argument("--product-rows", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data, stores = made(Path(place), options)
        trainings = Trainings(Path(place), data, stores, options)
        trainings.seconds("none", 0)  # what is imported and compiled once counts for nobody
        names = options.objectives.split(",")
        ratios = [of_objectives(trainings, names, options.seeds), *of_teachers(trainings, options.seeds)]
        starts = {name: trainings.start(name) for name in names}
    slowest = max(starts.values())
    ratios.append(Ratio(what="start of an objective after another", against="10 seconds", value=slowest / 10, limit=1.0,
                        bound="at most", figures={f"{name}_seconds": value for name, value in starts.items()}))  # fmt: skip
    ratios += of_product(options.product_rows, options.product_width, 5)
    return conclude("students", ratios, vars(options), options.out)


if __name__ == "__main__":
    raise SystemExit(main())
