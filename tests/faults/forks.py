"""The command line without its six seconds of imports: one process imports everything and forks for every call.

Each call is a process of its own, to be killed and waited for; its parent has never computed anything, so that no thread
of a library is lost in the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "save_features", "featurecache.backbones.timm", "featurecache.backbones.demo", "featurecache.datasets.image_folder",
    "featurecache.stores.zarr", "featurecache.stores.hdf5", "featurecache.stores._merging", "pipelines.merge",
    "pipelines.delete", "pipelines.verify", "pipelines.gc", "pipelines.maintain", "pipelines.train_online", "heads.lfa",
    "pipelines.train_student", "featurecache.peft.full", "pipelines.rank", "pipelines.train_head", "pipelines.embed",
    "pipelines.predict", "heads.linear", "pipelines.scores.logme", "pipelines.scores.h_score",
    "featurecache.backbones.open_clip", "tests.faults.phases",
)  # fmt: skip
"""So that a fork has nothing left to import."""


class Forks:
    """Starts command lines, or whatever else `program` serves; to be closed."""

    def __init__(self, program: str = "from tests.faults.forks import serve; serve()") -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(
        self,
        arguments: list[str],
        output: Path,
        *,
        largest_file: int = -1,
        always: bool = False,
        environment: dict[str, Any] | None = None,
        happens: Mapping[str, int | str] | None = None,
    ) -> int:
        """Run the verb with these arguments; return its process. What it prints goes to the file `output`.

        `largest_file` is the number of bytes to which a file may grow, as on a full disk; `always` writes where a training
        stands after every step, and not after half a minute; `environment` is added to that of the process; `happens` says
        what comes before which phase of a small run, see tests/faults/phases.py.
        """
        added = {name: str(value) for name, value in (environment or {}).items()}
        limits = {"largest_file": largest_file, "always": always, "environment": added, "happens": happens}
        return self._ask({"arguments": arguments, "output": str(output), **limits})

    def wait(self, process: int) -> int:
        """Return how a process ended: its exit code, or minus the signal that ended it."""
        return self._ask({"wait": process})

    def _ask(self, call: dict[str, Any]) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(call) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        self._parent.communicate()


def serve() -> None:
    """Answer calls of the command line from stdin until it ends."""
    import cli

    for module in IMPORTED:
        importlib.import_module(module)
    serve_calls(cli.main)


def serve_calls(main: Callable[[list[str]], None]) -> None:
    """Answer calls of `main` from stdin until it ends, each in a fork."""
    for line in sys.stdin:
        call = json.loads(line)
        if "wait" in call:
            print(os.waitstatus_to_exitcode(os.waitpid(call["wait"], 0)[1]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (call["largest_file"], -1))
            os.environ.update(call["environment"])
            if call["always"]:
                importlib.import_module("pipelines.training.resuming").SECONDS = 0.0
            if call["happens"] is not None:
                importlib.import_module("tests.faults.phases").prepare(call["happens"])
            _call(main, call["arguments"], Path(call["output"]))
        print(process, flush=True)


def _call(main: Callable[[list[str]], None], arguments: list[str], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    code = 1
    try:
        main(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def commits(store: Path) -> int:
    """Return the lines of a store's ledger, 0 where there is none yet."""
    ledger = store / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def until(condition: Callable[[], bool], process: int, seconds: float = 60) -> None:
    """Wait until `condition` holds, or the process has ended, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and not _has_ended(process):
        time.sleep(0.001)


def _has_ended(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
