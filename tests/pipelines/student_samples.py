"""Small trainings of students for tests: generated pictures, teachers with random weights, a tiny student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.train_student import TrainStudentConfig
from save_features import SaveFeaturesConfig
from save_features import run as extract

TINY: dict[str, Any] = {"student": "timm:test_vit", "from_scratch": True, "image_size": 32}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "decode_threads": 1}


def teacher(data: Path, out: Path, *, seed: int = 7, backbone: str = "timm:test_vit", **changes: Any) -> Path:
    """Extract a teacher of random weights."""
    settings = {"layers": "last", "image_size": 32, "quiet": True, **changes}
    extract(SaveFeaturesConfig(data=str(data), out=out, backbone=backbone, weights=f"random:{seed}", **settings))
    return out


def student(data: Path, out: Path, *teachers: Path, **changes: Any) -> TrainStudentConfig:
    """Return the config of a short training."""
    return TrainStudentConfig(data=str(data), out=out, teacher=teachers, **{**TINY, **SHORT, "quiet": True, **changes})


def words(data: Path, out: Path, *teachers: Path, **changes: Any) -> list[str]:
    """Return the same as a command line."""
    flags = ["--from-scratch"]
    options = {k: v for k, v in {**TINY, **SHORT, **changes}.items() if k != "from_scratch"}
    named = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    taught = [word for store in teachers for word in ("--teacher", str(store))]
    return ["train-student", str(data), "--out", str(out), *flags, *taught, *named]
