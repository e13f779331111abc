"""`train-online`: the run folder of `train-head`, the same numbers where nothing of the backbone learns, and what it learned."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from featurecache.checks import config_from
from featurecache.errors import ConfigError, RunError, UnknownNameError, UnreadableSampleError
from featurecache.peft import ADAPTED
from featurecache.seeding import seed_of
from featurecache.sources.cached import CachedSource
from featurecache.stores import open_store
from heads._checkpoint import load_head
from pipelines import train_online as module
from pipelines.inspect import InfoConfig, ListConfig, info, list_names
from pipelines.objectives.cross_entropy import build as objective_of
from pipelines.online.planning import images_of, planned, sources_of
from pipelines.online.settings import TrainOnlineConfig
from pipelines.predict import Predictor
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as run_cached
from pipelines.train_online import run
from pipelines.training.distributed import ALONE
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.pipelines.online_samples import CLASSES, TINY, online, photos
from tests.pipelines.pictures import pictures

FULL = {"peft": "full", "head": "lfa", "head_option": {"start": "published"}, "backbone_lr": 1e-4}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
HEADS_COMPARED = {"linear": "auto", "mlp": "auto", "lfa": "auto", "attentive": "all"}
"""Heads without dropout, and the tokens that they read."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("online") / "photos")


@pytest.fixture(scope="module")
def store(data):
    """The features of the pictures as float32."""
    path = data.parent / "photos.zarr"
    extract(SaveFeaturesConfig(data=str(data), out=path, dtype="float32", tokens="cls+all", quiet=True, **TINY))
    return path


@pytest.fixture(scope="module")
def full(data):
    """A run that trained its backbone."""
    out = data.parent / "full"
    run(online(data, out, **FULL, epochs=3))
    return out


def record(folder) -> dict:
    return json.loads((folder / "record.json").read_text())


class TestOfflineIsOnline:
    """The same rows in the same order from a float32 store, and live without augmentation.

    Features differ in the last bits, since libraries choose other kernels for batches of other sizes than the extraction's:
    at most 1e-5 of a value here. Standardised features, logits and gradients of them are asked to agree to 1e-4.
    """

    @pytest.mark.parametrize("name", HEADS_COMPARED)
    def test_batches_logits_and_gradients_are_equal(self, data, store, tmp_path, name):
        config = online(data, tmp_path / "run", head=name, tokens=HEADS_COMPARED[name])
        plan = planned(config)
        with images_of(plan, config, ALONE) as images:
            sources, _ = sources_of(plan, images, config, ALONE)
            live = sources["train"]
            cached = CachedSource(open_store(store), list(plan.spec.shapes), live.rows)
            pairs = list(
                zip(*(one.batches(8, order="shuffled", seed=seed_of(1)) for one in (cached, live)), strict=True)
            )
            torch.manual_seed(0)
            head, _, _ = module._started(plan, sources, config, ALONE)

        for offline, now in pairs:
            assert offline.rows.tolist() == now.rows.tolist()
            assert offline.targets.tolist() == now.targets.tolist()
            gradients = []
            for batch in (offline, now):
                head.zero_grad()
                objective_of("classification")({"logits": head(batch.arrays)}, batch).total.backward()
                gradients.append([p.grad.clone() for p in head.parameters() if p.requires_grad])
            for key, values in offline.arrays.items():
                torch.testing.assert_close(now.arrays[key], values, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(head(now.arrays), head(offline.arrays), **CLOSE)
            torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)

    @pytest.mark.parametrize("name", HEADS_COMPARED)
    def test_after_twenty_steps_the_heads_are_equal(self, data, store, tmp_path, name):
        shared = {"head": name, "tokens": HEADS_COMPARED[name], "epochs": 5, "batch_size": 8, "lr": 1e-3, "quiet": True}

        run_cached(TrainHeadConfig(store=store, out=tmp_path / "cached", **shared))
        done = run(online(data, tmp_path / "online", **shared)).record

        assert done["steps"] >= 20
        offline, now = (load_head(tmp_path / folder)[0].state_dict() for folder in ("cached", "online"))
        assert offline.keys() == now.keys()
        for key, values in offline.items():
            torch.testing.assert_close(now[key], values, **CLOSE)
        said = [pq.read_table(tmp_path / folder / "predictions.parquet") for folder in ("cached", "online")]
        assert said[0]["sample_id"].to_pylist() == said[1]["sample_id"].to_pylist()
        np.testing.assert_allclose(said[0]["prob_cat"].to_numpy(), said[1]["prob_cat"].to_numpy(), atol=1e-3)
        assert done["metrics"]["test"].keys() == record(tmp_path / "cached")["metrics"]["test"].keys()


def test_a_run_that_trains_nothing_of_the_backbone_has_the_files_of_a_cached_one(data, store, tmp_path):
    run_cached(TrainHeadConfig(store=store, out=tmp_path / "cached", epochs=1, quiet=True))
    run(online(data, tmp_path / "online", peft="linear"))

    cached, live = ({path.name for path in (tmp_path / f).iterdir()} for f in ("cached", "online"))
    assert live == cached
    assert record(tmp_path / "cached").keys() <= record(tmp_path / "online").keys()


def test_a_run_that_trains_the_backbone_keeps_what_it_trained_alone(full):
    found, values = record(full), load_file(full / "backbone.safetensors")

    assert found["peft"] == {"method": "full", "options": {}} and found["best_epoch"] > 0
    assert "blocks.5.mlp.fc2.weight" in values and "head.weight" not in values
    assert found["trained_backbone_parameters"] == sum(value.numel() for value in values.values())
    assert found["backbone_parameters"] == found["trained_backbone_parameters"]  # its own classifier makes no feature
    assert found["trained_parameters"] > found["trained_backbone_parameters"]
    assert found["steps"] == 3 * -(-found["rows"]["train"] // 8) and found["step_seconds"] > 0
    assert found["peak_memory_bytes"] is None and found["processes"] == 1
    assert not (full / "checkpoint.pt").exists()


def test_predict_runs_the_trained_backbone(data, full):
    lines = pq.read_table(full / "predictions.parquet").to_pydict()
    files = [data / name for name in lines["sample_id"]]

    found = Predictor.load(full).predict(files, topk=3)

    assert [one.answer for one in found] == lines["pred"]
    for row, one in enumerate(found):
        for name in CLASSES:
            assert dict(one.top)[name] == pytest.approx(lines[f"prob_{name}"][row], abs=1e-5)


def test_predict_without_what_was_trained_is_refused(full, tmp_path):
    shutil.copytree(full, tmp_path / "run")
    (tmp_path / "run/backbone.safetensors").unlink()

    with pytest.raises(RunError, match=r"trained its backbone, but its backbone.safetensors is gone\. Bring it back"):
        Predictor.load(tmp_path / "run")


def test_training_the_backbone_learns_more_than_the_head_alone(data, tmp_path):
    losses = {}
    for peft in ("none", "full"):
        run(online(data, tmp_path / peft, peft=peft, epochs=6))
        lines = [json.loads(line) for line in (tmp_path / peft / "history.jsonl").read_text().splitlines()]
        losses[peft] = lines[-1]["train_loss"]

    assert losses["full"] < 0.8 * losses["none"]


def test_a_step_in_parts_is_the_same_step(data, tmp_path):
    whole, parts = (
        run(online(data, tmp_path / str(n), peft="full", optimizer="sgd", accumulate=n, epochs=1)) and tmp_path / str(n)
        for n in (1, 4)
    )

    one, other = (load_file(folder / "backbone.safetensors") for folder in (whole, parts))
    for key, values in one.items():
        torch.testing.assert_close(other[key], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_learn_too(data, tmp_path, precision):
    done = run(online(data, tmp_path / "run", peft="full", precision=precision, epochs=4)).record

    losses = [json.loads(line).get("train_loss") for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[1]
    assert done["features"]["backbone"]["precision"] == precision
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "run/backbone.safetensors").values())


def test_augmentation_and_drop_path_change_what_is_learned(data, tmp_path):
    settings = {
        "plain": {}, "crop": {"augment": "crop"}, "timm": {"augment": "timm", "augment_option": {"re_prob": 0.5}},
        "drop": {"drop_path": 0.5},
    }  # fmt: skip

    for name, changes in settings.items():
        run(online(data, tmp_path / name, peft="full", epochs=1, **changes))

    losses = {(tmp_path / name / "history.jsonl").read_text().splitlines()[-1] for name in settings}
    assert len(losses) == len(settings)


def test_the_same_command_twice_is_a_no_op_and_another_is_refused(data, tmp_path, monkeypatch):
    config = online(data, tmp_path / "run")
    first = run(config)
    monkeypatch.setattr(module, "train_online", lambda *_: pytest.fail("it trains again"))

    again = run(config)

    assert again.repeated and again.record == json.loads(json.dumps(first.record))
    assert "this run is there already: nothing to do" in again.tables()[0].notes[0]
    assert run(online(data, tmp_path / "run", workers=0, decode_threads=2)).repeated
    with pytest.raises(RunError, match="holds another run:\n  augment: that run has 'none', this one 'crop'"):
        run(online(data, tmp_path / "run", augment="crop"))


def test_the_same_training_gives_the_same_bits(data, tmp_path):
    for name in ("one", "other"):
        run(online(data, tmp_path / name, peft="full", augment="timm", drop_path=0.2, head="lfa", epochs=1))

    for file in ("backbone.safetensors", "head.safetensors", "history.jsonl", "predictions.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


class TestInitFrom:
    def test_a_head_of_cached_features_is_the_start(self, data, store, tmp_path):
        run_cached(TrainHeadConfig(store=store, out=tmp_path / "cached", head="lfa", epochs=2, quiet=True))

        run(online(data, tmp_path / "run", head="lfa", init_from=tmp_path / "cached", epochs=0))

        offline, now = (load_head(tmp_path / folder)[0].state_dict() for folder in ("cached", "run"))
        assert all(torch.equal(now[key], value) for key, value in offline.items())
        assert (
            record(tmp_path / "run")["metrics"]["test"]["top1"]
            == record(tmp_path / "cached")["metrics"]["test"]["top1"]
        )

    def test_head_and_backbone_of_an_online_run_are_the_start(self, data, full, tmp_path):
        run(online(data, tmp_path / "run", **FULL, init_from=full, epochs=0))

        for file in ("backbone.safetensors", "head.safetensors"):
            before, now = load_file(full / file), load_file(tmp_path / "run" / file)
            assert all(torch.equal(now[key], value) for key, value in before.items())

    def test_head_and_method_are_those_of_the_run_where_nobody_names_others(self, data, full, tmp_path):
        asked = {"data": str(data), "out": tmp_path / "run", "epochs": 0, **TINY}

        took = config_from(TrainOnlineConfig, TrainOnlineConfig.expanded({**asked, "init_from": full}))
        other = TrainOnlineConfig.expanded({**asked, "init_from": full, "head": "linear", "peft": "lora"})

        of_run = json.loads((full / "config.json").read_text())
        for name in ("head", "head_option", "peft", "peft_option"):
            assert getattr(took, name) == of_run[name]
        assert of_run["head"] == "lfa" and other["head"] == "linear" and other["peft"] == "lora"
        assert not {"head_option", "peft_option"} & other.keys()
        with pytest.raises(RunError, match="is not a run folder"):
            TrainOnlineConfig.expanded({**asked, "init_from": tmp_path / "nowhere"})
        run(replace(took, quiet=True))

    def test_what_differs_is_told_together(self, data, full, tmp_path):
        with pytest.raises(RunError) as refused:
            run(online(data, tmp_path / "run", weights="random:1", init_from=full))

        assert "cannot be gone on from" in str(refused.value)
        for line in ("backbone.weights: that run has", "head: that run has 'lfa', this one 'linear'",
                     "peft: that run has 'full', this one 'none'"):  # fmt: skip
            assert line in str(refused.value)
        assert not (tmp_path / "run").exists()

    def test_a_head_that_reads_other_layers_is_refused(self, data, full, tmp_path):
        with pytest.raises(RunError, match="reads layers/cls/00, .* but this one would read layers/cls/03 .*--layers"):
            run(online(data, tmp_path / "run", **FULL, layers="3", init_from=full))


class TestRefusals:
    def test_several_mistakes_are_told_together(self, data, tmp_path):
        with pytest.raises(ConfigError) as refused:
            run(online(data, tmp_path / "run", head_option={"nor_this": 1}, drop_path=0.1, backbone_lr=1e-3))

        assert len(refused.value.problems) == 3
        assert any("--drop-path drops branches" in problem for problem in refused.value.problems)
        assert not (tmp_path / "run").exists()

    def test_settings_that_cannot_work_are_refused_at_birth(self, data, tmp_path):
        with pytest.raises(ConfigError) as refused:
            online(data, tmp_path / "run", batch_size=8, accumulate=3, drop_path=1.5, backbone_lr=-1.0, workers=2)

        assert len(refused.value.problems) == 4

    def test_unknown_names_are_answered_before_anything_is_built(self, data, tmp_path):
        with pytest.raises(UnknownNameError, match="no method called 'ful'. Did you mean 'full'"):
            run(online(data, tmp_path / "run", peft="ful"))
        with pytest.raises(UnknownNameError, match="no augmentation called 'cropp'. Did you mean 'crop'"):
            run(online(data, tmp_path / "run", augment="cropp"))
        assert not (tmp_path / "run").exists()

    def test_a_loss_that_is_no_number_leaves_nothing_half_written(self, data, tmp_path):
        with pytest.raises(RunError, match="ceased to be a number in epoch 1 .* Give a lower --lr or --backbone-lr"):
            run(online(data, tmp_path / "run", peft="full", backbone_lr=1e30, epochs=3))

        assert not (tmp_path / "run").exists()

    def test_an_unreadable_image_stops_the_run_or_is_left_out(self, tmp_path):
        folder = photos(tmp_path / "photos", each=8)
        bad = folder / "cat/03.png"
        bad.write_bytes(bad.read_bytes()[:50])

        with pytest.raises(UnreadableSampleError, match="cat/03.png.* skip: it is left out of training and measuring"):
            run(online(folder, tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        done = run(online(folder, tmp_path / "run", on_error="skip", epochs=1)).record
        assert list(done["skipped"]) == ["cat/03.png"] and sum(done["rows"].values()) == 23


def test_methods_are_listed_and_an_online_run_is_told_of(full):
    found = list_names(ListConfig(what="peft")).value["peft"]

    assert {"none", "linear", "full", "lora", "ssf"} <= {one["name"] for one in found}
    assert all(one["what"] for one in found)
    assert [one["name"] for one in found if not one["paper"]] == ["full", "linear", "none"]
    told = info(InfoConfig(store=full))
    assert ("backbone", "timm:test_vit") in told.tables()[0].rows
    model = timm.create_model("test_vit", num_classes=0, img_size=TINY["image_size"])
    backbone = sum(values.numel() for values in model.parameters())
    head = sum(values.numel() for values in load_head(full)[0].parameters())
    sizes = (
        f"{backbone + head:,} parameters (backbone {backbone:,} + head {head:,}), {backbone + head:,} of them trainable"
    )
    assert sizes in told.tables()[-1].notes[0] and ("parameters", sizes) in told.tables()[0].rows


@pytest.mark.parametrize("backbone", ["timm:test_resnet", "timm:test_efficientnet"])
def test_an_odd_last_batch_of_one_image_goes_through_the_running_statistics_of_batch_norms(backbone, tmp_path):
    folder = pictures(tmp_path / "photos/train", {"red": 3, "green": 3, "blue": 3})
    pictures(folder.parent / "val", {"red": 1, "green": 1, "blue": 1}, first=20)
    pictures(folder.parent / "test", {"red": 1, "green": 1, "blue": 1}, first=30)
    asked = {"data": str(folder.parent), "backbone": backbone, "weights": "random:0", "image_size": 32, "peft": "full"}

    record = run(
        TrainOnlineConfig(**asked, head="linear", batch_size=8, epochs=1, out=tmp_path / "run", quiet=True)
    ).record

    assert record["rows"]["train"] == 9
    moved = load_file(tmp_path / "run" / ADAPTED)
    assert all(bool(torch.isfinite(values).all()) for values in moved.values())
