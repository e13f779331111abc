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

from featurecache.checks import Config
from featurecache.devices import default_precision, environment
from featurecache.reports import Displayed, Table
from featurecache.threads import FEW_ROWS, VARIABLES, all_threads, asked_threads, cores, cpu_quota, limited_threads

OURS = ("cli", "featurecache", "heads", "logme", "pipelines", "save_features")
SMALL, LARGE = 256, 16384
"""Rows of products by which threads are compared."""
ROOM_BYTES, SLOW_SYNC, FEW_FILES = 2 * 2**30, 0.1, 1024
"""Free bytes, seconds of an fsync, and open files below or above which work is going to hurt."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
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
class DoctorReport(Displayed):
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
    threads, quota = torch.get_num_threads(), cpu_quota()
    few = "torch may use fewer threads than there are cores: see OMP_NUM_THREADS" if threads < cores() else ""
    granted = "" if quota is None else f" (a quota of {quota:g} of {os.cpu_count()})"
    yield Finding("cpu", f"{cores()} cores{granted}, torch uses {threads}", few)
    yield _threads()
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        free, total = torch.cuda.mem_get_info(device)
        text = f"{torch.cuda.get_device_name(device)}, {_gib(free)} of {_gib(total)} free, {default_precision(device)}"
        yield Finding(f"cuda:{number}", text, "another process holds most of it" if free < total / 2 else "")
    if not torch.cuda.is_available():
        yield Finding("cuda", f"none that torch {torch.__version__} can use; everything runs on the CPU")


def _threads() -> Finding:
    """Measure what several threads bring to a large product, and what they cost a small one."""
    asked, several = asked_threads(), all_threads()
    rule = (
        f"one up to {FEW_ROWS:,} rows, {several} for more"
        if asked is None
        else f"{asked}, as {' or '.join(VARIABLES)} says"
    )
    if several == 1:
        return Finding("threads", rule)
    measured = {(rows, count): _product_seconds(rows, count) for rows in (SMALL, LARGE) for count in (1, several)}
    slower, faster = (measured[rows, several] / measured[rows, 1] for rows in (SMALL, LARGE))
    found = f"{rule}; with {several} a product of {SMALL} rows takes {slower:.1f} times the time of one thread, one of {LARGE} {faster:.1f}"
    busy = "several threads are no faster here, other work holds the cores: give --threads 1"
    return Finding("threads", found, busy if faster > 1.1 else "")


def _product_seconds(rows: int, threads: int) -> float:
    """Return the least seconds of some products of (rows, 256) with (256, 256)."""
    one, other, least = torch.ones(rows, 256), torch.ones(256, 256), float("inf")
    with limited_threads(threads):
        for _ in range(5):
            started = time.perf_counter()
            (one @ other).relu().sum()
            least = min(least, time.perf_counter() - started)
    return least


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
