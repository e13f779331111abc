"""The command line answers fast, lists every verb, and explains what it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import cli
from featurecache.declarations import read_config
from featurecache.options import _read_value, parameters, read_call


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


def helped(verb: str) -> str:
    return CliRunner().invoke(cli.main, [verb, "--help"], terminal_width=200).output


def test_help_has_what_is_required_first_the_rest_below_headings_and_an_example():
    shown = helped("train-head")

    places = [
        shown.index(f"\n{heading}:\n") for heading in ("Arguments", "Required", "Model", "Training", "Speed", "General")
    ]
    assert places == sorted(places)
    assert shown.index("--out PATH") < shown.index("\nModel:\n")
    assert shown.count("[required]") == 2  # STORE and --out
    assert shown.rstrip().endswith(f"featurecache train-head {cli.EXAMPLES['train-head']}")


def test_help_of_no_verb_shows_a_default_in_pythons_words():
    for verb in cli.VERBS:
        shown = helped(verb)

        assert "('" not in shown and "[default: None]" not in shown and "[default: True]" not in shown, verb
        assert "\nExample:\n  featurecache " in shown, verb


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-head", "s.zarr", "--out", "r", "--lr", "fast"], "--lr must be a number or nothing, got 'fast'"),
        (["train-head", "s.zarr", "--out", "r", "--batch-size", "2.5"], "--batch-size must be an integer, got '2.5'"),
        (
            ["train-head", "s.zarr", "--out", "r", "--class-weights", "some"],
            "--class-weights must be one of none, balanced",
        ),
        (["train-head", "s.zarr", "--out", "r", "--head-option", "=3"], "--head-option takes NAME=VALUE, got '=3'"),
        (["train-head", "s.zarr", "--out", "r", "--head-option", "k=[1"], "--head-option takes NAME=VALUE, got 'k=[1'"),
        (["train-head", "s.zarr"], "--out is required: Run folder to write"),
        (["train-head", "--out", "r"], "store is required"),
        (["train-head", "s.zarr", "--out"], "Option '--out' requires an argument"),
        (["train-head", "s.zarr", "t.zarr", "--out", "r"], "unexpected extra argument"),
        (["train-head", "s.zarr", "--outt", "r"], "No such option"),
        (["train-head", "s.zarr", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_call_that_cannot_be_read_ends_with_2_and_names_the_option(arguments, said):
    result = CliRunner().invoke(cli.main, arguments)

    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: many", "--epochs must be an integer or nothing, got 'many'"),
        ("epocs: 3", "train-head has no option 'epocs'. Did you mean 'epochs'?"),
        ("- 3", "must hold one NAME: VALUE a line"),
        ("epochs: [3", "cannot be read as YAML"),
    ],
)
def test_a_settings_file_that_cannot_be_read_ends_with_2_too(tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)

    result = CliRunner().invoke(
        cli.main, ["train-head", "s.zarr", "--out", "r", "--config", str(tmp_path / "run.yaml")]
    )

    assert result.exit_code == 2
    assert said in result.output


def test_what_can_be_read_but_not_done_ends_with_1(tmp_path):
    refused = CliRunner().invoke(cli.main, ["train-head", "s.zarr", "--out", "r", "--batch-size", "0"])
    absent = CliRunner().invoke(cli.main, ["train-head", str(tmp_path / "s.zarr"), "--out", str(tmp_path / "r")])

    assert (refused.exit_code, absent.exit_code) == (1, 1)
    assert "batch_size must be positive, got 0" in refused.output


def test_every_verb_that_computes_takes_threads():
    computing = {verb for verb in cli.VERBS if "--threads" in helped(verb)}

    assert computing >= {
        "extract-features", "plan", "logme", "train-head", "train-online", "train-student", "compare-peft", "run-protocol",
        "leaks", "analyze", "predict", "evaluate", "export", "embed", "verify",
    }  # fmt: skip


def test_every_verb_can_be_quiet():
    assert [verb for verb in cli.VERBS if "--quiet" not in helped(verb)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("1:10", "1:10"), ("-1:30.5", "-1:30.5"), ("3", 3), ("true", True), ("", None), ("[1, 2]", [1, 2])],
)
def test_a_value_is_read_as_yaml_reads_it_but_is_no_time_of_day(text, value):
    assert _read_value(text) == value


def test_a_field_whose_name_python_keeps_is_given_without_its_dash(tmp_path, monkeypatch):
    (tmp_path / "made_config.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True, kw_only=True)\nclass MadeConfig:\n"
        '    """Made."""\n\n    from_: str\n    """Table to read."""\n'
    )
    (tmp_path / "settings.yaml").write_text("from: splits.csv\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = read_config("made_config", "MadeConfig")

    assert [option.opts for option in parameters(config)] == [["--from"]]
    assert read_call("made", config, {"from_": None}, str(tmp_path / "settings.yaml")) == {"from_": "splits.csv"}


def test_an_option_whose_name_python_keeps_is_said_and_read_from_yaml_without_its_dash(tmp_path):
    (tmp_path / "settings.yaml").write_text("from: splits.csv\n")

    by_option = CliRunner().invoke(cli.main, ["split", "x.zarr", "--from", "splits.csv", "--test", "0.2"])
    by_file = CliRunner().invoke(
        cli.main, ["split", "x.zarr", "--config", str(tmp_path / "settings.yaml"), "--test", "0.2"]
    )

    assert "--from " in CliRunner().invoke(cli.main, ["split", "--help"]).output
    for result in (by_option, by_file):
        assert result.exit_code == 1 and "--from says which samples are the test" in result.output
