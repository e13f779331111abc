"""What `--prompts` asks: templates for class names, and what the text side of a backbone says of them, as a store keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.backbones import Backbone, TextTower
from featurecache.casting import stored_form
from featurecache.datasets import ImageDataset
from featurecache.errors import BackboneError, DatasetError
from featurecache.features import OF_THE_MODEL, ArraySpec, Header
from featurecache.progress import Bar, Stopwatch
from featurecache.stores import ClassValues

DEFAULT = "a photo of a {}."
"""What the papers say of every class, where nothing better is known."""


def templates_asked(backbone: Backbone, dataset: ImageDataset, words: str, held: Header | None) -> tuple[str, ...]:
    """Return the templates that `--prompts` names; () where the store is to hold no text.

    "auto" is `DEFAULT` (or what an existing store holds) for backbones with a text side and data with class names, and
    nothing for others; "none" is nothing.

    Raises:
        BackboneError, DatasetError: prompts are asked for, and the backbone has no text side, or the data no class names.
        ConfigError: the words name no templates.
    """
    has_names = bool(dataset.class_names) and dataset.task != "regression"
    if words == "none" or (words == "auto" and (backbone.text is None or not has_names)):
        return ()
    if words == "auto":
        return held.prompts if held is not None and held.prompts else (DEFAULT,)
    if backbone.text is None:
        raise BackboneError(
            f"{backbone.name} has no text side, so there is nothing to say of class names. Leave --prompts out, or name "
            "a model with both towers, such as open_clip:ViT-B-32/openai."
        )
    if not has_names:
        raise DatasetError(f"{dataset.name} has no class names to put into prompts. Leave --prompts out.")
    return backbone.text.templates(words)


def text_arrays(
    backbone: Backbone, class_names: Sequence[str], templates: Sequence[str], dtype: str
) -> tuple[ArraySpec, ...]:
    """Return the arrays that hold what the text side says; it is asked for one class, which shows that it can speak.

    Those of the model itself are float32, whatever `dtype`.

    Raises:
        BackboneError: it cannot, because the tokenizer is not to be had or not of this model.
    """
    if not templates:
        return ()
    assert backbone.text is not None
    try:
        probe = backbone.text.features(class_names[:1], templates[:1])
    except BackboneError as error:
        raise BackboneError(f"{error} Give --prompts none to keep the features of images alone.") from error
    shapes = {name: tuple(values.shape) for name, values in sorted(probe.items())}
    count = (len(class_names), len(templates))
    said = [ArraySpec(name, (*shape[:-3], *count, shape[-1]), dtype) for name, shape in shapes.items()]
    space = [ArraySpec(name, tuple(values.shape), "float32") for name, values in backbone.text.space().items()]
    return tuple(sorted([*said, *space], key=lambda spec: spec.name))


@contextmanager
def class_values(backbone: Backbone, header: Header, *, quiet: bool) -> Iterator[ClassValues]:
    """Yield what computes the arrays of the classes that a header speaks of, in storage dtype, some classes at a time.

    What it yields shows its progress, and raises FeatureValueError where a value is NaN, infinite, or too far from what
    the store's dtype can hold; that names the class.
    """
    watch = Stopwatch()
    said = [spec for spec in header.constants if spec.name not in OF_THE_MODEL]
    of_the_model = [spec for spec in header.constants if spec.name in OF_THE_MODEL]
    with Bar("class names", len(header.class_names), 0, quiet or not header.prompts, unit="names") as bar:

        def values(classes: range) -> dict[str, npt.NDArray[Any]]:
            assert backbone.text is not None
            names = header.class_names[classes.start : classes.stop]
            with watch.waiting("model"):
                found = backbone.text.features(names, header.prompts) if said else {}
            by_class = {name: tensor.movedim(-3, 0) for name, tensor in found.items()}
            stored = stored_form([by_class], said, names, {})
            bar.advance(len(classes), watch)
            by_class_last = {name: np.moveaxis(array[:, 0], 0, -3) for name, array in stored.items()}
            return by_class_last | _of_the_model(backbone.text, of_the_model)

        yield values


def _of_the_model(text: TextTower, specs: Sequence[ArraySpec]) -> dict[str, npt.NDArray[Any]]:
    space = text.space() if specs else {}
    stored = stored_form([space], specs, ["the model itself"], {})
    return {name: array[:, 0] for name, array in stored.items()}
