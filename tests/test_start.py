"""What needs no model needs no torch: help, typos, lists, and what runs and stores have written down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cli
from pipelines.train_head import TrainHeadConfig, run
from tests.pipelines.stores import made_store

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import sys, cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = [name for name in ("torch", "torchvision", "timm", "open_clip", "sklearn") if name in sys.modules]
print("status", status, heavy, file=sys.stderr)
"""


def last_line(*arguments: str | Path) -> str:
    """Return the exit status and the large libraries that a command loaded, as its last line on stderr tells them."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return ended.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, its scores, and a run on it."""
    folder = tmp_path_factory.mktemp("start")
    store = made_store(folder / "x.zarr")
    run(TrainHeadConfig(store=store, out=folder / "run", head="ridge", quiet=True))
    subprocess.run([sys.executable, "-m", "cli", "logme", str(store)], check=True, capture_output=True, cwd=ROOT)
    return folder


def test_the_help_of_every_verb_loads_nothing_large():
    code = """
import sys, cli
from click.testing import CliRunner
for verb in cli.VERBS:
    for word in ("--help", "-h"):
        assert CliRunner().invoke(cli.main, [verb, word]).exit_code == 0, verb
print([name for name in ("torch", "numpy", "zarr") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian-head"],
        ["train-head", "x.zarr", "--haed", "lfa"],
        ["train-head", "x.zarr", "--out", "run", "--epochs", "many"],
        ["train-online", "photos", "--out", "run"],
        ["extract-features", "photos", "--backbone", "demo", "--out", "x.zarr", "--dtype", "float15"],
        ["train-head", "x.zarr", "--out", "run", "--head-option", "start"],
        ["list", "headss"],
        ["predict"],
    ],
    ids=" ".join,
)
def test_a_call_that_cannot_be_read_ends_with_2_and_without_torch(arguments):
    assert last_line(*arguments) == "status 2 []"


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "peft", "lora"],
        ["list", "protocols", "few-shot"],
        ["list", "objectives", "aft"],
    ],
    ids=" ".join,
)
def test_lists_load_no_torch(arguments):
    assert last_line(*arguments) == "status 0 []"


def test_what_is_kept_of_runs_and_stores_is_told_without_torch(place):
    told = {
        "run": last_line("info", place / "run"),
        "store": last_line("info", place / "x.zarr"),
        "scores": last_line("logme", place / "x.zarr"),
        "report": last_line("report", place / "run", "--out", place / "report.html"),
    }

    assert told == dict.fromkeys(told, "status 0 []")


def test_what_loads_torch_says_so_first_and_under_quiet_nothing(place):
    command = [sys.executable, "-m", "cli", "train-head", str(place / "x.zarr"), "--head", "ridge"]

    loud = subprocess.run([*command, "--out", str(place / "a")], capture_output=True, text=True, check=True, cwd=ROOT)
    quiet = subprocess.run(
        [*command, "--out", str(place / "b"), "--quiet"], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert loud.stderr.splitlines()[0] == "train-head: loading PyTorch"
    assert quiet.stderr == ""


def test_every_example_can_be_read():
    from featurecache.options import read_call

    for verb in cli.VERBS:
        command = cli._command(verb)
        program, name, *arguments = command._example.split()
        assert (program, name) == ("featurecache", verb)
        values = command.make_context(verb, arguments).params
        file = values.pop("config_file")
        values.pop("as_json")

        read_call(verb, cli.read_config(*cli.VERBS[verb][0].split(":")[:2]), values, file)
