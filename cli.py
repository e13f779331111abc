"""The command line: one verb per flow, its options made from the fields of the flow's Config.

A verb's module is imported when the verb is called, so that `featurecache --help` answers without torch.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import importlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

VERBS: dict[str, tuple[str, str]] = {
    "extract-features": (
        "save_features:SaveFeaturesConfig",
        "Run a frozen backbone once; keep every layer's features.",
    ),
    "plan": ("pipelines.plan:PlanConfig", "Say how many rows, bytes and minutes an extraction will take."),
    "logme": ("pipelines.rank:RankConfig", "Rank the layers of stores by how well they explain the labels."),
    "train-head": ("pipelines.train_head:TrainHeadConfig", "Train a light head on the features of a store."),
    "train-online": (
        "pipelines.train_online:TrainOnlineConfig",
        "Train a head on images, and of the backbone what a method trains.",
    ),
    "train-student": (
        "pipelines.train_student:TrainStudentConfig",
        "Train a small backbone on images, guided by the cached features of large ones.",
    ),
    "compare-peft": (
        "pipelines.compare_peft:ComparePeftConfig",
        "Compare the methods that train a backbone: accuracy, what they train, memory, time.",
    ),
    "run-protocol": (
        "pipelines.run_protocol:RunProtocolConfig",
        "Compare heads over the trials of a protocol, with intervals.",
    ),
    "leaks": ("pipelines.find_leaks:LeaksConfig", "Find test images that are near-duplicates of training images."),
    "analyze": ("pipelines.analyze:AnalyzeConfig", "Say how alike layers are, or where a model looks."),
    "report": ("pipelines.report:ReportConfig", "Write what runs came to as one self-contained page."),
    "predict": ("pipelines.predict:PredictConfig", "Say what a trained run sees in images."),
    "evaluate": ("pipelines.evaluate:EvaluateConfig", "Measure a trained run on other data, classes matched by name."),
    "export": ("pipelines.export:ExportConfig", "Write a run as one folder that predicts without this package."),
    "export-backbone": (
        "pipelines.export_backbone:ExportBackboneConfig",
        "Write the backbone of a run as a plain checkpoint, what was trained folded in.",
    ),
    "embed": ("pipelines.embed:EmbedConfig", "Write only the embeddings, as a .npy or .parquet file."),
    "demo": ("pipelines.demo:DemoConfig", "Run the whole pipeline once, with no download."),
    "data": ("pipelines.data:DataConfig", "Look at every image of a data set: counts, copies, what cannot be read."),
    "info": ("pipelines.inspect:InfoConfig:info", "Say what a store or a run holds."),
    "merge": ("pipelines.merge:MergeConfig", "Write one store of the rows of several."),
    "delete": ("pipelines.delete:DeleteConfig", "Take samples out of a store for good."),
    "gc": ("pipelines.gc:GcConfig", "Remove what stopped runs left behind in a folder or store."),
    "convert": (
        "pipelines.maintain:ConvertConfig:convert",
        "Write a store again as one HDF5 file, or as Zarr; checked.",
    ),
    "verify": ("pipelines.verify:VerifyConfig", "Say whether a store is what was written; mend it; compare two."),
    "doctor": ("pipelines.doctor:DoctorConfig", "Say what this machine has for the work, and what is wrong with it."),
    "list": ("pipelines.inspect:ListConfig:list_names", "List data sets, backbones, heads, methods and store formats."),
}
"""Verb -> (module:Config[:function], help). The function (default `run`) takes the config and returns a report."""

POSITIONAL = ("protocol", "data", "store", "stores", "run_folder", "runs", "inputs", "what")
"""Config fields that are arguments instead of options."""


class Verbs(click.Group):
    """Lists every verb from the table; imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _plain(cmd_name)
        return _command(name) if name in VERBS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from featurecache.registry import nearest

        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"There is no verb {args[0]!r}.{nearest(args[0], list(VERBS))} See featurecache --help.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; Ctrl-C and SIGTERM end it with 75, from its first import on."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"Interrupted. {_rest(ctx.invoked_subcommand)}", err=True)
            sys.exit(75)


BEGINS_AGAIN = ("predict", "merge", "convert", "demo")
"""Verbs that keep nothing of a run that was stopped: they write the whole of what they make, or none of it."""


def _rest(verb: str | None) -> str:
    """Return what the same command will do after an interrupt."""
    if verb and _plain(verb) in BEGINS_AGAIN:
        return "Nothing that was there is lost, and nothing half-made counts; the same command begins again."
    return "What is committed stays; the same command goes on where it stopped."


def _plain(name: str) -> str:
    return name.replace("_", "-")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _plain})
@click.version_option(package_name="featurecache")
def main() -> None:
    """Run frozen foundation models once; train everything else from what they gave."""


def _command(name: str) -> click.Command:
    place, summary = VERBS[name]
    module_name, config_name, act_name = f"{place}:run".split(":")[:3]
    module = importlib.import_module(module_name)
    config, act = getattr(module, config_name), getattr(module, act_name)

    def call(**values: Any) -> None:
        _call(act, config, values)

    extra: list[click.Parameter] = [
        click.Option(["--config", "config_file"], type=click.Path(exists=True, dir_okay=False),
                     help="YAML file with the same names; options given here win."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
    ]  # fmt: skip
    return click.Command(name, params=[*_parameters(config), *extra], callback=call, help=_help(config, summary))


def _help(config: Any, summary: str) -> str:
    """Return what the verb does, and what its arguments are: click shows no help for arguments."""
    texts = field_help(config)
    named = [field.name for field in dataclasses.fields(config) if field.name in POSITIONAL]
    arguments = [f"{name.upper()}  {texts[name]}" for name in named]
    return "\n\n".join([inspect.getdoc(config) or summary, *arguments])


def _parameters(config: Any) -> list[click.Parameter]:
    hints, helps = typing.get_type_hints(config), field_help(config)
    made: list[click.Parameter] = []
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        many = get_origin(hint) is tuple or _is_mapping(hint)
        if field.name in POSITIONAL:
            shown = field.name.upper() + ("..." if many else "")
            made.append(click.Argument([field.name], nargs=-1 if many else 1, required=False, metavar=shown))
            continue
        flag = f"--{field.name.replace('_', '-')}"
        shown = _default(field)
        text = helps.get(field.name, "") + (f"  [default: {shown}]" if shown else "")
        pair = next(
            (part for part in (hint, *get_args(hint)) if get_origin(part) is tuple and Ellipsis not in get_args(part)),
            None,
        )
        if pair is not None:
            words = " ".join(map(_metavar, get_args(pair)))
            made.append(
                click.Option([flag, field.name], nargs=len(get_args(pair)), default=None, help=text, metavar=words)
            )
        elif bool in (hint, *get_args(hint)):
            made.append(click.Option([f"{flag}/--no-{flag[2:]}", field.name], default=None, help=text))
        else:
            made.append(
                click.Option([flag, field.name], multiple=many, default=None, help=text, metavar=_metavar(hint))
            )
    return made


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if _is_mapping(hint):
        return "NAME=VALUE"
    inner = [arg for arg in get_args(hint) if arg not in (type(None), Ellipsis)]
    words = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}
    return _metavar(inner[0]) if inner else words.get(hint, "TEXT")


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _default(field: dataclasses.Field[Any]) -> str:
    unsaid = field.default is dataclasses.MISSING or field.default is None or field.default is False
    return "" if unsaid or field.default == () else str(field.default)


def field_help(config: Any) -> dict[str, str]:
    """Return field name -> the docstring that follows the field in the class, or in one that it extends."""
    found: dict[str, str] = {}
    classes: list[Any] = [base for base in config.__mro__ if dataclasses.is_dataclass(base)]
    for one in reversed(classes):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = inspect.cleandoc(str(ast.literal_eval(text.value)))
    return found


def _call(act: Callable[[Any], Any], config: Any, values: dict[str, Any]) -> None:
    from featurecache.checks import config_from
    from featurecache.errors import FeatureCacheError

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("featurecache").setLevel(logging.INFO)  # what we say, not what the libraries below us say
    as_json, config_file = values.pop("as_json"), values.pop("config_file")
    try:
        given = {**_read_yaml(config_file), **_given(config, values)}
        report = act(config_from(config, getattr(config, "expanded", dict)(given)))
    except (FeatureCacheError, _logme_error(FeatureCacheError)) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {place}{error.strerror}. {NOTHING_LOST}", err=True)
        sys.exit(1)
    _show(report, as_json)
    if code := getattr(report, "exit_code", 0):
        sys.exit(code)


REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""What a disk refuses, of which no program is to blame; whoever knows more of the place says more than `_call` does."""
NOTHING_LOST = "Nothing that was committed is lost: make room or restore access, then run the same command again."


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, stop the act as Ctrl-C does; only the main thread hears of signals.

    The act ends in order: what is complete is committed. A second signal ends the process at once, as a kill would.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []

    def stop(number: int, _: object) -> None:
        if heard:
            os.write(2, b"Ended at once. What is committed stays.\n")
            os._exit(75)
        heard.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not heard:  # else a second one still has to end the end
            for number, handler in before.items():
                signal.signal(number, handler)


def _logme_error(otherwise: type[Exception]) -> type[Exception]:
    """Return the error of a module that stands by itself, where the verb has imported it."""
    logme = sys.modules.get("logme")
    error: type[Exception] = logme.LogMEError if logme else otherwise
    return error


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    with open(path, encoding="utf-8") as file:
        return {key.replace("-", "_"): value for key, value in (yaml.safe_load(file) or {}).items()}


def _given(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    import yaml

    from featurecache.errors import ConfigError

    hints = typing.get_type_hints(config)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == ():
            continue
        if _is_mapping(hints[name]):
            pairs = [text.partition("=") for text in value]
            problems = [
                f"--{name.replace('_', '-')} takes NAME=VALUE, got {key!r}" for key, sign, _ in pairs if not sign
            ]
            if problems:
                raise ConfigError(problems)
            value = {key.replace("-", "_"): yaml.safe_load(text) for key, _, text in pairs}
        given[name] = value
    return given


def _show(report: Any, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.json(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    # names of classes and files are shown as they are, also with [brackets] and :colons:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)
    for table in report.tables():
        if table.rows:
            shown = Table(*table.columns, title=table.title, title_justify="left")
            for row in table.rows:
                shown.add_row(*map(str, row))
            console.print(shown)
        for note in table.notes:
            console.print(note, markup=False)


OLD_NAMES = {"--model-class": "--backbone", "--save-path": "--out", "--dataset": ""}
"""Options of the papers' scripts -> ours; "" is the positional data set."""


def translated(arguments: list[str]) -> list[str]:
    """Return the arguments of the papers' `save_features.py` in our names; a --save_path without suffix names a .zarr."""
    words = [part for argument in arguments for part in _halves(argument)]
    found = [OLD_NAMES.get(_plain(word), word) if word.startswith("--") else word for word in words]
    for place in range(len(words) - 1):
        if _plain(words[place]) == "--save-path" and not Path(words[place + 1]).suffix:
            found[place + 1] = f"{words[place + 1]}.zarr"
    return [word for word in found if word]


def _halves(argument: str) -> list[str]:
    name, sign, value = argument.partition("=")
    return [name, value] if sign and _plain(name) in OLD_NAMES else [argument]


def score_model(arguments: list[str]) -> None:
    """Run the verb `logme`; with the papers' `--model_class X --dataset Y`, extract X over Y into ./Y-X.zarr first."""
    words = translated(arguments)
    if "--backbone" not in words:
        main(["logme", *words])
        return
    asked = _command("extract-features").make_context("logme.py", list(words)).params
    out = re.sub(r"[^\w.-]", "_", f"{Path(asked['data'] or '').stem}-{asked['backbone']}") + ".zarr"
    main(["extract-features", *words, "--out", out], standalone_mode=False)
    main(["logme", out])


if __name__ == "__main__":
    main()
