"""Several views of every image: drawn alike for every model, kept beside the clean one, drawn from in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError, StoreContentsError, StoreMismatchError, UnknownNameError
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from featurecache.views import RECIPES, Recipe, Views
from pipelines.maintain import ConvertConfig, convert
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from save_features import SaveFeaturesConfig, run
from tests.extraction_samples import Forwards, lasting, pictures

VIEWS = {"views": 3, "augment": "strong", "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("views") / "animals", cat=14, dog=14)


@pytest.fixture
def forwards(monkeypatch):
    return Forwards().watch(monkeypatch)


def settings(folder, out, **changes) -> SaveFeaturesConfig:
    given = {"backbone": "demo", "layers": "4-5", "dtype": "float32", "batch_size": 8, **VIEWS, **changes}
    return SaveFeaturesConfig(data=str(folder), out=out, quiet=True, **given)


@pytest.fixture(scope="module")
def whole(folder):
    out = folder.parent / "views.zarr"
    run(settings(folder, out))
    return out


def test_every_view_is_what_the_model_gives_for_that_view_of_the_picture(folder, whole):
    store, data, backbone = open_store(whole), open_dataset(folder), load_backbone("demo")
    drawn = [list(Views(3, "strong", 5).of(data.read(row), data.table.sample_id[row])) for row in range(8)]

    assert store.header.views == 3
    for view in range(3):
        images = torch.stack([backbone.transform(views[view]) for views in drawn])
        expected = backbone.forward(images, Request((4, 5), ("cls",)))
        for name, values in expected.items():
            assert np.array_equal(store.read(name, np.arange(8), view), values.numpy())


def test_the_clean_view_is_that_of_a_store_without_views(folder, whole, tmp_path):
    run(settings(folder, tmp_path / "clean.zarr", views=1))

    clean, store = open_store(tmp_path / "clean.zarr"), open_store(whole)
    assert np.array_equal(clean.read("layers/cls/05", slice(None)), store.read("layers/cls/05", slice(None)))
    assert "views" not in clean.header.backbone


def test_scores_are_those_of_the_clean_view(folder, whole, tmp_path):
    clean = run(settings(folder, tmp_path / "clean.zarr", views=1))

    assert run(settings(folder, whole)).scores == clean.scores


def test_models_of_two_sizes_see_the_same_part_of_every_picture(folder, tmp_path):
    out = tmp_path / "large.zarr"
    run(settings(folder, out, backbone="timm:test_vit", weights="random:0", image_size=96, layers="none"))
    large, data = (
        load_backbone("timm:test_vit", BackboneOptions(weights="random:0", image_size=96)),
        open_dataset(folder),
    )

    drawn = [list(Views(3, "strong", 5).of(data.read(row), data.table.sample_id[row]))[2] for row in range(8)]
    expected = large.forward(torch.stack([large.transform(view) for view in drawn]), Request())["embedding"]

    assert np.array_equal(open_store(out).read("embedding", np.arange(8), 2), expected.numpy())


def test_fewer_views_are_there_already_and_other_ones_are_refused(folder, whole):
    assert run(settings(folder, whole, views=1)).beyond == ("view 1", "view 2")
    assert run(settings(folder, whole, views=2)).was_finished
    with pytest.raises(StoreMismatchError, match=r"backbone\.views\.seed: the store has 5, this run 6"):
        run(settings(folder, whole, seed=6, views=4, extend=True))
    with pytest.raises(StoreMismatchError, match=r"backbone\.views\.augment: the store has 'strong', this run 'flip'"):
        run(settings(folder, whole, augment="flip"))


def test_more_views_than_there_are_need_the_word(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", views=2)
    run(config)
    before = lasting(config.out)

    with pytest.raises(StoreContentsError, match="but without view 2, view 3. Give --extend to add just those"):
        run(settings(folder, config.out, views=4))

    assert lasting(config.out) == before


@pytest.mark.parametrize(
    ("held", "suffix"),
    [({"views": 1, "seed": 8}, ".zarr"), ({"views": 2}, ".zarr"), ({"views": 1, "layers": "5"}, ".h5")],
    ids=str,
)
def test_more_views_are_added_and_the_store_is_that_of_one_run(folder, whole, tmp_path, forwards, held, suffix):
    out, batches = tmp_path / f"x{suffix}", -(-28 // 8)
    run(settings(folder, out, **held))
    forwards.requests.clear()
    before = {path: path.stat() for path in out.rglob("c/*/0/0") if path.is_file()}

    report = run(settings(folder, out, extend=True))

    assert before or suffix == ".h5"
    more, added = "layers" in held, 3 - held["views"]
    assert len(forwards.requests) == batches * (added + more)
    assert report.added == (*(["layers/cls/04"] if more else []), *(["view 1"] if added == 2 else []), "view 2")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == {
        path: (stat.st_ino, stat.st_mtime_ns) for path, stat in before.items()
    }
    if suffix == ".h5":
        convert(ConvertConfig(store=out, out=tmp_path / "back.zarr"))
    assert lasting(out if suffix == ".zarr" else tmp_path / "back.zarr") == lasting(whole)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_addition_of_views_and_layers_that_was_stopped_goes_on_without_the_word(
    folder, whole, tmp_path, forwards, batch
):
    out = tmp_path / "x.zarr"
    run(settings(folder, out, views=1, layers="5"))
    first = len(forwards.requests)

    def stop(outputs: object, number: int) -> None:
        if number == first + batch:
            raise KeyboardInterrupt

    forwards.change = stop
    with pytest.raises(KeyboardInterrupt):
        run(settings(folder, out, extend=True))
    forwards.change = lambda outputs, number: None
    report = run(settings(folder, out))

    assert report.kept == 8 * (batch // 3) and report.recomputed <= 8
    assert lasting(out) == lasting(whole)


def test_scores_and_training_go_on_after_views_were_added(folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    clean = run(settings(folder, out, views=1))

    report = run(settings(folder, out, extend=True))

    assert report.scores == clean.scores
    heads = []
    for store, run_folder in ((out, tmp_path / "grown"), (whole, tmp_path / "at-once")):
        train(TrainHeadConfig(store=store, out=run_folder, views="all", epochs=3, quiet=True))
        heads.append((run_folder / "head.safetensors").read_bytes())
    assert heads[0] == heads[1]


def test_an_extension_fills_all_views_of_the_new_arrays(folder, whole, tmp_path):
    out = tmp_path / "x.zarr"
    run(settings(folder, out, layers="5"))

    with pytest.raises(StoreContentsError, match="--extend"):
        run(settings(folder, out, views=1))
    run(settings(folder, out, views=1, extend=True))

    for view in range(3):
        found = open_store(out).read("layers/cls/04", slice(None), view)
        assert np.array_equal(found, open_store(whole).read("layers/cls/04", slice(None), view))


def test_views_of_a_recipe_that_has_changed_since_are_not_added_to(folder, tmp_path, monkeypatch):
    out = tmp_path / "x.zarr"
    run(settings(folder, out, layers="5"))
    monkeypatch.setitem(RECIPES, "strong", Recipe(area=(0.9, 1.0)))

    with pytest.raises(UnknownNameError, match="'strong' is not what it was"):
        run(settings(folder, out, views=1, extend=True))


def test_wrong_settings_of_views_are_told_together(folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"(?s)views must be positive, got 0.*augment must be one of flip, crop, strong"
    ):
        settings(folder, tmp_path / "x.zarr", views=0, augment="twist")


def test_training_draws_a_view_for_every_row_and_epoch_and_a_sequential_pass_is_clean(whole):
    store = open_store(whole)
    rows = np.arange(20)
    source = CachedSource(store, ["layers/cls/05"], rows, views=3)
    kept = np.stack([store.read("layers/cls/05", slice(0, 20), view) for view in range(3)])

    passes = [list(source.batches(6, order="shuffled", seed=seed)) for seed in (0, 0, 1)]
    (clean,) = source.batches(20)

    assert np.array_equal(clean.arrays["layers/cls/05"].numpy(), kept[0])
    chosen = []
    for batches in passes:
        views = {}
        for batch in batches:
            for row, values in zip(batch.rows, batch.arrays["layers/cls/05"].numpy(), strict=True):
                (views[int(row)],) = (view for view in range(3) if np.array_equal(kept[view, row], values))
        assert sorted(views) == list(range(20))
        chosen.append([views[row] for row in range(20)])
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(chosen[0]) == {0, 1, 2}


def test_a_head_trained_on_all_views_is_measured_on_the_clean_one(whole, tmp_path):
    reports = {
        views: train(TrainHeadConfig(store=whole, out=tmp_path / views, views=views, epochs=3, quiet=True))
        for views in ("all", "clean")
    }

    heads = [(tmp_path / views / "head.safetensors").read_bytes() for views in reports]
    assert heads[0] != heads[1]
    assert reports["all"].record["rows"] == reports["clean"].record["rows"]
