"""The verb `doctor`: what this machine has for the work, what is wrong with it, and what to do."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from featurecache.devices import cores, default_precision, environment
from featurecache.reports import Table

OURS = ("cli", "featurecache", "heads", "logme", "pipelines", "save_features")
ROOM_BYTES, SLOW_SYNC, FEW_FILES = 2 * 2**30, 0.1, 1024
"""Free bytes, seconds of an fsync, and open files below or above which work is going to hurt."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Say what this machine has for the work, what is wrong with it, and what to do."""

    folder: Path = Path()
    """Where stores are to be written."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    advice: str = ""
    """What to do; empty where nothing is wrong."""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Everything that was looked at."""

    findings: list[Finding]

    def tables(self) -> list[Table]:
        """Return one row a finding."""
        bad = sum(bool(finding.advice) for finding in self.findings)
        rows = [(f.what, f.found, f.advice or "ok") for f in self.findings]
        return [Table("this machine", ("what", "found", "advice"), rows, (f"{bad} to look at" if bad else "all well",))]

    def json(self) -> list[dict[str, Any]]:
        """Return one entry a finding."""
        return [asdict(finding) for finding in self.findings]


def run(config: DoctorConfig) -> DoctorReport:
    """Look at Python, libraries, devices, memory and disk; nothing is downloaded and nothing stays."""
    return DoctorReport([*_programs(), *_devices(), *_memory(), *_disk(config.folder), *_downloads()])


def _programs() -> Iterator[Finding]:
    found = environment()
    yield Finding("python", f"{found['python']} on {found['machine']}")
    yield Finding("libraries", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    home = Path(__file__).resolve().parents[1]
    for name in OURS:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve() if spec and spec.origin else None
        if place is None or home not in place.parents:
            advice = "another file of that name hides ours: rename it, or run from another folder"
            yield Finding(f"module {name}", str(place), advice)


def _devices() -> Iterator[Finding]:
    threads = torch.get_num_threads()
    few = "torch may use fewer threads than there are cores: see OMP_NUM_THREADS" if threads < cores() else ""
    yield Finding("cpu", f"{cores()} cores, torch uses {threads}", few)
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        free, total = torch.cuda.mem_get_info(device)
        text = f"{torch.cuda.get_device_name(device)}, {_gib(free)} of {_gib(total)} free, {default_precision(device)}"
        yield Finding(f"cuda:{number}", text, "another process holds most of it" if free < total / 2 else "")
    if not torch.cuda.is_available():
        yield Finding("cuda", f"none that torch {torch.__version__} can use; everything runs on the CPU")


def _memory() -> Iterator[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    yield Finding("memory", _gib(page * os.sysconf("SC_PHYS_PAGES")))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", str(limit), "raise it: ulimit -n 4096" if 0 <= limit < FEW_FILES else "")


def _disk(folder: Path) -> Iterator[Finding]:
    name = str(folder.resolve())
    try:
        free = shutil.disk_usage(folder).free
        seconds = _sync_seconds(folder)
    except OSError as error:
        yield Finding(
            f"disk {name}", str(error.strerror or error), "stores cannot be written here: give another folder"
        )
        return
    yield Finding(f"disk {name}", f"{_gib(free)} free", "make room: see featurecache plan" if free < ROOM_BYTES else "")
    slow = "every commit waits for it: write to a local disk" if seconds > SLOW_SYNC else ""
    yield Finding("fsync there", f"{1000 * seconds:.1f} ms", slow)


def _sync_seconds(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 4096)
        started = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - started


def _downloads() -> Iterator[Finding]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    advice = "names without --weights FILE cannot be downloaded: unset HF_HUB_OFFLINE" if offline else ""
    yield Finding("downloaded weights", f"kept in {home}" + (", HF_HUB_OFFLINE is set" if offline else ""), advice)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
