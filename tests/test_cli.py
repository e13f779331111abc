"""The command line answers fast, lists every verb, and explains what it refuses."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

import cli


def test_help_loads_no_torch():
    code = "import sys, cli; cli.main(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_lists_every_verb():
    shown = CliRunner().invoke(cli.main, ["--help"]).output

    assert all(verb in shown for verb in cli.VERBS)


def test_every_option_of_every_verb_has_help():
    for verb in cli.VERBS:
        command = cli.main.get_command(None, verb)
        bare = [p.name for p in command.params if getattr(p, "help", "given") == ""]

        assert not bare, f"{verb}: {bare}"


def test_an_unknown_verb_is_answered_with_the_nearest():
    result = CliRunner().invoke(cli.main, ["extract-feature"])

    assert result.exit_code == 2
    assert "Did you mean 'extract-features'?" in result.output


def test_all_problems_of_a_call_are_told_at_once():
    call = ["extract-features", "digits", "--backbone", "demo", "--batch-size", "0", "--dtype", "int3"]

    result = CliRunner().invoke(cli.main, call)

    assert result.exit_code == 2
    assert "dtype must be one of float16, bfloat16, float32, got 'int3'" in result.output
    assert "out is required" in result.output


def test_an_interrupt_ends_with_75_also_where_nothing_knows_of_scores(monkeypatch):
    def stopped(config):
        raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "logme", raising=False)
    monkeypatch.setattr("pipelines.inspect.list_names", stopped)

    result = CliRunner().invoke(cli.main, ["list", "heads"])

    assert result.exit_code == 75, result.output
    assert "goes on where it stopped" in result.output
