"""Teachers and objective of a student, put beside an online training. See `Guide`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from featurecache.files import write_atomic
from featurecache.seeding import seed_of
from featurecache.sources import FeatureSource
from featurecache.sources.joined import JoinedSource, joined, taught
from featurecache.sources.live import LiveSource
from featurecache.stores import digests
from pipelines.objectives import Dimensions, Guidance, Material, Objective, guided
from pipelines.students.planning import StudentPlan
from pipelines.students.telling import ROWS, kernel_distances, of_teachers
from pipelines.training.distributed import Ranks, whole

OBJECTIVE = "objective.safetensors"
"""File of a run that holds what the objective learnt itself."""
FEW = 100
"""Batches up to which the published code draws them once, for the whole run."""


class StudentGuide:
    """The teachers of one training."""

    def __init__(self, plan: StudentPlan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.objective: Any = None
        """The likelihood with a distance; None where labels are all there is."""
        self.distances: dict[str, list[float]] = {}

    @property
    def reshuffles(self) -> bool:
        """Whether every epoch has another order: not for the few batches of the published code."""
        config = self.plan.config
        return not config.reference or math.ceil(len(self.plan.rows["train"]) / config.batch_size) > FEW

    @property
    def keeps_best(self) -> bool:
        """Whether the values that are best on validation are kept."""
        return not self.plan.config.reference

    def begin(
        self, sources: Mapping[str, LiveSource], likelihood: Objective, ranks: Ranks
    ) -> tuple[FeatureSource, Objective]:
        """Return (training rows with what the teachers say of them, what is minimised)."""
        plan, config = self.plan, self.plan.config
        needed = [sources[split].rows for split in ("train", "val")]
        for teacher in plan.teachers:
            teacher.stage(np.unique(np.concatenate(needed)), config.device)
        self.distances["before"] = self._distances(sources, ranks)
        if config.weight is None:
            return sources["train"], likelihood
        width = plan.online.spec.shapes["embedding"][0]
        dimensions = Dimensions(width, plan.widths, plan.online.header.task, plan.online.spec.num_classes)
        guidance = Guidance(
            likelihood=likelihood, prec=config.weight, prior_factor=config.prior_lr / config.rates[0],
            prior_freq=config.prior_freq,
        )  # fmt: skip
        with torch.random.fork_rng():  # so that the student draws what it would draw without teachers
            torch.manual_seed(seed_of("objective", config.named, config.seed))
            self.objective = guided(config.named, dimensions, guidance, config.objective_option).to(config.device)
            self.objective.prepare(self._material(sources, ranks))
        return joined(sources["train"], plan.teachers), self.objective

    def _material(self, sources: Mapping[str, LiveSource], ranks: Ranks) -> Material:
        plan, dataset = self.plan, self.plan.online.dataset
        rows = {split: sources[split].rows for split in ("train", "val")}
        told: dict[str, FeatureSource] = {split: taught(dataset, found, plan.teachers) for split, found in rows.items()}
        asked = [dataset.identity["fingerprint"], *(found.tobytes().hex() for found in rows.values())]
        keys = [
            f"{seed_of(digests(one.store)[one.array], str(one.store.header.backbone), *asked):016x}"
            for one in plan.teachers
        ]
        return Material(
            teachers=told, student=whole(sources["train"], ranks), cache=plan.config.cache, keys=tuple(keys),
            device=plan.config.device,
        )  # fmt: skip

    def _distances(self, sources: Mapping[str, LiveSource], ranks: Ranks) -> list[float]:
        source = sources["val"] if len(sources["val"]) else sources["train"]
        if not self.plan.teachers:
            return []
        return kernel_distances(
            JoinedSource(whole(source, ranks), self.plan.teachers), ROWS, self.plan.teachers, self.plan.config.device
        )

    def end(self, sources: Mapping[str, LiveSource], head: nn.Module, ranks: Ranks) -> dict[str, Any]:
        """Write what the objective learnt itself; return what the record says of teachers and objective."""
        self.distances["after"] = self._distances(sources, ranks)
        config, objective = self.plan.config, self.objective
        state = objective.distance.state_dict() if objective else {}
        if state and ranks.first:
            tensors = {name: value.cpu().contiguous() for name, value in state.items()}
            write_atomic(self.out / OBJECTIVE, safetensors.torch.save(tensors))
        scales = objective.distance.scales() if objective else []
        told = of_teachers(self.plan.teachers, scales)
        for number, entry in enumerate(told):
            entry["kernel_distance"] = {when: found[number] for when, found in self.distances.items() if found}
        learnt = sum(p.numel() for p in objective.distance.parameters() if p.requires_grad) if objective else 0
        return {
            "objective": {
                "name": config.named, "options": dict(config.objective_option), "prec": config.weight,
                "parameters": learnt, "mode": "reference" if config.reference else "honest",
            },
            "teachers": told,
        }  # fmt: skip
