"""The options of a verb: from what its config declares to the command line's parameters, its help, and the values given.

Nothing of the flow is imported: help, and the answer to a call that cannot be parsed, need neither torch nor NumPy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

import click

from featurecache.checks import typed_values
from featurecache.declarations import Declared, DeclaredConfig
from featurecache.errors import UsageError

POSITIONAL = ("protocol", "data", "store", "stores", "run_folder", "runs", "inputs", "what", "name")
"""Config fields that are arguments instead of options."""
STAND_INS = ("init_from", "recipe")
"""Options whose value gives others, which are then not required."""
HEADINGS: Mapping[str, tuple[str, ...]] = {
    "Data": (
        "task", "split_seed", "fingerprint", "on_error", "split", "test_split", "val_split", "train", "test", "train_on",
        "train_frac", "rows", "images", "samples", "ids", "classes", "shard", "extend", "take_over", "views", "augment",
        "augment_option", "against",
    ),
    "Model": (
        "backbone", "weights", "backbone_option", "transform", "image_size", "layers", "tokens", "norm", "logits", "prompts",
        "peft", "peft_option", "student", "student_weights", "from_scratch", "init_from", "load_published", "recipe",
        "methods", "option", "setting", "heads", "head", "head_option", "standardise", "metric",
    ),
    "Training": (
        "epochs", "steps", "lr", "backbone_lr", "weight_decay", "label_smoothing", "class_weights", "optimizer", "momentum",
        "nesterov", "schedule", "warmup_epochs", "warmup_lr", "least_lr", "clip_norm", "accumulate", "drop_path", "seed",
        "seeds", "data_seed", "order", "sweep", "refit", "teacher", "teacher_array", "objective", "objective_option", "prec",
        "prior_lr", "prior_freq", "reference", "leaks",
    ),
    "Speed": (
        "device", "precision", "batch_size", "threads", "jobs", "workers", "decoder", "decode_threads", "cache",
        "commit_rows", "probe_seconds",
    ),
    "Output": ("out", "dtype", "format", "names", "onnx", "title", "pictures", "predictions", "topk"),
    "General": ("quiet", "config_file", "as_json", "help"),
}  # fmt: skip
"""Heading in the help of a verb -> the fields below it; any other stands below "Options"."""
REQUIRED, OTHERS = "Required", "Options"
WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


def flag(name: str) -> str:
    """Return what users type for a field; of an argument, its name."""
    return name if name in POSITIONAL else f"--{name.rstrip('_').replace('_', '-')}"


class VerbCommand(click.Command):
    """A verb whose help has the required options first, the others below headings, and an example."""

    def __init__(self, name: str, config: DeclaredConfig, example: str, **given: Any) -> None:
        super().__init__(name, params=[*parameters(config), *common(config)], context_settings=WIDTH, **given)
        self._arguments = [field for field in config.fields if field.name in POSITIONAL]
        self._required = {field.name for field in config.fields if field.required}
        self._example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, the options by heading, and an example."""
        if self._arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(field.name.upper(), _said(field)) for field in self._arguments])
        for heading, options in self._by_heading(ctx).items():
            with formatter.section(heading):
                formatter.write_dl([record for one in options if (record := one.get_help_record(ctx))])
        with formatter.section("Example"):
            formatter.write_text(self._example)

    def _by_heading(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        heading_of = {name: heading for heading, names in HEADINGS.items() for name in names}
        found: dict[str, list[click.Parameter]] = {name: [] for name in (REQUIRED, OTHERS, *HEADINGS)}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option):
                name = "help" if "--help" in option.opts else str(option.name)
                found[REQUIRED if name in self._required else heading_of.get(name, OTHERS)].append(option)
        return {heading: options for heading, options in found.items() if options}


WIDTH = {"max_content_width": 110}


def common(config: DeclaredConfig) -> list[click.Parameter]:
    """Return the options that every verb has, whatever its config declares."""
    silent = [click.Option(["--quiet", "quiet"], is_flag=True, default=None, help="Say nothing but the result.")]
    return [
        *([] if any(field.name == "quiet" for field in config.fields) else silent),
        click.Option(["--config", "config_file"], type=click.Path(exists=True, dir_okay=False),
                     help="YAML file with the same names; options given here win."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
    ]  # fmt: skip


def parameters(config: DeclaredConfig) -> list[click.Parameter]:
    """Return one parameter a field, its values still text: `read_call` says what is wrong with them, all at once."""
    return [_argument(field) if field.name in POSITIONAL else _option(field) for field in config.fields]


def _argument(field: Declared) -> click.Argument:
    many = get_origin(field.hint) is tuple
    shown = field.name.upper() + ("..." if many else "")
    shown = shown if field.required else f"[{shown}]"
    return click.Argument([field.name], nargs=-1 if many else 1, required=False, metavar=shown)


def _option(field: Declared) -> click.Option:
    called, hint = flag(field.name), field.hint
    if pair := _pair(hint):
        words = " ".join(map(metavar, pair))
        return click.Option([called, field.name], nargs=len(pair), default=None, help=_said(field), metavar=words)
    if bool in (hint, *get_args(hint)):
        return click.Option([f"{called}/--no-{called[2:]}", field.name], default=None, help=_said(field))
    many = get_origin(hint) is tuple or _is_mapping(hint)
    return click.Option([called, field.name], multiple=many, default=None, help=_said(field), metavar=metavar(hint))


def _pair(hint: Any) -> tuple[Any, ...]:
    """Return the types of an option of several values that belong together, () of any other."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is tuple and Ellipsis not in get_args(part):
            return get_args(part)
    return ()


def metavar(hint: Any) -> str:
    """Return what stands for the value of an option in help."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if _is_mapping(hint):
        return "NAME=VALUE"
    inner = [arg for arg in get_args(hint) if arg not in (type(None), Ellipsis)]
    if inner:
        return metavar(inner[0])
    return WORDS.get(hint, "PATH" if getattr(hint, "__name__", "") in ("Path", "Url") else "TEXT")


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _said(field: Declared) -> str:
    shown = "required" if field.required else default_text(field.default)
    return field.text + (f"  [{shown}]" if field.required else f"  [default: {shown}]" if shown else "")


def default_text(default: Any) -> str:
    """Return a default as users would type it, "" where there is nothing to say."""
    if default is MISSING or default is None or default is False or default == ():
        return ""
    if isinstance(default, tuple | list):
        return " ".join(map(str, default))
    return "yes" if default is True else str(default)


def example_of(verb: str, config: DeclaredConfig) -> str:
    """Return the shortest call of a verb: its arguments and what is required."""
    words = [f"featurecache {verb}"]
    for field in config.fields:
        if field.required:
            literal = get_args(field.hint)[0] if get_origin(field.hint) is Literal else field.name
            words.append(str(literal) if field.name in POSITIONAL else f"{flag(field.name)} {literal}")
    return " ".join(words)


def read_call(verb: str, config: DeclaredConfig, values: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    """Return name -> value as the command line and a YAML file give them; those of the command line win.

    Raises:
        UsageError: lists every value that its option does not take, every unknown name, and all that is required but not
            there; or says that the file holds no names with values.
    """
    hints = {field.name: field.hint for field in config.fields}
    values = {name: value for name, value in values.items() if name in hints}
    given = _read_yaml(file) if file else {}
    given = {name if name in hints or f"{name}_" not in hints else f"{name}_": value for name, value in given.items()}
    problems: list[str] = []
    for name, value in values.items():
        if value is not None and value != ():
            given[name] = _pairs(name, value, problems) if _is_mapping(hints[name]) else value
    problems += typed_values(given, hints, verb, flag)[1]
    if not any(name in given for name in STAND_INS):
        problems += [
            f"{flag(f.name)} is required{_why(f)}" for f in config.fields if f.required and f.name not in given
        ]
    if problems:
        raise UsageError(problems)
    return given


def _pairs(name: str, texts: Iterable[str], problems: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        try:
            if not (sign and key.strip()):
                raise ValueError(text)
            found[key.strip().replace("-", "_")] = _read_value(value)
        except (ValueError, yaml.YAMLError):
            problems.append(f"{flag(name)} takes NAME=VALUE, got {text!r}")
    return found


def _read_value(text: str) -> Any:
    """Return a value as YAML reads it; 1:10 stays text, which YAML takes for minutes and seconds, 70."""
    import yaml

    return text if re.fullmatch(r"[-+]?[\d_]+(:[\d_]+)+(\.[\d_]*)?", text.strip()) else yaml.safe_load(text)


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError([f"{path} cannot be read as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(found or {}, dict):
        raise UsageError([f"{path} must hold one NAME: VALUE a line, with the names of the options; got {found!r:.60}"])
    return {str(key).replace("-", "_"): value for key, value in (found or {}).items()}


def _why(field: Declared) -> str:
    """Return the first sentence of what a field is."""
    sentence = field.text.replace("\n", " ").partition(". ")[0].rstrip(".")
    return f": {sentence}" if sentence else ""
