"""What a run made of its backbone as a file: folded in and proved, or alone in published names and back from them."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from featurecache.errors import BackboneError, ConfigError, RunError, UnknownNameError, WeightsError
from pipelines.export_backbone import ACCEPTED, ExportBackboneConfig, run
from pipelines.predicting.predictor import Predictor
from pipelines.train_online import run as train
from tests.pipelines.online_samples import online, photos


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("export") / "photos", each=8)


@pytest.fixture(scope="module")
def lora(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    train(online(data, folder, peft="lora", peft_option={"rank": 2}, backbone_lr=0.1, epochs=1))
    return folder


def test_a_plain_model_with_the_file_says_what_the_run_says(data, tmp_path):
    folder = tmp_path / "ssf"
    train(online(data, folder, peft="ssf", epochs=0))  # which does not start as the backbone
    report = run(ExportBackboneConfig(run_folder=folder, out=tmp_path / "plain.safetensors"))
    module = timm.create_model("test_vit", img_size=32)
    module.load_state_dict(load_file(tmp_path / "plain.safetensors"))

    images = torch.randn(2, 3, 32, 32)
    trained = Predictor.load(folder).backbone.module
    torch.testing.assert_close(module.eval()(images), trained(images), rtol=1e-4, atol=1e-5)
    assert 0 < report.facts["largest_difference"] <= ACCEPTED
    start = timm.create_model("test_vit", img_size=32).state_dict()
    assert list(load_file(tmp_path / "plain.safetensors")) == sorted(start)


def test_what_was_trained_alone_goes_out_and_comes_back_in_the_names_of_the_paper(data, lora, tmp_path):
    run(ExportBackboneConfig(run_folder=lora, out=tmp_path / "names.safetensors", names="peft"))

    settings = {"peft": "lora", "peft_option": {"rank": 2}, "epochs": 0}
    train(online(data, tmp_path / "again", load_published=("peft", tmp_path / "names.safetensors"), **settings))

    assert "blocks.0.attn.lora.lora_a.weight" in load_file(tmp_path / "names.safetensors")
    before, now = (load_file(folder / "backbone.safetensors") for folder in (lora, tmp_path / "again"))
    assert before.keys() == now.keys() and all(torch.equal(now[key], value) for key, value in before.items())


def test_what_cannot_be_folded_is_refused_with_those_that_can(data, tmp_path):
    train(online(data, tmp_path / "run", peft="adapter", epochs=0))

    with pytest.raises(BackboneError, match="what adapter adds cannot be folded .* bitfit, difffit, .*lora, .*ssf"):
        run(ExportBackboneConfig(run_folder=tmp_path / "run", out=tmp_path / "plain.safetensors"))
    assert not (tmp_path / "plain.safetensors").exists()


def test_a_run_that_trained_the_head_alone_has_nothing_to_export(data, tmp_path):
    train(online(data, tmp_path / "run", epochs=0))

    with pytest.raises(RunError, match="trained nothing of its backbone"):
        run(ExportBackboneConfig(run_folder=tmp_path / "run", out=tmp_path / "plain.safetensors"))


class TestPublishedValues:
    def loaded(self, data, folder, file, family="peft", **changes):
        settings = {"peft": "lora", "peft_option": {"rank": 2}, "epochs": 0, **changes}
        return train(online(data, folder, load_published=(family, file), **settings))

    def test_of_another_method_or_size_are_refused_with_what_is_missing(self, data, lora, tmp_path):
        run(ExportBackboneConfig(run_folder=lora, out=tmp_path / "names.safetensors", names="peft"))

        with pytest.raises(RunError, match="is missing(.|\n)*Give the --peft and --peft-option"):
            self.loaded(data, tmp_path / "run", tmp_path / "names.safetensors", peft="adapter", peft_option={})
        with pytest.raises(RunError, match=r"lora.down.weight is \(2, 64\), but \(3, 64\) is wanted"):
            self.loaded(data, tmp_path / "run", tmp_path / "names.safetensors", peft_option={"rank": 3})
        assert not (tmp_path / "run").exists()

    def test_trained_in_another_backbone_are_refused(self, data, lora, tmp_path):
        run(ExportBackboneConfig(run_folder=lora, out=tmp_path / "names.safetensors", names="peft"))
        whole = {**load_file(tmp_path / "names.safetensors"), "norm.weight": torch.full((64,), 3.0)}
        save_file(whole, tmp_path / "whole.safetensors")

        with pytest.raises(
            RunError, match="trained in another backbone: 1 of its 1 frozen tensors differ .* norm.weight"
        ):
            self.loaded(data, tmp_path / "run", tmp_path / "whole.safetensors")

    def test_need_a_file_of_tensors_a_known_family_and_a_method_that_learns(self, data, tmp_path):
        (tmp_path / "text.pt").write_text("not tensors")

        with pytest.raises(WeightsError, match="there is no file"):
            self.loaded(data, tmp_path / "run", tmp_path / "absent.pt")
        with pytest.raises(WeightsError, match="text.pt .*Save its state dict alone"):
            self.loaded(data, tmp_path / "run", tmp_path / "text.pt")
        torch.save({"a": torch.ones(1)}, tmp_path / "some.pt")
        with pytest.raises(UnknownNameError, match="no published names called 'pefft'.* Did you mean 'peft'"):
            self.loaded(data, tmp_path / "run", tmp_path / "some.pt", family="pefft")
        with pytest.raises(ConfigError, match="--load-published brings what a method learned, and --peft none"):
            self.loaded(data, tmp_path / "run", tmp_path / "some.pt", peft="none", peft_option={})
