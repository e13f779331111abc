"""Images through a backbone are batches as a store gives them; draws of training depend on pass and sample alone."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.datasets import open_dataset
from featurecache.errors import BackboneError, ConfigError, UnknownNameError, UnreadableSampleError
from featurecache.peft import adapt
from featurecache.seeding import seed_of
from featurecache.sources import TrainedSource
from featurecache.sources._augmenting import AUGMENTATIONS
from featurecache.sources.live import LearningSource, LiveImages, LiveSource
from featurecache.views import drawn, recipe_called
from tests.extraction_samples import pictures

ARRAYS = {"embedding": (64,), "layers/cls/03": (64,)}
REQUEST = Request(layers=(3,), tokens=("cls",))
STRONG = {"scale": [0.3, 1.0], "auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "vflip": 0.5}
ROWS = np.array([3, 7, 8, 12, 20, 21, 22, 30, 38])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(pictures(tmp_path_factory.mktemp("live") / "animals"))


def backbone(**options):
    return load_backbone("timm:test_vit", BackboneOptions(weights="random:0", image_size=32, **options))


@pytest.fixture(scope="module")
def tower():
    return backbone()


def images(tower, dataset, **settings) -> LiveImages:
    return LiveImages(tower, dataset, threads=2, **settings)


def source(tower, dataset, *, part=(0, 1), **settings) -> LiveSource:
    return LiveSource(tower, images(tower, dataset, **settings), ROWS, ARRAYS, REQUEST, part=part)


def learning(tower, dataset, **settings) -> LearningSource:
    adapted = adapt("full", tower.module, {})
    return LearningSource(
        tower, images(tower, dataset, **settings), ROWS, ARRAYS, REQUEST, adapted=adapted, lr_factor=0.5
    )


def pixels(tower, dataset, rows=ROWS, number=5, *, batch=64, **settings) -> np.ndarray:
    """Return (N, 3, H, W) of some rows as one pass sees them."""
    feed = images(tower, dataset, batch=batch, **settings)
    pieces = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return torch.cat([piece.clone() for piece in feed.batches(pieces, number)]).numpy()


def test_it_gives_the_arrays_rows_and_targets_of_the_data_set(tower, dataset):
    batches = list(source(tower, dataset).batches(4))

    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == ROWS.tolist()
    assert [name for batch in batches for name in batch.sample_ids] == [dataset.table.sample_id[row] for row in ROWS]
    assert torch.cat([batch.targets for batch in batches]).tolist() == dataset.table.target[ROWS].tolist()
    expected = tower.forward(torch.stack([tower.transform(dataset.read(int(row))) for row in ROWS]), REQUEST)
    for name in ARRAYS:
        found = torch.cat([batch.arrays[name] for batch in batches])
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5)


def test_the_same_batch_gives_the_bits_of_an_extraction(tower, dataset):
    (batch,) = source(tower, dataset).batches(len(ROWS))

    expected = tower.forward(torch.stack([tower.transform(dataset.read(int(row))) for row in ROWS]), REQUEST)

    assert all(torch.equal(batch.arrays[name], expected[name]) for name in ARRAYS)


def test_what_it_gives_can_be_trained_on_and_carries_no_gradient(tower, dataset):
    batch = next(source(tower, dataset).batches(4))

    assert not batch.arrays["embedding"].requires_grad
    assert not batch.arrays["embedding"].is_inference()


def test_a_backbone_of_ones_own_without_learn_can_be_trained_on_but_not_trained(tower, dataset):
    bare = dataclasses.replace(tower, learn=None)

    batch = next(source(bare, dataset).batches(4))

    assert not batch.arrays["embedding"].is_inference()
    with pytest.raises(BackboneError, match="ready Backbone without `learn`.* or give --peft none"):
        learning(bare, dataset)


def test_a_pass_can_begin_in_the_middle(tower, dataset):
    whole = [b.rows.tolist() for b in source(tower, dataset).batches(3, order="shuffled", seed=4)]

    later = [b.rows.tolist() for b in source(tower, dataset).batches(3, order="shuffled", seed=4, start=3)]

    assert later == whole[1:] and sorted(row for rows in whole for row in rows) == ROWS.tolist()


def test_parts_of_several_processes_make_the_batches_of_one(tower, dataset):
    whole = [b.rows.tolist() for b in source(tower, dataset).batches(4, order="shuffled", seed=1)]
    parts = [
        [b.rows.tolist() for b in source(tower, dataset, part=(i, 2)).batches(4, order="shuffled", seed=1)]
        for i in range(2)
    ]

    for together, one, other in zip(whole, *parts, strict=True):
        assert together[0::2] == one and together[1::2] == other
    assert [len(rows) for rows in parts[1]] == [2, 2, 0], "an uneven last batch leaves a part without rows"


def test_few_images_are_in_memory_whatever_is_asked_for_at_once(tower, dataset):
    seen: list[int] = []
    watched = dataclasses.replace(
        tower, learn=lambda batch, request: seen.append(len(batch)) or tower.learn(batch, request)
    )

    (batch,) = source(watched, dataset, batch=4).batches(4096)

    assert len(batch) == len(ROWS) and seen == [4, 4, 1]


def test_features_that_learn_carry_gradients_in_training_and_none_in_measuring(dataset):
    made = learning(backbone(), dataset)
    assert isinstance(made, TrainedSource)

    made.train(True)
    batch = next(made.batches(9, order="shuffled"))
    batch.arrays["layers/cls/03"].sum().backward()
    made.train(False)

    (group,) = made.groups()
    assert group.lr_factor == 0.5
    assert group.values["blocks.3.mlp.fc2.weight"].grad is not None
    assert group.values["blocks.4.mlp.fc2.weight"].grad is None
    assert not next(made.batches(4)).arrays["embedding"].requires_grad


def test_a_training_step_sees_its_batch_as_one_though_it_is_decoded_in_pieces(dataset):
    one, other = (learning(backbone(), dataset, batch=size) for size in (2, 64))

    found = []
    for made in (one, other):
        made.train(True)
        found.append(next(made.batches(9, order="shuffled")).arrays["embedding"])

    assert torch.equal(*found)


def test_depthwise_convolutions_learn_with_channels_side_by_side_and_the_same_values(dataset):
    def found(kept: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the features of a step, and its gradients."""
        tower = load_backbone("timm:test_efficientnet", BackboneOptions(weights="random:0", image_size=32))
        feed, adapted = images(tower, dataset), adapt("full", tower.module, {})
        made = LearningSource(tower, feed, ROWS, {"embedding": (tower.dim,)}, Request(), adapted=adapted, lr_factor=1.0)
        weight = adapted.parameters()["conv_stem.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last)
        if kept:
            tower.module.to(memory_format=torch.contiguous_format)
        made.train(True)
        features = next(made.batches(9, order="shuffled")).arrays["embedding"]
        features.square().sum().backward()
        return features.detach(), {name: p.grad for name, p in adapted.parameters().items() if p.grad is not None}

    (ours, gradients), (plain, others) = found(kept=False), found(kept=True)

    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == others.keys() and len(gradients) > 10
    largest = max(float(gradient.abs().max()) for gradient in others.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-3, atol=1e-4 * largest)


def test_drop_path_drops_in_training_alone(dataset):
    made = learning(backbone(architecture={"drop_path_rate": 0.9}), dataset)
    clean = next(made.batches(9)).arrays["embedding"]

    made.train(True)
    dropped = next(made.batches(9, order="shuffled")).arrays["embedding"]
    made.train(False)

    assert torch.equal(next(made.batches(9)).arrays["embedding"], clean)
    order = np.argsort(next(made.batches(9, order="shuffled")).rows)
    assert not torch.allclose(dropped[torch.from_numpy(order)], clean, atol=1e-2)


@pytest.mark.parametrize("augment", [name for name in AUGMENTATIONS if name != "none"])
class TestAugmentations:
    def options(self, augment: str) -> dict:
        return {"augment": augment, "options": STRONG if augment == "timm" else {}}

    def test_draws_depend_on_pass_and_sample_alone(self, tower, dataset, augment):
        settings = self.options(augment)
        state = random.getstate(), torch.get_rng_state()

        together = pixels(tower, dataset, **settings)
        backwards = pixels(tower, dataset, ROWS[::-1], batch=2, **settings)[::-1]
        later = pixels(tower, dataset, number=6, **settings)

        np.testing.assert_array_equal(backwards, together)
        assert (later != together).any()
        assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])

    def test_measuring_and_pass_zero_see_the_clean_picture(self, tower, dataset, augment):
        settings = self.options(augment)

        clean = pixels(tower, dataset, number=0, **settings)

        np.testing.assert_array_equal(clean, pixels(tower, dataset, number=0))
        made = source(tower, dataset, **settings)
        assert torch.equal(
            next(made.batches(9)).arrays["embedding"], next(source(tower, dataset).batches(9)).arrays["embedding"]
        )

    def test_training_sees_augmented_pictures(self, tower, dataset, augment):
        made = source(tower, dataset, **self.options(augment))

        seen = next(made.batches(9, order="shuffled", seed=1))

        plain = next(source(tower, dataset).batches(9, order="shuffled", seed=1))
        assert seen.rows.tolist() == plain.rows.tolist()
        assert not torch.equal(seen.arrays["embedding"], plain.arrays["embedding"])


def test_recipes_are_those_of_cached_views(tower, dataset):
    found = pixels(tower, dataset, ROWS[:1], number=99, augment="crop")[0]

    picture, name = dataset.read(3), dataset.table.sample_id[3]
    view = drawn(recipe_called("crop"), picture.size, seed=0, sample_id=name, view=99)(picture)
    np.testing.assert_array_equal(found, tower.transform(view).numpy())


def test_timm_draws_what_it_draws_from_the_seed_of_pass_and_sample(tower, dataset):
    import timm.data

    found = pixels(tower, dataset, ROWS[:1], number=99, augment="timm", options={"auto_augment": "rand-m9-mstd0.5"})[0]

    known = tower.identity["transform"]
    pipeline = timm.data.create_transform(
        (3, 32, 32), is_training=True, auto_augment="rand-m9-mstd0.5", interpolation=known["interpolation"],
        mean=known["mean"], std=known["std"],
    )  # fmt: skip
    seed = seed_of("augment", 99, dataset.table.sample_id[3])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    np.testing.assert_array_equal(found, pipeline(dataset.read(3)).numpy())


def test_an_unknown_augmentation_and_options_that_do_nothing_are_refused(tower, dataset):
    with pytest.raises(UnknownNameError, match="no augmentation called 'tim'. Did you mean 'timm'"):
        images(tower, dataset, augment="tim")
    with pytest.raises(ConfigError, match="augment crop has no options; hflip are those of timm"):
        images(tower, dataset, augment="crop", options={"hflip": 1})
    with pytest.raises(ConfigError, match="augment timm has no option 'hflipp'. Did you mean 'hflip'"):
        images(tower, dataset, augment="timm", options={"hflipp": 1})
    with pytest.raises(ConfigError, match="timm makes no augmentation of these options"):
        images(tower, dataset, augment="timm", options={"scale": [0.9, 0.1]})


def test_an_image_that_cannot_be_read_stops_the_pass_and_is_named(tower, tmp_path):
    folder = pictures(tmp_path / "animals", cat=3, dog=3)
    bad = sorted(folder.rglob("*.png"))[2]
    bad.write_bytes(bad.read_bytes()[:40])
    dataset = open_dataset(folder)
    made = LiveSource(tower, images(tower, dataset, augment="timm"), np.arange(6), ARRAYS, REQUEST)

    for order in ("sequential", "shuffled"):
        with pytest.raises(UnreadableSampleError, match=f"cannot read .*{bad.name}"):
            list(made.batches(2, order=order))
    assert list(made.images.unreadable(np.arange(6))) == [2]


def test_worker_processes_draw_the_same_and_live_from_pass_to_pass(tower, dataset):
    feed = images(tower, dataset, augment="timm", options=STRONG)
    ringed = LiveImages(tower, dataset, augment="timm", options=STRONG, workers=1, batch=4)  # each must import timm
    pieces = [ROWS[0:4], ROWS[4:8], ROWS[8:]]

    try:
        for number in (5, 0, 6):
            for one, other in zip(ringed.batches(pieces, number), feed.batches(pieces, number), strict=True):
                assert torch.equal(one, other)
        next(ringed.batches(pieces, 7))  # a pass that is left in the middle
        assert torch.equal(next(ringed.batches(pieces, 8)), next(feed.batches(pieces, 8)))
    finally:
        ringed.close()
