"""What users say of a training on images: the data, the backbone, what of it learns, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featurecache.checks import check
from featurecache.datasets import Fingerprint
from featurecache.decoders import Decoder
from featurecache.features import Task
from pipelines.training.settings import Learning, Optimising


@dataclass(frozen=True, kw_only=True)
class OnImages(Optimising):
    """What every training on images lets users say: the data, how it is seen, and for how long."""

    data: str
    """Data set: a folder, a .zip or .tar of one, a manifest, or NAME[:ARGUMENT] such as digits."""
    out: Path
    """Run folder to write."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step, of all processes together."""
    accumulate: int = 1
    """Parts into which a step is cut, one after the other: less memory, the same gradient."""
    standardise: bool = True
    """Subtract the mean of the training features before training and divide by their deviation, where the head takes that."""
    augment: str = "none"
    """How training sees an image, anew in every epoch: none, flip, crop or strong as cached views are drawn, or timm."""
    augment_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of timm's augmentation k=v: scale, hflip, color_jitter, auto_augment=rand-m9-mstd0.5, re_prob, ...; several times."""
    backbone_option: Mapping[str, Any] = field(default_factory=dict)
    """Architecture argument k=v, e.g. pad_type=same; may be given several times."""
    transform: Mapping[str, Any] = field(default_factory=dict)
    """Preprocessing override k=v: mean, std, size, crop, interpolation; may be given several times."""
    image_size: int | None = None
    """Side of the input in pixels; default: the model's own."""
    device: str = "cpu"
    """Device to train on: cpu, cuda, cuda:1, auto. Under torchrun, cuda is one GPU for each process."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32"] = "auto"
    """Arithmetic of the backbone; auto is fp32 on a CPU and bf16 on a GPU that has it. fp32 is without TF32."""
    split_seed: int = 0
    """Seed of the automatic split, where the data brings none."""
    task: Task | None = None
    """How the labels of a manifest are read: classification, multilabel or regression; default: as they look."""
    fingerprint: Fingerprint = "sizes"
    """What recognises the data besides ids and labels: sizes of the files, content (reads them all once), or names."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: stop the run, or be left out (all images are then decoded once before training)."""
    decoder: Decoder = "pillow"
    """What decodes JPEG files: pillow, to the bit as timm does, or simplejpeg, faster and nearly the same; see the docs."""
    decode_threads: int | None = None
    """Threads that decode images; default: one for each core."""
    workers: int = 0
    """Processes that decode and augment images ahead of the model; 0: threads."""
    test_split: str | None = None
    """Split to measure on, e.g. val: rows to choose on are then held out of train; default: test, or val where there is no test."""
    seed: int = 0
    """Seed of the start of head and method, and of dropout."""
    data_seed: int = 0
    """Seed of the order of the images and of their augmentation."""

    def __post_init__(self) -> None:
        check(*self.conditions())

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        return [
            *super().conditions(),
            (self.epochs >= 0, f"epochs must not be negative, got {self.epochs}"),
            (self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}"),
            (
                self.accumulate > 0 and self.batch_size % self.accumulate == 0,
                f"accumulate must be positive and divide batch_size, got {self.accumulate} of {self.batch_size}",
            ),
            (self.image_size is None or self.image_size > 0, f"image_size must be positive, got {self.image_size}"),
            (self.workers >= 0, f"workers must not be negative, got {self.workers}"),
            (
                self.decode_threads is None or self.decode_threads > 0,
                f"decode_threads must be positive, got {self.decode_threads}",
            ),
            (
                not self.workers or self.decode_threads is None,
                "workers are processes that decode instead of threads: give workers or decode_threads, not both",
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class TrainOnlineConfig(Learning, OnImages):
    """Train a head on images through a backbone, and of the backbone what a method trains."""

    backbone: str
    """Backbone: timm:NAME, open_clip:ARCH/PRETRAINED, demo, or python:package.module:function."""
    peft: str = "none"
    """What of the backbone is trained: `featurecache list peft` names the methods; none and linear train the head alone."""
    peft_option: Mapping[str, Any] = field(default_factory=dict)
    """Option of the method k=v, e.g. layer_decay=0.75 of full; may be given several times."""
    backbone_lr: float | None = None
    """Learning rate of what is trained in the backbone, at the start; default: the method's own."""
    drop_path: float = 0.0
    """Probability with which training skips the last block for an image, rising from 0 in the first one (timm's)."""
    init_from: Path | None = None
    """Finished run to start from, of train-head or train-online: its head, and what it trained in its backbone; neither need be named again."""
    load_published: tuple[str, Path] | None = None
    """FAMILY FILE: a checkpoint of the code of a paper whose values the method (peft, ila, dtl) or the head (lfa) starts from."""
    recipe: str | None = None
    """FILE/ROW: settings of a paper, where nothing else is said; its lists are a sweep. `featurecache list recipes` names them."""
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """Train every combination and choose by validation, then train on train and validation and test once: rate=1e-3,1e-2 (lr and
    backbone_lr), lr, backbone_lr, weight_decay, drop_path, seed, or an option as peft.rank=4,8 or head.dropout=0,0.1; several times."""
    jobs: int = 1
    """Cells of a sweep that train at once, each in a process with its share of the cores, or all on one GPU."""
    train_on: Literal["train", "train+val"] = "train"
    """Splits that are trained on; without a validation split the last epoch is kept."""
    test: bool = True
    """Measure the test split; a setting that is still to be chosen has not seen it."""
    rows: int | None = None
    """Train on at most so many images, of each class its share, drawn by --split-seed; default: all."""
    weights: str | None = None
    """Weights file (.safetensors, or a state dict), or random:SEED, instead of a download."""
    norm: Literal["final", "none"] = "final"
    """final: layers of the final width pass through the model's final norm; none: raw stream."""
    prompts: str = "auto"
    """What CLIP's text side says of the class names, for heads that read it; as in extract-features."""

    def conditions(self) -> list[tuple[bool, str]]:
        """Return what must hold of the settings, each with what is said where it does not."""
        rate = self.backbone_lr
        return [
            *super().conditions(),
            (
                not (self.load_published and self.init_from),
                "load_published and init_from both say where it starts: give one of them",
            ),
            (self.rows is None or self.rows > 0, f"rows must be positive, got {self.rows}"),
            (rate is None or 0 < rate < math.inf, f"backbone_lr must be positive and finite, got {rate}"),
            (self.jobs > 0, f"jobs must be positive, got {self.jobs}"),
            (
                self.jobs <= 1 or bool(self.sweep),
                "jobs are cells of a sweep, and there is none: add --sweep NAME=V1,V2",
            ),
            (0 <= self.drop_path < 1, f"drop_path must lie in [0, 1), got {self.drop_path}"),
        ]

    @staticmethod
    def expanded(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was given, with what the run it starts from and its recipe say of all else; what was given wins.

        Options and axes are joined.

        Raises:
            RunError: there is no such run.
            UnknownNameError, ConfigError: there is no such recipe, or it means nothing.
        """
        if given.get("init_from"):
            from pipelines.online.settled import settled_by

            given = {**given, **settled_by(Path(given["init_from"]), given)}
        if not given.get("recipe"):
            return dict(given)
        from pipelines.recipes import recipe

        found = recipe(str(given["recipe"]), TrainOnlineConfig)
        settings = {
            **found.settings,
            **(_both(found.settings["rate"], found.settings) if "rate" in found.settings else {}),
        }
        settings.pop("rate", None)
        said = {*given, *(f"{kind}.{name}" for key, kind in OPTIONS for name in given.get(key, {}))}
        said |= {"rate"} if said & {"lr", "backbone_lr"} else set()
        axes = {name: values for name, values in found.axes.items() if name not in said}
        joined = {
            key: {**found.settings.get(key, {}), **given.get(key, {})}
            for key in ("peft_option", "head_option", "augment_option", "transform")
        }
        return {**settings, **given, **joined, "sweep": {**axes, **given.get("sweep", {})}}


OPTIONS = (("peft_option", "peft"), ("head_option", "head"))
"""Fields of options, and what names of their axes begin with."""


def _both(rate: float, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of head and method, of which the latter is there only where something learns."""
    learns = settings.get("peft", "none") not in ("none", "linear")
    return {"lr": rate, "backbone_lr": rate} if learns else {"lr": rate}
