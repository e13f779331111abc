"""A view is a function of seed, sample and view; the same part of the picture at every size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featurecache.errors import ConfigError, UnknownNameError
from featurecache.views import CLEAN, RECIPES, Draw, Views, drawn, recipe_called

NAMES = sorted(RECIPES)


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """A picture whose colour says where one is."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).astype(np.uint8))


def draws(name: str, count: int = 200, size: tuple[int, int] = (64, 48)) -> list[Draw]:
    recipe = recipe_called(name)
    return [drawn(recipe, size, seed=0, sample_id=f"s{i}", view=1) for i in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_view_zero_is_the_picture_as_it_is(name):
    found = drawn(recipe_called(name), (64, 48), seed=3, sample_id="a", view=0)

    assert found == CLEAN
    assert np.array_equal(np.asarray(found(picture())), np.asarray(picture()))


def test_a_draw_depends_on_seed_sample_and_view_and_on_nothing_else():
    recipe = recipe_called("strong")

    def one(seed, sample_id, view):
        return drawn(recipe, (64, 48), seed=seed, sample_id=sample_id, view=view)

    first = one(0, "a", 1)

    assert one(0, "a", 1) == first
    assert len({first, one(1, "a", 1), one(0, "b", 1), one(0, "a", 2)}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_same_part_is_seen_at_every_size(name):
    recipe = recipe_called(name)

    small, large = (drawn(recipe, size, seed=0, sample_id="x", view=2) for size in ((64, 48), (640, 480)))

    assert small == large
    one, other = small(picture(64, 48)).resize((16, 16)), large(picture(640, 480)).resize((16, 16))
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() < 8


@pytest.mark.parametrize("name", NAMES)
def test_crops_lie_inside_the_picture_and_within_the_recipe(name):
    recipe = recipe_called(name)

    for found in draws(name):
        left, top, right, bottom = found.box
        assert 0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9
        area = (right - left) * (bottom - top)
        assert recipe.area[0] - 1e-9 <= area <= recipe.area[1] + 1e-9
        if recipe.area != (1.0, 1.0):
            ratio = 64 * (right - left) / (48 * (bottom - top))
            assert recipe.ratio[0] - 1e-9 <= ratio <= recipe.ratio[1] + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_views_are_mirrored(name):
    assert 0.35 < np.mean([found.flip for found in draws(name)]) < 0.65


def test_colours_change_as_the_recipe_says():
    found = draws("strong")
    factors = np.array([[d.brightness, d.contrast] for d in found])

    assert factors.min() >= 0.6 and factors.max() <= 1.4 and factors.std() > 0.1
    assert 0.1 < np.mean([d.saturation == 0 for d in found]) < 0.3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_shape_have_views_that_are_not_empty(name, size):
    for view in range(1, 5):
        seen = drawn(recipe_called(name), size, seed=0, sample_id="x", view=view)(picture(*size))

        assert min(seen.size) >= 1 and seen.mode == "RGB"


def test_the_identity_names_the_recipe_in_full_and_is_empty_for_the_clean_picture_alone():
    assert Views(1, "crop", 5).identity == {}
    assert Views(3, "crop", 7).identity["views"]["recipe"]["area"] == [0.5, 1.0]
    assert Views(3, "crop", 7).identity == Views(4, "crop", 7).identity
    assert Views(3, "crop", 7).identity != Views(3, "flip", 7).identity != Views(3, "flip", 8).identity


def test_the_views_of_a_picture_begin_with_itself_and_differ():
    seen = [np.asarray(view.resize((16, 16))) for view in Views(4, "strong", 1).of(picture(), "a")]

    assert np.array_equal(seen[0], np.asarray(picture().resize((16, 16))))
    assert len({view.tobytes() for view in seen}) == 4


def test_no_views_are_refused():
    with pytest.raises(ConfigError, match="views must be positive, got 0"):
        Views(0)


def test_an_unknown_augmentation_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no augmentation called 'corp'\. Did you mean 'crop'\?"):
        recipe_called("corp")
