"""Names to objects: student, teachers and rows of a training, and every reason why it cannot be; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from featurecache.checks import check
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.errors import ConfigError, UnknownNameError, WeightsError
from featurecache.registry import nearest
from featurecache.sources.live import HeldImages
from featurecache.sources.teachers import Teacher, vector_of
from featurecache.stores import FeatureStore, open_store
from featurecache.views import Views
from pipelines._roles import Roles, read_data_in_roles
from pipelines._rows import teachable
from pipelines.objectives import OBJECTIVES, PROBE, Dimensions, Guidance, guided, names
from pipelines.objectives.cross_entropy import build as likelihood
from pipelines.online.planning import SPLITS, Plan, labelled
from pipelines.online.planning import planned as planned_online
from pipelines.online.settings import TrainOnlineConfig
from pipelines.students.rows import part_of, published_split, whole_epochs
from pipelines.students.settings import SEEN_AS_CACHED, TrainStudentConfig

Rows = Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StudentPlan:
    """What a run trains, on what, and who teaches it."""

    config: TrainStudentConfig
    online: Plan
    settings: TrainOnlineConfig
    """The online training that it is."""
    teachers: Sequence[Teacher]
    rows: Rows

    @property
    def widths(self) -> tuple[int, ...]:
        """D of every teacher."""
        return tuple(teacher.width for teacher in self.teachers)


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What is opened once for all cells of a sweep."""

    dataset: ImageDataset
    stores: Mapping[str, FeatureStore]
    """By their place, as it was named."""
    roles: Roles | None = None
    """Which splits are measured and chosen on, where these are not test and val."""
    pictures: dict[str, HeldImages] = field(default_factory=dict)
    """Clean pictures as a student sees them, by what makes them."""

    @classmethod
    def of(cls, config: TrainStudentConfig) -> Opened:
        """List the images of the data, and open the stores of all teachers.

        Raises:
            DatasetError, StoreError: as what they name.
        """
        dataset = open_dataset(
            config.data, split_seed=config.split_seed, task=config.task, fingerprint=config.fingerprint
        )
        dataset, roles = read_data_in_roles(dataset, config.test_split)
        return cls(dataset, {str(place): open_store(place) for place in config.teacher}, roles)

    def held(self, plan: Plan, config: TrainStudentConfig) -> HeldImages:
        """Return the room for the pictures of all students that see alike."""
        backbone = plan.backbone
        key = json.dumps([backbone.name, backbone.identity.get("transform"), list(backbone.input_size), config.decoder])
        if key not in self.pictures:
            self.pictures[key] = HeldImages(len(self.dataset), backbone.input_size)
        return self.pictures[key]

    def taught(self, config: TrainStudentConfig) -> list[FeatureStore]:
        """Return the stores of the teachers of one training, in their order."""
        return [self.stores[str(place)] for place in config.teacher]


def planned(config: TrainStudentConfig, opened: Opened) -> StudentPlan:
    """Join the teachers, and build the student.

    Raises:
        ConfigError: lists every reason why this cannot be trained.
        UnknownNameError, BackboneError, StoreError: as what they name.
    """
    check_config(config, opened)
    dataset, stores = opened.dataset, opened.taught(config)
    rows, views = rows_of(dataset, config), _views(stores, config)
    teachers = [Teacher(store, config.teacher_array, dataset, views=views.count if views else 1) for store in stores]
    epochs = config.epochs
    if config.steps is not None:
        epochs = whole_epochs(config.steps, len(rows["train"]), config.batch_size)
    settings = config.online(epochs=epochs, augment=views.augment if views else config.augment)
    online = _planned_online(settings, dataset)
    online = replace(online, rows=rows, views=views, held=opened.held(online, config), roles=opened.roles)
    return StudentPlan(config=config, online=online, settings=settings, teachers=teachers, rows=rows)


def _planned_online(settings: TrainOnlineConfig, dataset: ImageDataset) -> Plan:
    """Plan the online training that a student is; where its weights are refused, say what they are called here."""
    try:
        return planned_online(settings, dataset)
    except WeightsError as refused:
        said = str(refused).replace("--weights random:SEED", "--from-scratch")
        raise WeightsError(said.replace("--weights ", "--student-weights ")) from refused


def check_config(config: TrainStudentConfig, opened: Opened) -> None:
    """Refuse what cannot be trained, as far as data and stores say, before a student is built.

    Raises:
        ConfigError: lists every reason.
    """
    check_objective(config)
    dataset, stores = opened.dataset, opened.taught(config)
    rows = rows_of(dataset, config)
    check(
        *teachable(np.asarray(dataset.table.target)[rows["train"]], dataset.task, config.data),
        *((False, problem) for problem in _of_reference(config, len(rows["train"]))),
        *((False, problem) for problem in _of_objective(config, stores, dataset)),
    )


def check_objective(config: TrainStudentConfig) -> None:
    """Refuse an objective that is not there, or that lacks what it needs, before anything is opened.

    Raises:
        UnknownNameError: there is no such objective; names the nearest.
        ConfigError: lists all that does not go together.
    """
    known, name = list(names()), config.named
    if name not in known:
        raise UnknownNameError(
            f"there is no objective called {config.objective!r}.{nearest(name, known)} Known: {', '.join(known)}. "
            f"To add one, write pipelines/objectives/{name}.py."
        )
    guides = config.weight is not None
    other = "Leave it out, or name an objective with teachers: --objective aft, kd, ..."
    check(
        (name == PROBE or config.student is not None, "name what is to be trained: --student timm:NAME"),
        (not (guides or name == PROBE) or len(config.teacher) > 0, f"objective {name} needs a --teacher STORE"),
        (
            guides or config.prec is None,
            f"prec weighs the distance to the teachers, and objective {name} has none. {other}",
        ),
        (
            guides or name == PROBE or not config.objective_option,
            f"objective {name} has no options, but {', '.join(config.objective_option)} was given. {other}",
        ),
        (
            guides or config.prior_freq == 1,
            f"prior_freq rests the student, and objective {name} learns nothing else. {other}",
        ),
        *((False, problem) for problem in (_needless(config) if name == PROBE else ())),
    )


def _needless(config: TrainStudentConfig) -> Iterator[str]:
    """Yield what says nothing where there is no student."""
    given = {
        "--student": config.student, "--student-weights": config.student_weights, "--from-scratch": config.from_scratch,
        "--backbone-option": config.backbone_option, "--image-size": config.image_size, "--transform": config.transform,
        "--backbone-lr": config.backbone_lr, "--augment": config.augment != "none",
    }  # fmt: skip
    for flag, value in given.items():
        if value:
            yield f"{flag} is of a student, and {PROBE} has none: it reads what the teachers' stores hold"


def _of_reference(config: TrainStudentConfig, rows: int) -> Iterator[str]:
    """Yield what the published code cannot do."""
    if not config.reference:
        return
    if config.augment != "none" and config.named != "none":
        yield "reference: the published code knows no augmentation but for objective none, since its teachers saw clean images"
    if config.optimizer == "adamw":
        yield "reference: the published code knows the optimizers adam and sgd"
    if config.steps is not None and whole_epochs(config.steps, rows, config.batch_size) == 0:
        yield (
            f"reference: {config.steps} steps are less than half an epoch of {rows} rows, and the published code rounds to "
            "whole epochs: it would train nothing. Give more --steps"
        )


def _of_objective(config: TrainStudentConfig, stores: Sequence[FeatureStore], dataset: ImageDataset) -> Iterator[str]:
    """Yield why the objective cannot be built for such teachers, or not for such steps."""
    if config.weight is None:
        return
    room = OBJECTIVES.load(config.named)
    if room.PAIRS and config.accumulate > 1:
        yield (
            f"objective {config.named} compares all images of a step with each other, so a step cannot be cut: leave "
            "--accumulate out, or give a smaller --batch-size"
        )
    if room.PAIRS and config.batch_size < 2:
        yield f"objective {config.named} compares images of a step with each other: give a --batch-size of at least 2"
    try:
        widths = tuple(vector_of(store, config.teacher_array).tail[0] for store in stores)
        guidance = Guidance(likelihood=likelihood(dataset.task), prec=config.weight)
        dimensions = Dimensions(2, widths, dataset.task, max(1, len(dataset.class_names)))
        with torch.device("meta"):
            built = guided(config.named, dimensions, guidance, config.objective_option)
    except ConfigError as refused:
        yield from refused.problems
        return
    if config.prior_freq > 1 and not built.parameter_groups():
        yield f"prior_freq: objective {config.named} learns nothing itself, so in most steps nothing would be trained"


def _views(stores: Sequence[FeatureStore], config: TrainStudentConfig) -> Views | None:
    """Return the views that the student is to see with its teachers; None where it sees others, or the clean picture.

    Raises:
        ConfigError: the stores keep none, or not the same.
    """
    if config.augment != SEEN_AS_CACHED:
        return None
    kept = [(store.header.views, store.header.backbone.get("views")) for store in stores]
    if not kept or any(one != kept[0] for one in kept) or kept[0][0] < 2:
        told = "; ".join(f"{store.path} keeps {count} view(s)" for store, (count, _) in zip(stores, kept, strict=True))
        raise ConfigError([
            f"augment {SEEN_AS_CACHED} shows the student the views that every teacher keeps, and they keep not the same, or "
            f"the clean one alone ({told or 'there is no teacher'}). Extract them with equal --views and --augment; or give "
            "--augment crop, say, with which the teachers' rows are those of the clean picture"
        ])  # fmt: skip
    return Views.known_by(kept[0][0], stores[0].header.backbone)


def rows_of(dataset: ImageDataset, config: TrainStudentConfig) -> Rows:
    """Return the labelled rows of each split: the data's own, or drawn as the published code draws them."""
    rows = {split: labelled(dataset, split) for split in SPLITS}
    target, ids = np.asarray(dataset.table.target), [str(name) for name in dataset.table.sample_id]
    if not config.reference:
        classes = target[rows["train"]] if dataset.task == "classification" else np.zeros(len(rows["train"]), np.int64)
        return rows | {"train": part_of(rows["train"], classes, ids, config.train_frac, config.split_seed)}
    whole = np.sort(np.concatenate([rows["train"], rows["val"]]))
    train, val = (np.array(part, np.int64) for part in published_split(len(whole), config.train_frac, use_val=True))
    return {"train": np.sort(whole[train]), "val": np.sort(whole[val]), "test": rows["test"]}
