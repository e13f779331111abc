"""The command line: one verb per flow, its options made from the fields of the flow's Config.

A verb's module is imported when a call of it has been read, so that help and the answer to a typo need no torch.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from featurecache.checks import coerce, config_from
from featurecache.declarations import DeclaredConfig, read_config
from featurecache.options import VerbCommand, example_of, read_call
from featurecache.shadowing import qualify_name

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
    "split": ("pipelines.split:SplitConfig", "Divide the rows of a finished store anew into train, val and test."),
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

EXAMPLES = {
    "extract-features": "photos --backbone timm:vit_small_patch14_dinov2.lvd142m --layers all --out photos.zarr",
    "plan": "photos --backbone timm:vit_small_patch14_dinov2.lvd142m --layers all --out photos.zarr",
    "logme": "photos-small.zarr photos-base.zarr --metric logme --metric h_score",
    "train-head": "photos.zarr --head lfa --layers all --out runs/lfa",
    "train-online": "photos --backbone timm:vit_tiny_patch16_224 --peft lora --peft-option rank=4 --out runs/lora",
    "train-student": "photos --student timm:resnet18 --teacher photos.zarr --objective aft --out runs/student",
    "compare-peft": "photos --backbone timm:vit_tiny_patch16_224 --methods lora --methods bitfit --out runs/compared",
    "run-protocol": "few-shot:1,4,16 photos.zarr --heads linear --heads ridge --out runs/few-shot",
    "leaks": "photos.zarr",
    "analyze": "cka photos-small.zarr photos-base.zarr --out runs/cka",
    "report": "runs/lfa runs/lora --out report.html",
    "predict": "runs/lfa new-photos --topk 3 --out predictions.csv",
    "evaluate": "runs/lfa --test other-photos",
    "export": "runs/lfa --out exported",
    "export-backbone": "runs/lora --out backbone.safetensors",
    "embed": "photos --backbone timm:vit_tiny_patch16_224 --out photos.npy",
    "demo": "--out featurecache-demo",
    "data": "check photos",
    "info": "photos.zarr",
    "merge": "part-0.zarr part-1.zarr --out photos.zarr",
    "delete": "photos.zarr --ids train/cat/0001.jpg",
    "split": "photos.zarr --seed 3 --test 0.2",
    "gc": "photos.zarr --dry-run",
    "convert": "photos.zarr --out photos.h5",
    "verify": "photos.zarr --recompute 16",
    "doctor": "--folder .",
    "list": "peft lora",
}
"""Verb -> what follows it in the example of its help; any other shows the shortest call."""


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
    config = read_config(module_name, config_name)

    def call(**values: Any) -> None:
        _call(name, (module_name, config_name, act_name), config, values)

    example = f"featurecache {name} {EXAMPLES[name]}" if name in EXAMPLES else example_of(name, config)
    return VerbCommand(name, config, example, callback=call, help=config.text or summary)


def _call(verb: str, place: tuple[str, str, str], declared: DeclaredConfig, values: dict[str, Any]) -> None:
    """Read the call, and only if it can be read import the flow and run it."""
    from featurecache.errors import FeatureCacheError, UsageError

    as_json, file = values.pop("as_json"), values.pop("config_file")
    try:
        given = read_call(verb, declared, values, file)
        _speak(quiet=coerce(given.get("quiet", values.get("quiet") or False), bool))
        report = _run(verb, place, given)
    except UsageError as error:
        click.echo(f"Error: {error}\nSee featurecache {verb} --help.", err=True)
        sys.exit(error.exit_code)
    except (FeatureCacheError, _logme_error(FeatureCacheError)) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place_of = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {place_of}{error.strerror}. {NOTHING_LOST}", err=True)
        sys.exit(1)
    _show(report, as_json)
    if code := getattr(report, "exit_code", 0):
        sys.exit(code)


def _run(verb: str, place: tuple[str, str, str], given: dict[str, Any]) -> Any:
    from featurecache.progress import says_when_loading

    with says_when_loading("torch", f"{verb}: loading PyTorch"):
        module = importlib.import_module(qualify_name(place[0]))
        config, act = getattr(module, place[1]), getattr(module, place[2])
        return act(config_from(config, getattr(config, "expanded", dict)(given)))


def _speak(*, quiet: bool) -> None:
    """Let what we say go to standard error, and of the libraries below us only their warnings."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("featurecache").setLevel(logging.WARNING if quiet else logging.INFO)


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
    logme = sys.modules.get("featurecache.logme")
    error: type[Exception] = logme.LogMEError if logme else otherwise
    return error


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
