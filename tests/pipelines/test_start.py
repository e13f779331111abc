"""Verbs that look at no image start without the libraries of models, whose import takes longer than what they do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cli

ROOT = Path(__file__).parents[2]
HEAVY = ("timm", "torchvision", "open_clip", "torch._dynamo")
PROGRAM = f"""
import contextlib, io, json, sys
import cli

found = {{}}
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(arguments, standalone_mode=False)
    found[" ".join(arguments)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(found))
"""
"""Runs command lines one after the other in this process; prints what each has found or left imported."""


def test_neither_the_help_of_any_verb_nor_a_verb_of_stores_and_heads_imports_a_library_of_models(
    digits_store, tmp_path
):
    store, run = str(digits_store), str(tmp_path / "run")
    calls = [
        *([verb, "--help"] for verb in cli.VERBS), ["list", "heads"], ["list", "peft"], ["info", store], ["logme", store],
        ["train-head", store, "--head", "ridge", "--out", run], ["info", run], ["evaluate", run, "--test", store],
        ["report", run, "--out", str(tmp_path / "report.html")], ["leaks", store], ["gc", str(tmp_path)],
        ["verify", store], ["convert", store, "--out", str(tmp_path / "copy.h5")],
    ]  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(calls)
    assert {call: names for call, names in found.items() if names} == {}
