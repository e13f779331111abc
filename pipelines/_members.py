"""What can be named, kind by kind, and the options that each takes; read from the sources, nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from featurecache.checks import describe
from featurecache.declarations import Declared, read_docstring, read_options
from featurecache.registry import Registry, plain


@dataclass(frozen=True, slots=True)
class Kind:
    """One room: its members, and what takes their options."""

    noun: str
    package: str
    function: str = ""
    """Function of a member whose keyword-only parameters are its options; "" where users give none."""
    given: str = ""
    """How users give an option."""

    @property
    def room(self) -> Registry:
        """The members."""
        return Registry(self.noun, self.package)


KINDS: Mapping[str, Kind] = {
    "analyses": Kind("analysis", "pipelines.analyses", "analyse", "analyze {name} ... --option {option}={value}"),
    "backbones": Kind("backbone source", "featurecache.backbones"),
    "datasets": Kind("data set", "featurecache.datasets"),
    "heads": Kind("head", "heads", "build", "--head {name} --head-option {option}={value}"),
    "objectives": Kind(
        "objective", "pipelines.objectives", "build", "--objective {name} --objective-option {option}={value}"
    ),
    "peft": Kind("method", "featurecache.peft", "apply", "--peft {name} --peft-option {option}={value}"),
    "protocols": Kind("protocol", "pipelines.protocols", "plan", "run-protocol '{name}?{option}={value}' ..."),
    "scores": Kind("score", "pipelines.scores", "score"),
    "stores": Kind("store format", "featurecache.stores"),
}
MEANINGS: Mapping[str, str] = {
    "adapter": "Run folder of a trained clip_adapter to put behind, frozen",
    "aggregate": "How the layers are brought together",
    "algorithm": "Name under which the seeds of DomainBed are drawn",
    "attention": "Where the adapter of the attention is put: none, parallel, after or before",
    "beta": "Weight of one part against the other",
    "bias": "Whether the map has an intercept",
    "blocks": "Indices of the blocks, such as last, 0,3 or 8-11",
    "bottleneck": "Width of the adapter between its map down and its map up",
    "class_weights": "Weights of the classes in the loss",
    "compat": "Whose published code is followed to the letter; none: nobody's",
    "dilation": "Distance between the places that the convolution reads",
    "drop_path": "Probability with which a training step skips the adapter for an image",
    "dropout": "Share of values that a training step drops",
    "down": "Blocks behind which the grid shrinks, such as 3,7, auto or none",
    "folds": "Number of folds of a cross-validation instead of the splits of the store",
    "groups": "Groups of the grouped map, or maps a channel of the convolution",
    "injections": "Blocks to whose outputs is added, such as 6-11, or auto",
    "kernel": "Side of the convolution's kernel, or the kernel that is compared",
    "label_smoothing": "Share of each label that is spread over all classes",
    "learn_scales": "Whether the scale of every teacher's feature is learnt",
    "metric": "Distance that is measured: squared, or of angles",
    "mlp": "Where the adapter of the perceptron is put: none, parallel, after or before",
    "no_grad": "Run the blocks up to the first injection without gradients",
    "norm": "Normalisation: bn, ln or none, or one for each place",
    "of": "What of the model is looked at",
    "prefix_conv": "Whether class token and registers have a convolution of their own",
    "products": "Blocks whose inputs are read, such as 0-5, or auto",
    "prompts": "Number of prompts",
    "queries": "Number of queries",
    "rank": "Rank of the maps that are added",
    "reads": "What a parallel adapter reads: the stream, or its norm",
    "roles": "Which rows of the domains are learnt from and chosen on",
    "scale": "Factor of what is added, or learned",
    "seed": "Seeds of the draws, one trial each",
    "select": "Rule by which settings are chosen",
    "settings": "Number of settings that are drawn",
    "shots": "Training images of every class",
    "skip": "What a patch begins with where the grid shrinks",
    "split": "Split that is measured",
    "start": "Where the values begin",
    "temperature": "Divisor of the scores before the softmax",
    "test": "Share of the rows that is measured",
    "train_cls": "Whether the class token is changed too",
    "trials": "Number of trials for every domain",
    "xavier": "Start the convolution at random instead of as the identity",
}
"""Option -> what it is, where the docstring of its owner does not say."""


def members(kind: str) -> list[Mapping[str, Any]]:
    """Return the members of a kind: name, what it is in a sentence, and its paper."""
    room = KINDS[kind].room
    return [{"name": name, **dict(zip(("what", "paper"), room.summary(name), strict=True))} for name in room.names()]


def options_of(kind: str, name: str) -> list[Mapping[str, Any]]:
    """Return one entry an option of a member: its name, type, default and meaning.

    Raises:
        UnknownNameError: there is no such member.
    """
    one = KINDS[kind]
    module = f"{one.package}.{one.room.stem(name)}"
    told = read_docstring(module, one.function).partition("Raises:")[0]
    return [
        {"option": option.name, "type": describe(option.hint), "default": _default(option),
         "meaning": _meaning(option.name, told)}
        for option in (read_options(module, one.function) if one.function else ())
    ]  # fmt: skip


def example_of(kind: str, name: str, options: list[Mapping[str, Any]]) -> str:
    """Return how the first option of a member is given on the command line, "" where there is none."""
    if not options or not KINDS[kind].given:
        return ""
    first = next((one for one in options if one["default"] not in ("", "none")), options[0])
    return KINDS[kind].given.format(name=plain(name), option=first["option"], value=first["default"] or "VALUE")


def _default(option: Declared) -> str:
    if option.default is MISSING:
        return "required"
    if isinstance(option.default, tuple):
        return ",".join(map(str, option.default))
    return "" if option.default is None else str(option.default)


def _meaning(option: str, told: str) -> str:
    """Return the sentence, or the line below "Args:", in which a docstring speaks of an option."""
    if line := re.search(rf"^\s*{option}: (.*)$", told, re.MULTILINE):
        return line[1].rstrip(".")
    sentences = re.split(r"(?<=[.;])\s+", " ".join(told.split()))
    found = next((one for one in sentences if re.search(rf"`{option}`|`?\b{option}=", one)), "")
    if found.startswith("`"):  # `this` is so, `that` is otherwise
        found = next(
            (part for part in re.split(r",?\s+(?:and )?(?=`\w+`)", found) if part.startswith(f"`{option}`")), found
        )
    return (found or MEANINGS.get(option, "")).rstrip(".;")
