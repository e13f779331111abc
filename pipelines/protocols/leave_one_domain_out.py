"""Learn on all domains but one, measure on that one, for each in turn; DomainBed's splits, draws and rules of selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from featurecache.checks import check
from featurecache.errors import StoreContentsError
from featurecache.stores import FeatureStore
from pipelines.protocols import (
    Fold,
    Judge,
    Part,
    Plan,
    Rows,
    Trial,
    drawn_setting,
    need_classes,
    rows_of,
    run_seed,
    split_keys,
)

PAPER = "In Search of Lost Domain Generalization (2021)"
MEASURES = "domains"
Rule = Literal["training-domain", "leave-one-out", "oracle"]
Roles = Literal["honest", "reference"]


def plan(
    stores: Sequence[FeatureStore],
    *,
    select: tuple[Rule, ...] = ("training-domain",),
    roles: Roles = "honest",
    trials: int = 3,
    settings: int = 5,
    algorithm: str = "CLIP_LFA",
) -> Plan:
    """Return one trial for every domain, trial seed and rule of selection; the rules of a trial share what is trained.

    Args:
        stores: one, whose rows have domains; they are numbered in the order of their names.
        select: "training-domain": mean accuracy on the 20 % of every source domain that are not trained on;
            "leave-one-out": mean accuracy on each source domain when it, too, is left out; "oracle": accuracy on 20 % of the
            target, of the last values. What has been chosen on is never measured, so the oracle measures the other 80 %.
        roles: "honest" measures the whole target, and of a setting draws only the learning rate, about the head's own by the
            factors of DomainBed: all settings are one stack. "reference" measures 80 % of the target, and takes the drawn
            rate, momentum and batch size as they are, for SGD at a constant rate without decay.
        trials: seeds 0, 1, ... of the splits, the draws and the heads.
        settings: hyper-parameter seeds 0, 1, ...; 0 is DomainBed's default.
        algorithm: name that enters DomainBed's seeds of runs.

    Raises:
        ConfigError, StoreContentsError: fewer domains than the rules need, or rows without one.
    """
    (store,) = stores
    check(
        (trials > 0, f"trials must be positive, got {trials}"),
        (settings > 0, f"settings must be positive, got {settings}"),
        (len(set(select)) == len(select), f"select names a rule twice: {', '.join(select)}"),
    )
    need_classes(store, "leave-one-domain-out")
    house = _House(store, roles, settings, algorithm)
    least = 3 if "leave-one-out" in select else 2
    if len(house.domains) < least:
        raise StoreContentsError(
            f"{store.path} has {len(house.domains)} domains{_named(house.domains)}, and leave-one-domain-out needs at least "
            f"{least}. Give the data a column `domain` (a manifest) or folders of domains, and extract again."
        )
    found = [
        house.trial(target, seed, rule)
        for target in range(len(house.domains))
        for seed in range(trials)
        for rule in select
    ]
    return Plan(trials=found, over=("trial",))


def _named(domains: Sequence[str]) -> str:
    return f" ({', '.join(domains)})" if domains else ""


@dataclass(frozen=True)
class _House:
    """The domains of a store and what is done with them."""

    store: FeatureStore
    roles: Roles
    settings: int
    algorithm: str

    @cached_property
    def column(self) -> Any:
        """(N,) domain of every row."""
        return np.asarray([str(name) for name in self.store.table().domain])

    @cached_property
    def rows(self) -> Rows:
        """Labelled rows of all splits: a domain is a split here."""
        return rows_of(self.store)

    @cached_property
    def domains(self) -> list[str]:
        """Names of the domains, sorted; rows without one belong to none."""
        return sorted(set(self.column[self.rows].tolist()) - {""})

    def whole(self, domain: int) -> Rows:
        """Return all rows of a domain."""
        found: Rows = self.rows[self.column[self.rows] == self.domains[domain]]
        return found

    def halves(self, domain: int, seed: int) -> tuple[Rows, Rows]:
        """Return (out, in), the rows of a domain that are held out and those that are trained on, ascending.

        By DomainBed's permutation of the rows; in honest roles by the same of the groups, where there are some.
        """
        rows = self.whole(domain)
        groups = np.asarray([str(name) for name in self.store.table().group])[rows]
        if self.roles == "reference" or not (groups != "").any():
            out, kept = split_keys(len(rows), seed, domain)
            return np.sort(rows[out]), np.sort(rows[kept])
        keys = np.where(groups == "", np.array([f"\0{row}" for row in rows.tolist()]), groups)
        names, members = np.unique(keys, return_inverse=True)
        out, kept = split_keys(len(names), seed, domain)
        return rows[np.isin(members, out)], rows[np.isin(members, kept)]

    def fold(self, left_out: Sequence[int], seed: int, *, watched: bool = True) -> Fold:
        """Return the training on all domains but some; not `watched`: its last values are kept."""
        sources = [number for number in range(len(self.domains)) if number not in left_out]
        halves = [self.halves(number, seed) for number in sources]
        learnt, held = (np.sort(np.concatenate(rows)) for rows in ([h[1] for h in halves], [h[0] for h in halves]))
        name = f"without-{'-'.join(map(str, left_out))}-trial-{seed}" + ("" if watched else "-last")
        return Fold(
            name=name, train=Part(self.store, learnt), validation=Part(self.store, held) if watched else None,
            settings=[self._setting(left_out, number, seed, len(sources)) for number in range(self.settings)],
        )  # fmt: skip

    def _setting(self, left_out: Sequence[int], number: int, seed: int, sources: int) -> Mapping[str, Any]:
        name = str(self.store.header.dataset["name"])
        draw = drawn_setting(name, number, seed)
        seeds = {"hparams_seed": number, "seed": run_seed(name, self.algorithm, left_out, number, seed)}
        if self.roles == "honest":
            return {**seeds, "lr_factor": draw.lr / drawn_setting(name, 0, seed).lr}
        loop = {"momentum": draw.momentum, "batch_size": draw.batch_size * sources}
        return {**seeds, "lr": draw.lr, "weight_decay": 0.0, **loop, "optimizer": "sgd", "schedule": "constant"}

    def trial(self, target: int, seed: int, rule: Rule) -> Trial:
        """Return the trial of one target domain under one rule."""
        out, kept = self.halves(target, seed)
        measured = kept if rule == "oracle" or self.roles == "reference" else self.whole(target)
        fold = self.fold([target], seed, watched=rule != "oracle")
        labels = {"select": rule, "target": self.domains[target], "trial": seed}
        return Trial(
            name=f"{rule}-target-{target}-trial-{seed}", labels=labels, fold=fold,
            tests={"target": Part(self.store, measured)}, judges=self._judges(target, seed, rule, fold, out),
        )  # fmt: skip

    def _judges(self, target: int, seed: int, rule: Rule, fold: Fold, out: Rows) -> list[Judge]:
        """Return what settings are chosen by: in reference roles a domain that is left out is measured on its 80 %."""
        if rule == "oracle":
            return [Judge(name=f"out-{target}", fold=fold, part=Part(self.store, out))]
        sources = [number for number in range(len(self.domains)) if number != target]
        if rule == "training-domain":
            return [
                Judge(name=f"out-{number}", fold=fold, part=Part(self.store, self.halves(number, seed)[0]))
                for number in sources
            ]
        judges = []
        for number in sources:
            rows = self.halves(number, seed)[1] if self.roles == "reference" else self.whole(number)
            pair = self.fold(sorted((target, number)), seed)
            judges.append(Judge(name=f"whole-{number}", fold=pair, part=Part(self.store, rows)))
        return judges
