"""The verb `run-protocol`: heads on the trials of a protocol, from stores alone; means, intervals and paired differences."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featurecache.checks import check
from featurecache.devices import environment, resolve_device
from featurecache.errors import ConfigError, FeatureCacheError, StoreContentsError
from featurecache.files import write_atomic
from featurecache.places import Place
from featurecache.progress import Bar, Stopwatch
from featurecache.repetition import count_warnings
from featurecache.runs import RECORD, discard, is_done, read_run, recorded_stores, write_record
from featurecache.stores import FeatureStore, open_store
from featurecache.threads import heeds_threads, suited_threads
from heads import HEADS
from pipelines._arrays import compare_stored
from pipelines._roles import read_store_in_roles
from pipelines._rows import trainable
from pipelines.protocols import Asked, Plan, Trial, parse
from pipelines.training.cells import ALIASES, cells_of
from pipelines.training.convergence import describe_improving
from pipelines.training.problem import Problem, problems_of
from pipelines.training.settings import Training
from pipelines.trialling.leaks import remarks_on
from pipelines.trialling.reporting import ProtocolReport
from pipelines.trialling.results import results_of, write_results
from pipelines.trialling.trialling import (
    Work,
    carry_out,
    cells_in,
    check_arrays,
    describe_arrays,
    source_of,
    speaks_of_classes,
)

log = logging.getLogger("featurecache")


@dataclass(frozen=True, kw_only=True)
class RunProtocolConfig(Training):
    """Train heads on the trials of a protocol and say how sure the comparison is; no image is read."""

    protocol: str
    """NAME:ARGUMENT?key=value&key=value, e.g. holdout?folds=5, few-shot:1,2,4?seed=1,2,3, leave-one-domain-out?select=oracle."""
    stores: tuple[Place, ...]
    """Stores written by extract-features; each is a table of its own, but for cross-data-set."""
    out: Path
    """Folder to write; a stopped command goes on trial by trial."""
    heads: tuple[str, ...] = ()
    """Heads to compare, separated by commas; differences are against the first; `all`: every head that reads layers and no texts, against linear; default: the one of --head."""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Settings that every trial chooses from on its own validation, as for train-head: NAME=V1,V2 or FIRST..LAST/COUNT; may be given several times."""

    test_split: str | None = None
    """Split to measure on, e.g. val: rows to choose on are then held out of train; default: test, or val where there is no test."""
    leaks: bool = True
    """Look for test rows that are near-duplicates of rows that are learnt from, and say so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            (len(self.stores) > 0, "name at least one store"),
            (len(set(map(str, self.stores))) == len(self.stores), "a store is named twice"),
            (len(set(self.named_heads)) == len(self.named_heads), "a head is named twice"),
            (not self.heads or self.head == "linear", "heads and head exclude each other: name all in --heads"),
            ("head" not in self.sweep, "a sweep over heads is what --heads compares: name them there"),
        )

    @property
    def named_heads(self) -> list[str]:
        """The heads, one by one."""
        words = [word.strip().replace("-", "_") for text in self.heads for word in text.split(",")]
        named = [word for word in words if word] or [self.head.replace("-", "_")]
        return _of_layers() if named == ["all"] else named


def _of_layers() -> list[str]:
    """Return the heads that any store with layers can feed, the baseline first."""
    found = {name: HEADS.load(name) for name in HEADS.names()}
    fed = [name for name, head in found.items() if head.CONSUMES in ("last", "all") and not hasattr(head, "CONSTANTS")]
    return ["linear", *(name for name in fed if name != "linear")]


@heeds_threads
def run(config: RunProtocolConfig) -> ProtocolReport:
    """Carry out every trial, or say that it is done already; one that was stopped goes on.

    Raises:
        UnknownNameError, ConfigError, StoreContentsError: refused before anything is written, all problems at once.
        RunError: `out` holds something else, or every setting of a trial diverged.
    """
    asked = parse(config.protocol)
    config = replace(config, device=str(resolve_device(config.device)))
    stores, remarks = _opened_in_roles(asked, config)
    works = planned(asked, stores, config)
    check_arrays(works)
    if is_done(config.out, _wanted(asked, stores, config)):
        return ProtocolReport(config.out, read_run(config.out)[1], repeated=True)
    try:
        with suited_threads(max(store.header.rows for store in stores)):
            return run_protocol(asked, works, config, remarks)
    except FeatureCacheError:
        _discard_unused(config.out)
        raise


def _opened_in_roles(asked: Asked, config: RunProtocolConfig) -> tuple[list[FeatureStore], list[str]]:
    """Return the stores as the protocol reads their splits, and what is to be said of that.

    Raises:
        ConfigError: a store has no such split to measure, or the protocol measures no split.
    """
    check((
        asked.measures_split or config.test_split is None,
        f"{asked.full} draws its tests from the rows of all splits: leave --test-split out",
    ))  # fmt: skip
    opened = [open_store(place) for place in config.stores]
    if not asked.measures_split:
        return opened, []
    found, problems = [], list[str]()
    for store in opened:
        try:
            found.append(read_store_in_roles(store, config.test_split))
        except ConfigError as refused:
            problems += refused.problems
    check(*((False, problem) for problem in problems))
    return [store for store, _ in found], [roles.remark for _, roles in found if roles is not None]


def _wanted(asked: Asked, stores: Sequence[FeatureStore], config: RunProtocolConfig) -> dict[str, Any]:
    """Return what makes this run this run."""
    unsaid = ("out", "quiet", "threads", "head", *(() if config.test_split else ("test_split",)))
    said = {name: value for name, value in asdict(config).items() if name not in unsaid}
    features = [{"backbone": dict(s.header.backbone), "data": dict(s.header.dataset)} for s in stores]
    return {
        **said, "protocol": asked.full, "heads": config.named_heads,
        "stores": recorded_stores(config.out, "stores", config.stores), "features": features,
    }  # fmt: skip


def _discard_unused(folder: Path) -> None:
    """Remove what a run left that was refused on the way, if no trial is finished."""
    if not any(folder.glob(f"trials/*/*/*/{RECORD}")):
        for name in ("trials", "rows"):
            shutil.rmtree(folder / name, ignore_errors=True)
        discard(folder)


def planned(asked: Asked, stores: Sequence[FeatureStore], config: RunProtocolConfig) -> list[Work]:
    """Return every store with every head; only row tables are read, and nothing is written.

    Raises:
        ConfigError: lists every reason why a head cannot be trained on the trials of a store.
    """
    titles = _titles(stores)
    groups = [(titles[0], list(stores))] if asked.together else [(t, [s]) for t, s in zip(titles, stores, strict=True)]
    works, problems = [], list[str]()
    for title, some in groups:
        try:
            plan = asked.plan(some)
            problems += _unlearnable(plan)
            works += [_work(title, some[0], plan, head, config) for head in config.named_heads]
        except ConfigError as refused:
            problems += refused.problems
        except StoreContentsError as refused:
            problems.append(str(refused))
    problems += _foreign_options(config)
    for work in works:
        problems += _refused(work, config)
    check(*((False, problem) for problem in dict.fromkeys(problems)))
    return works


def _titles(stores: Sequence[FeatureStore]) -> list[str]:
    """Return a short name for every store, each different and good as a file name."""
    stems = [Path(str(store.path)).stem for store in stores]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number + 1}" for number, stem in enumerate(stems)]


def _unlearnable(plan: Plan) -> list[str]:
    """Return what is wrong with the training rows of a plan, each once."""
    folds = {trial.fold.name: trial.fold for trial in plan.trials}
    conditions = [one for fold in folds.values() for one in trainable(source_of(fold.train, ()))]
    return list(dict.fromkeys(message for holds, message in conditions if not holds))


def _work(title: str, store: FeatureStore, plan: Plan, head: str, config: RunProtocolConfig) -> Work:
    known = HEADS.load(head).build.__kwdefaults__ or {}
    options = {name: value for name, value in config.head_option.items() if name.replace("-", "_") in known}
    training = replace(config, head=head, heads=(), head_option=options)
    cells = cells_of(training.settings(), config.sweep, store.header, compare_stored(store))
    return Work(
        title=title, head=head, plan=plan, cells=cells, training=training,
        folder=config.out / "trials" / title / head,
    )  # fmt: skip


def _foreign_options(config: RunProtocolConfig) -> list[str]:
    known = {name for head in config.named_heads for name in HEADS.load(head).build.__kwdefaults__ or {}}
    foreign = [name for name in config.head_option if name.replace("-", "_") not in known]
    return [f"no head of {', '.join(config.named_heads)} has an option {name!r}" for name in foreign]


def _refused(work: Work, config: RunProtocolConfig) -> list[str]:
    """Return every reason why the head of a work cannot go through its trials."""
    trials = work.plan.trials
    problem = Problem.of(source_of(trials[0].fold.train, work.arrays))
    found = problems_of(work.cells, problem, work.training)
    settings = {cell.setting for cell, _ in cells_in(trials[0].fold, work.cells)}
    for trial in trials:
        if len(settings) > 1 and not trial.judges and trial.fold.validation is None:
            found.append(
                f"several settings are chosen from on validation rows, and {work.title} has none: {trial.name}"
            )
        swept = {ALIASES.get(name, name) for name in config.sweep}
        swept |= {"lr_factor"} if "lr" in swept else set()
        drawn = {name for setting in trial.fold.settings for name in setting} & swept
        if drawn:
            found.append(f"the protocol draws {', '.join(sorted(drawn))} itself: leave it out of --sweep")
    foreign = [t for t in trials if any(_other_classes(t, part) for part in t.tests)]
    if foreign and not found and any(speaks_of_classes(cell, problem) for cell in work.cells):
        found.append(
            f"the head {work.head} learns values of its classes, so it cannot be asked for others, as {foreign[0].name} does. "
            "Take one that reads the words of the classes, such as lfa_clip, clip_adapter or zero_shot"
        )
    return found


def _other_classes(trial: Trial, name: str) -> bool:
    return trial.tests[name].store.header.class_names != trial.fold.train.store.header.class_names


def run_protocol(
    asked: Asked, works: Sequence[Work], config: RunProtocolConfig, said: Sequence[str] = ()
) -> ProtocolReport:
    """Carry out the trials that are not done, and write what all of them came to; `said` is known of their splits."""
    watch = Stopwatch()
    for work in works:
        for trial in work.plan.trials:
            _write_rows(config.out / "rows" / work.title / trial.name, trial)
    remarks = [*said, *_remarks(works, config)]
    for remark in said:
        log.info(remark)
    total = sum(len(work.plan.trials) for work in works)
    done = sum(work.done(trial) for work in works for trial in work.plan.trials)
    with count_warnings(), Bar(asked.full, total, done, config.quiet, unit="trials") as bar:
        for _ in _carried_out(works):
            bar.advance(1, watch)
    results = results_of(asked.full, works)
    record = {
        "protocol": asked.full, "heads": config.named_heads, "stores": [str(place) for place in config.stores], **results,
        "remarks": [*remarks, *improving_remarks(results["trials"]), *describe_arrays(works)], "environment": environment(),
        "seconds": watch.elapsed,
    }  # fmt: skip
    record["files"] = write_results(config.out, record, works[0].plan.curve)
    write_record(config.out, record)
    return ProtocolReport(config.out, record)


def _remarks(works: Sequence[Work], config: RunProtocolConfig) -> list[str]:
    """Return what is to be said of the rows of the trials, and log it: nobody should wait for numbers that deceive."""
    found = [remark for work in works for trial in work.plan.trials for remark in trial.remarks]
    if config.leaks:
        plans = {work.title: work.plan for work in works}
        found += [remark for title, plan in plans.items() for remark in remarks_on(title, plan.trials)]
    found = list(dict.fromkeys(found))
    for remark in found:
        log.warning(remark)
    return found


def improving_remarks(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for every head that was still improving in most of its trials."""
    heads: dict[str, list[bool]] = {}
    for line in trials:
        heads.setdefault(line["head"], []).append(line["still_improving"])
    found = [describe_improving(head, sum(still), len(still)) for head, still in heads.items()]
    return [remark for remark in found if remark]


def _carried_out(works: Sequence[Work]) -> Iterator[Trial]:
    for work in works:
        yield from carry_out(work)


def _write_rows(folder: Path, trial: Trial) -> None:
    """Write which samples are what, one id a line."""
    parts = {"train": trial.fold.train, "val": trial.fold.validation}
    parts |= {f"test-{name}" if name != "test" else name: part for name, part in trial.tests.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        path = folder / f"{name}.txt"
        if part is not None and not path.exists():
            write_atomic(path, "".join(f"{one}\n" for one in part.ids()).encode())
