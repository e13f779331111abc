"""Methods in real online trainings: with heads of CLIP, from a cached run, with a wider embedding, and where they are refused."""

from __future__ import annotations

import pytest

from featurecache.errors import BackboneError, ConfigError, RunError
from pipelines.predicting.predictor import Predictor
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as run_cached
from pipelines.train_online import run
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.featurecache.backbones.clip_samples import VIT, written
from tests.pipelines.online_samples import TINY, online, photos


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("methods") / "photos", each=8)


def test_the_layers_of_a_clip_tower_are_read_while_it_learns(data, tmp_path):
    name = written(VIT, tmp_path)

    done = run(
        online(data, tmp_path / "run", backbone=name, image_size=None, peft="lora", head="lfa_clip", epochs=1)
    ).record

    assert done["trained_backbone_parameters"] == 3 * 8 * (32 + 96)
    assert Predictor.load(tmp_path / "run").predict([next(data.rglob("*.png"))])[0].answer in done["class_names"]


def test_a_method_starts_from_a_head_of_cached_features(data, tmp_path):
    extract(SaveFeaturesConfig(data=str(data), out=tmp_path / "x.zarr", quiet=True, **TINY))
    run_cached(TrainHeadConfig(store=tmp_path / "x.zarr", out=tmp_path / "cached", head="lfa", epochs=1, quiet=True))

    settings = {"head": "lfa", "peft": "lora", "init_from": tmp_path / "cached"}
    done = run(online(data, tmp_path / "run", epochs=1, **settings)).record

    assert done["trained_backbone_parameters"] == 6 * 8 * (64 + 192)


def test_queries_are_read_in_the_embedding_which_they_widen(data, tmp_path):
    done = run(online(data, tmp_path / "run", peft="vqt", epochs=1)).record

    assert done["arrays"] == ["embedding"] and done["parameters"] == 3 * (64 + 6 * 64 + 1)
    with pytest.raises(ConfigError, match="--peft vqt speaks through the embedding alone, and --head lfa would read"):
        run(online(data, tmp_path / "other", peft="vqt", head="lfa"))


def test_a_backbone_that_cannot_take_a_method_is_told_which_ones_it_can(data, tmp_path):
    with pytest.raises(
        BackboneError, match=r"ResNet cannot take the method lora.* It can take: bitfit, full, linear, none\."
    ):
        run(online(data, tmp_path / "run", backbone="timm:test_resnet", image_size=None, peft="lora"))


def test_options_out_of_range_are_told_together(data, tmp_path):
    with pytest.raises(ConfigError, match="(?s)2 problems.*rank must lie in 1..64.*dropout must lie in"):
        run(online(data, tmp_path / "run", peft="lora", peft_option={"rank": 0, "dropout": 2.0}))
    with pytest.raises(ConfigError, match="blocks 4-9 lies outside the model, whose 6 blocks are 0-5"):
        run(online(data, tmp_path / "run", peft="vpt_deep", peft_option={"blocks": "4-9"}))


def test_what_was_trained_in_one_backbone_is_not_put_into_another(data, tmp_path):
    run(online(data, tmp_path / "run", peft="lora", epochs=0))

    with pytest.raises(RunError, match="(?s)cannot be gone on from.*backbone.weights"):
        run(online(data, tmp_path / "other", peft="lora", weights="random:1", init_from=tmp_path / "run"))
