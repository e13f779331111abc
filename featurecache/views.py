"""Views: augmentations of a sample that are a function of seed, sample and view alone, drawn before any model's transform.

A draw is made of parts of the picture, not of pixels: teacher and student of different sizes, today's run and next year's,
see the same crop. View 0 is the picture as it is; evaluation uses it, training draws among all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image, ImageEnhance

from featurecache.checks import check
from featurecache.errors import UnknownNameError
from featurecache.registry import nearest
from featurecache.seeding import generator

ATTEMPTS = 10
"""Boxes that are drawn before the largest one of the nearest allowed shape is taken, as torchvision's RandomResizedCrop does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an augmentation may do."""

    area: tuple[float, float] = (1.0, 1.0)
    """Least and largest share of the picture that a crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width by height of a crop, in pixels."""
    flip: float = 0.5
    """Probability of a mirror image."""
    colour: float = 0.0
    """Brightness, contrast and saturation are each multiplied by a factor from [1 - colour, 1 + colour]."""
    grey: float = 0.0
    """Probability of losing all colour."""


RECIPES: Mapping[str, Recipe] = {
    "flip": Recipe(),
    "crop": Recipe(area=(0.5, 1.0)),
    "strong": Recipe(area=(0.2, 1.0), colour=0.4, grey=0.2),
}
"""What `--augment` can name."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One view of one sample, in numbers that do not know how large the picture is decoded or wanted."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as parts of width and height."""
    flip: bool
    brightness: float
    contrast: float
    saturation: float

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Return the view of an RGB picture."""
        width, height = picture.size
        left, top, right, bottom = self.box
        edges = (round(left * width), round(top * height), round(right * width), round(bottom * height))
        seen = picture if edges == (0, 0, width, height) else picture.crop(_not_empty(edges, width, height))
        if self.flip:
            seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for factor, enhance in (
            (self.brightness, ImageEnhance.Brightness),
            (self.contrast, ImageEnhance.Contrast),
            (self.saturation, ImageEnhance.Color),
        ):
            seen = seen if factor == 1.0 else enhance(seen).enhance(factor)
        return seen


CLEAN = Draw((0.0, 0.0, 1.0, 1.0), flip=False, brightness=1.0, contrast=1.0, saturation=1.0)
"""View 0: the picture as it is."""


def _not_empty(edges: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = edges
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def recipe_called(name: str) -> Recipe:
    """Return the recipe that `--augment` names.

    Raises:
        UnknownNameError: there is none of that name; names the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError(
            f"there is no augmentation called {name!r}.{nearest(name, list(RECIPES))} Known: {', '.join(RECIPES)}."
        )
    return RECIPES[name]


def drawn(recipe: Recipe, size: tuple[int, int], *, seed: int, sample_id: str, view: int) -> Draw:
    """Return one view: a function of recipe, seed, sample and view, and of the shape of the picture, (width, height).

    Only the shape matters, not the resolution: a picture of twice the size has the same box.
    """
    if view == 0:
        return CLEAN
    random = generator("view", seed, sample_id, view)
    box = _box(recipe, size[0] / size[1], random)
    flip = bool(random.random() < recipe.flip)
    factors = [float(value) for value in 1 + recipe.colour * random.uniform(-1, 1, 3)]
    grey = bool(random.random() < recipe.grey)
    return Draw(box, flip, factors[0], factors[1], 0.0 if grey else factors[2])


def _box(recipe: Recipe, shape: float, random: Any) -> tuple[float, float, float, float]:
    """Return a box by rejection, in parts; `shape` is width by height of the picture."""
    if recipe.area == (1.0, 1.0):
        return CLEAN.box
    narrow, wide = (math.log(ratio) for ratio in recipe.ratio)
    for _ in range(ATTEMPTS):
        area, ratio = random.uniform(*recipe.area), math.exp(random.uniform(narrow, wide))
        width, height = math.sqrt(area * ratio / shape), math.sqrt(area * shape / ratio)
        if width <= 1 and height <= 1:
            left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
            return left, top, left + width, top + height
    ratio = min(max(shape, recipe.ratio[0]), recipe.ratio[1])
    width, height = min(1.0, ratio / shape), min(1.0, shape / ratio)
    return (1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2


@dataclass(frozen=True, slots=True)
class Views:
    """The views of every sample that a store keeps: the clean picture, then `count` - 1 drawn ones."""

    count: int = 1
    augment: str = "crop"
    seed: int = 0

    def __post_init__(self) -> None:
        check((self.count > 0, f"views must be positive, got {self.count}"))
        recipe_called(self.augment)

    def of(self, picture: Image.Image, sample_id: str, which: Sequence[int] | None = None) -> Iterator[Image.Image]:
        """Yield the views of one RGB picture, the clean one first; `which` names some by number."""
        recipe = recipe_called(self.augment)
        for view in range(self.count) if which is None else which:
            yield drawn(recipe, picture.size, seed=self.seed, sample_id=sample_id, view=view)(picture)

    @classmethod
    def known_by(cls, count: int, identity: Mapping[str, Any]) -> Views:
        """Return the views that an identity of features names.

        Raises:
            UnknownNameError: they were drawn by a recipe that is not here any more, or is another one now.
        """
        if "views" not in identity:
            return cls(count)
        named = identity["views"]
        views = cls(count, named["augment"], named["seed"])
        if views.identity["views"] != named:
            raise UnknownNameError(
                f"the augmentation {named['augment']!r} is not what it was when these views were drawn ({named['recipe']}). "
                "Install the version that drew them, or extract again."
            )
        return views

    @property
    def identity(self) -> dict[str, Any]:
        """What fixes the views: the recipe in full, so that a change of it here shows; {} for the clean picture alone."""
        if self.count == 1:
            return {}
        values = asdict(recipe_called(self.augment))
        recipe = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {"views": {"augment": self.augment, "seed": self.seed, "recipe": recipe}}
