"""What an online training works on: data set, backbone with its method, features as the head reads them; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.backbones import Backbone, BackboneOptions, load_backbone
from featurecache.checks import check
from featurecache.datasets import ImageDataset, open_dataset
from featurecache.decoders import check_decoder
from featurecache.devices import default_precision
from featurecache.errors import BackboneError, UnreadableSampleError
from featurecache.features import Header
from featurecache.peft import PEFT, Adapted, adapt, load_published, published_families
from featurecache.prompting import templates_asked
from featurecache.registry import plain
from featurecache.requests import header_of, request_of, requested
from featurecache.sources.cached import is_labelled
from featurecache.sources.images import check_feed
from featurecache.sources.live import FORWARD, HeldImages, LearningSource, LiveImages, LiveSource
from featurecache.views import Views
from heads import HEADS, HeadSpec
from heads._checkpoint import refusals
from heads._published import Published
from pipelines._arrays import EMBEDDING, compare_live, select_arrays
from pipelines._roles import Roles, read_data_in_roles
from pipelines._rows import share_of, teachable
from pipelines.online.settings import TrainOnlineConfig
from pipelines.online.starting import Start, start_of
from pipelines.training.distributed import Ranks

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """What a run trains, and on what."""

    dataset: ImageDataset
    backbone: Backbone
    adapted: Adapted
    header: Header
    """Of the store that would hold all that a head could read here."""
    spec: HeadSpec
    """Still without statistics, which cost a pass over the images."""
    start: Start | None
    published: Published | None = None
    """Where the head begins; values of a method are in the backbone already."""
    rates: tuple[float, float]
    """Of the head, and of the method."""
    roles: Roles | None = None
    """Which splits are measured and chosen on, where these are not test and val."""
    rows: Mapping[str, npt.NDArray[np.int64]] | None = None
    """Split -> the rows it has here; None: all that are labelled."""
    views: Views | None = None
    """Drawn views that training sees, and no others; None: as `augment` says, anew in every epoch."""
    held: HeldImages | None = None
    """Clean pictures that are decoded already."""


def planned(config: TrainOnlineConfig, dataset: ImageDataset | None = None) -> Plan:
    """List the images (or take the data set that is open), build the model with its method, and say what the head will read.

    Raises:
        ConfigError: lists every reason why this cannot be trained.
        UnknownNameError, DatasetError, BackboneError, RunError: as what they name.
    """
    check_decoder(config.decoder)
    head, method = HEADS.load(config.head), PEFT.load(config.peft)
    roles: Roles | None = None
    if dataset is None:
        dataset, roles = read_data_in_roles(dataset_of(config), config.test_split)
    backbone = load_backbone(config.backbone, backbone_options(config))
    start = start_of(config.init_from, config, backbone.identity, dataset) if config.init_from else None
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted = start.adapted_in(backbone) if start else adapt(config.peft, backbone.module, config.peft_option)
    published = _published(config, adapted)
    backbone = replace(backbone, dim=backbone.dim + adapted.wider)
    header = _header(config, dataset, backbone, head.CONSUMES)
    layers = config.layers or (EMBEDDING if adapted.wider and head.CONSUMES == "last" else None)
    arrays, combine = select_arrays(header, head.CONSUMES, layers, config.tokens, compare_live(backbone))
    spec = HeadSpec(
        shapes={name: header.array(name).tail for name in arrays}, num_classes=max(1, len(header.class_names)),
        task=header.task, combine=combine, constants=_constants(backbone, header, getattr(head, "CONSTANTS", ())),
    )  # fmt: skip
    classes, seen = (
        dataset.task == "classification",
        np.asarray(dataset.table.target)[rows_of(dataset, config)["train"]],
    )
    need = f"classes, but {config.data} holds a {dataset.task} task"
    check(
        *teachable(seen, dataset.task, config.data),
        (classes or config.class_weights == "none", f"class_weights {config.class_weights} needs {need}"),
        (classes or not config.label_smoothing, f"label_smoothing needs {need}"),
        *((False, problem) for problem in refusals(config.head, spec, config.head_option, published)),
        *((False, problem) for problem in _needless(config, adapted, published)),
        (
            not adapted.wider or list(arrays) == [EMBEDDING],
            f"--peft {config.peft} speaks through the embedding alone, and --head {config.head} would read "
            f"{', '.join(arrays)}. Give --layers embedding, with a head that reads one vector, such as linear",
        ),
    )
    check_feed(backbone, dataset, workers=config.workers, decoder=config.decoder)
    if start is not None:
        start.check_spec(spec)
    learns = config.backbone_lr or method.LEARNING_RATE
    rates = (config.lr or head.LEARNING_RATE or learns, learns)
    return Plan(
        dataset=dataset, backbone=backbone, adapted=adapted, header=header, spec=spec, start=start, published=published,
        rates=rates, roles=roles,
    )  # fmt: skip


def dataset_of(config: TrainOnlineConfig) -> ImageDataset:
    """Open the data set that the config names."""
    return open_dataset(config.data, split_seed=config.split_seed, task=config.task, fingerprint=config.fingerprint)


def _published(config: TrainOnlineConfig, adapted: Adapted) -> Published | None:
    """Set a method to published values, or return those that the head begins at."""
    if config.load_published is None:
        return None
    family, file = config.load_published
    if plain(family) not in published_families():
        return Published.read(family, file)
    if adapted.trainable:
        load_published(adapted, family, file)
    return None


def backbone_options(config: TrainOnlineConfig) -> BackboneOptions:
    """Return how the config wants its backbone built; drop path belongs to the architecture."""
    device = torch.device(config.device)
    drop = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    return BackboneOptions(
        weights=config.weights, architecture={**config.backbone_option, **drop}, transform=config.transform,
        image_size=config.image_size, norm=config.norm, device=config.device,
        precision=default_precision(device) if config.precision == "auto" else config.precision,
    )  # fmt: skip


def _needless(config: TrainOnlineConfig, adapted: Adapted, published: Published | None) -> Iterator[str]:
    """Yield what says nothing where nothing of the backbone is trained."""
    if adapted.trainable:
        return
    if config.drop_path:
        yield f"--drop-path drops branches of a backbone that learns, and --peft {config.peft} trains none of it"
    if config.backbone_lr is not None:
        yield f"--backbone-lr is the rate of what learns in a backbone, and --peft {config.peft} trains none of it"
    if config.load_published and published is None:
        yield f"--load-published brings what a method learned, and --peft {config.peft} trains nothing of the backbone"


def _header(config: TrainOnlineConfig, dataset: ImageDataset, backbone: Backbone, consumes: str) -> Header:
    many = consumes == "tokens" and config.tokens == "auto" and "all" in backbone.tokens
    return header_of(
        backbone, dataset, requested(backbone, "all", "all" if many else config.tokens), dtype="float32",
        batch_size=FORWARD, views=Views(), decoder=config.decoder,
        prompts=templates_asked(backbone, dataset, config.prompts, None),
    )  # fmt: skip


def _constants(backbone: Backbone, header: Header, needed: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Return the arrays of the classes that a head needs.

    Raises:
        BackboneError: it has no text side, or prompts are turned off.
    """
    if not needed:
        return {}
    if backbone.text is None or not header.prompts:
        raise BackboneError(
            f"this head needs {', '.join(needed)}, and {backbone.name} says nothing of class names here. Name a model with "
            "a text side, such as open_clip:ViT-B-32/openai, and give --prompts; or another --head."
        )
    found = {**backbone.text.features(header.class_names, header.prompts), **backbone.text.space()}
    return {name: found[name].float() for name in needed if name in found}


def labelled(dataset: ImageDataset, split: str) -> npt.NDArray[np.int64]:
    """Return the labelled rows of a split, ascending."""
    rows = np.flatnonzero(np.asarray(dataset.table.split) == split)
    return rows[is_labelled(np.asarray(dataset.table.target)[rows])]


def rows_of(dataset: ImageDataset, config: TrainOnlineConfig) -> dict[str, npt.NDArray[np.int64]]:
    """Return the labelled rows of every split as the config wants them trained on and measured."""
    rows = {split: labelled(dataset, split) for split in SPLITS}
    if config.rows is not None:
        targets = np.asarray(dataset.table.target)
        rows["train"] = share_of(rows["train"], targets, config.rows, dataset.task, config.split_seed)
    if config.train_on == "train+val":
        rows["train"] = np.sort(np.concatenate([rows["train"], rows["val"]]))
        rows["val"] = rows["val"][:0]
    return rows if config.test else {**rows, "test": rows["test"][:0]}


@contextmanager
def images_of(plan: Plan, config: TrainOnlineConfig, ranks: Ranks) -> Iterator[LiveImages]:
    """Yield the images of the data set; their threads or workers end with the block."""
    part = math.ceil(config.batch_size / config.accumulate / ranks.count)
    images = LiveImages(
        plan.backbone, plan.dataset, augment=config.augment, options=config.augment_option, decoder=config.decoder,
        threads=config.decode_threads, workers=config.workers, batch=min(FORWARD, part), views=plan.views,
        held=plan.held,
    )  # fmt: skip
    at_once = True
    try:
        yield images
        at_once = False
    finally:
        images.close(at_once=at_once)


def sources_of(
    plan: Plan, images: LiveImages, config: TrainOnlineConfig, ranks: Ranks
) -> tuple[dict[str, LiveSource], dict[int, str]]:
    """Return (split -> its labelled rows as this process computes them, row -> why it is left out).

    Raises:
        UnreadableSampleError: an image cannot be read, and is not to be left out; told when it is met.
    """
    rows = dict(plan.rows or rows_of(plan.dataset, config))
    skipped: dict[int, str] = {}
    if config.on_error == "skip":
        skipped = ranks.by_first(lambda: images.unreadable(np.sort(np.concatenate(list(rows.values())))))
        rows = {split: np.setdiff1d(found, list(skipped)) for split, found in rows.items()}
        if not len(rows["train"]):
            raise UnreadableSampleError("every training image", next(iter(skipped.values())))
    arrays = {name: plan.header.array(name) for name in plan.spec.shapes}
    given: dict[str, Any] = {
        "arrays": plan.spec.shapes, "request": request_of(plan.header.tokens, arrays.values()),
        "constants": plan.spec.constants, "part": ranks.part,
    }  # fmt: skip
    sources = {split: LiveSource(plan.backbone, images, found, **given) for split, found in rows.items()}
    if plan.adapted.trainable:
        head, method = plan.rates
        sources["train"] = LearningSource(
            plan.backbone, images, rows["train"], **given, adapted=plan.adapted, lr_factor=method / head
        )
    return sources, skipped


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Let gradients be computed in the arithmetic of the forward pass: TF32 is off unless it is that."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
