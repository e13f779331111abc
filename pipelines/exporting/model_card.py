"""README.md of an export: what the model is, what it was trained on, how good it is, and how to run it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from featurecache.backbones import Backbone
from featurecache.reports import format_measured

NEEDS = "torch, numpy, Pillow and safetensors"


def licence_of(backbone: Backbone) -> dict[str, str]:
    """Return what the library of the weights says of their licence and origin; {} where it says nothing."""
    config: Any = getattr(backbone.module, "pretrained_cfg", None) or {}
    read = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    known = {name: read(name) for name in ("license", "hf_hub_id", "origin_url", "url")}
    return {name: str(value) for name, value in known.items() if value}


def model_card(config: Mapping[str, Any], record: Mapping[str, Any], *, onnx: bool) -> str:
    """Return the text, Markdown, from the export's `config.json` and `record.json`."""
    parts = (
        _what(config), _use(config, onnx), _quality(config), _data(config), _preprocessing(config), _proof(record),
        _licence(config), _made(config, record),
    )  # fmt: skip
    return "\n".join(parts)


def _what(config: Mapping[str, Any]) -> str:
    classes: Sequence[str] = config["class_names"]
    named = ", ".join(code(name) for name in classes[:20]) + (
        f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    )
    backbone, head, sizes = config["features"]["backbone"]["name"], config["head"]["head"], config["parameters"]
    return (
        f"# {head} on {backbone}\n\nAn image goes in, a {config['task']} of {len(classes)} comes out: {named}.\n"
        f"{_trained(config)}, {code(backbone)}, with the head `{head}` on its features, as one graph: "
        f"{sizes['backbone'] + sizes['head']:,} parameters, {sizes['trainable']:,} of them trainable when it was trained.\n"
    )


def code(value: object) -> str:
    """Return a text as a code span of Markdown that shows it letter by letter, whatever letters it has."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{room}{text}{room}{fence}"


def _trained(config: Mapping[str, Any]) -> str:
    count = config["trained_backbone_parameters"]
    return f"A backbone of which {count:,} values were trained together with the head" if count else "A frozen backbone"


def _use(config: Mapping[str, Any], onnx: bool) -> str:
    lines = ["python predict.py photo.jpg", "python predict.py folder --json"]
    lines += ["python predict.py photo.jpg --onnx"] if onnx else []
    commands = "\n".join(lines)
    width = config["input_size"]
    more = (
        f"\n`model.onnx` takes `images` ({config['batch'] or 'B'}, {', '.join(map(str, width))}) float32, prepared as below, and gives `logits` ({config['batch'] or 'B'}, C).\n"
        if onnx
        else ""
    )
    return (
        f"## Use\n\n```sh\n{commands}\n```\n\nNeeds {NEEDS}; no other package, and no pickle is read.\n"
        "Every file is compared with `SHA256SUMS` first, and a changed one is refused; `sha256sum -c SHA256SUMS` does the same.\n"
        "`model.safetensors` holds the backbone's tensors under `backbone.`, in the names of its library, the head's under "
        f"`head.`; `model.py` is the graph over them.\n{more}"
    )


def _quality(config: Mapping[str, Any]) -> str:
    splits: Mapping[str, Mapping[str, Any]] = config["metrics"]
    names = [name for name, value in next(iter(splits.values()), {}).items() if isinstance(value, Mapping)]
    if not names:
        return "## How good\n\nNothing was measured: the data had no labelled validation or test rows.\n"
    lines = ["| split | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {split} | " + " | ".join(format_measured(found[name]) for name in names) + " |"
        for split, found in splits.items()
    ]
    recalls = next(reversed(splits.values())).get("per_class_recall")
    worst = ""
    if recalls:
        known = sorted((v, n) for n, v in zip(config["class_names"], recalls, strict=True) if v is not None)[:5]
        worst = "\nLowest recalls: " + ", ".join(f"{code(name)} {value:.3f}" for value, name in known) + ".\n"
    return (
        "## How good\n\n"
        + "\n".join(lines)
        + f"\n\n95 % intervals, by bootstrap or, for shares of rows, Wilson's; chosen by {config['selected_by']}.\n{worst}"
    )


def _data(config: Mapping[str, Any]) -> str:
    data, rows = config["features"]["data"], config["rows"]
    lines = [f"- {name}: {code(value)}" for name, value in data.items()]
    counted = ", ".join(f"{count} {split}" for split, count in rows.items())
    return (
        "## Data\n\n" + "\n".join(lines) + f"\n- labelled rows: {counted}\n\n"
        "Of other images, cameras, places or people nothing was measured here.\n"
    )


def _preprocessing(config: Mapping[str, Any]) -> str:
    lines = [f"{number}. {_words(step)}" for number, step in enumerate(config["preprocessing"], 1)]
    return "## Preprocessing\n\n" + "\n".join(lines) + "\n"


def _words(step: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in step.items() if name != "step")
    note = " (RGB, value / 255 first; channels first)" if step["step"] == "normalise" else ""
    return f"{step['step']}: {told}{note}"


def _proof(record: Mapping[str, Any]) -> str:
    proof = record["proof"]
    text = (
        f"## Proof\n\nOn {proof['images']} {proof['of']}, in a fresh process without featurecache, the logits differ from the "
        f"run's own by at most {proof['largest_difference']:.3g} (accepted: {proof['tolerance']:.3g})"
    )
    text += f"; {proof['labels_equal']} of {proof['images']} labels are equal" if "labels_equal" in proof else ""
    text += (
        f"; answers differ from those in the run's predictions by at most {proof['largest_difference_to_stored']:.3g}"
        if "largest_difference_to_stored" in proof
        else ""
    )
    onnx = record.get("onnx")
    if onnx and "largest_difference" in onnx:
        text += f".\nThe ONNX file in onnxruntime: at most {onnx['largest_difference']:.3g}"
    return text + ".\n"


def _licence(config: Mapping[str, Any]) -> str:
    licence = config["licence"]
    told = "; ".join(f"{name} {value}" for name, value in licence.items())
    said = (
        f"The library of the backbone says of it: {told}."
        if told
        else "The library of the backbone says nothing of it."
    )
    return (
        f"## Licence\n\n{said}\nThis folder holds a copy of those weights: their terms, and those of the data set, go with it. "
        "Look them up before you pass it on.\n"
    )


def _made(config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    backbone, head = config["features"]["backbone"], config["head"]
    facts = {
        "made": record["made"], "backbone": backbone["name"], "weights (BLAKE2b)": backbone.get("weights"),
        "precision": backbone.get("precision"), "features": ", ".join(a["name"] for a in config["features"]["arrays"]),
        "stored as": config["features"]["arrays"][0]["dtype"], "head": head["head"], "head options": head["options"] or "none",
        "training": f"{config['fitted']}; {config['training']}" if config["training"] else config["fitted"],
        "libraries": ", ".join(f"{name} {value}" for name, value in config["environment"]["versions"].items()),
    }  # fmt: skip
    return "## How it was made\n\n" + "\n".join(f"- {name}: {code(value)}" for name, value in facts.items()) + "\n"
