"""Weights files: what is loaded, and what is refused before it can do harm."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from featurecache.backbones import BackboneOptions, Request, load_backbone
from featurecache.errors import WeightsError
from tests.shared_data import CIFAR, MOBILENET, VIT_TINY, needs_shared

MODEL = "test_resnet"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return timm.create_model(MODEL).state_dict()


def loaded(path: Path, name: str = MODEL, **options):
    return load_backbone(name, BackboneOptions(weights=str(path), **options))


def refusal(path: Path, name: str = MODEL) -> str:
    with pytest.raises(WeightsError) as caught:
        loaded(path, name)
    return str(caught.value)


def pickled(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("wrapping", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_a_state_dict_is_found_under_the_usual_names(state, tmp_path, wrapping):
    backbone = loaded(pickled(wrapping(state), tmp_path / "weights.pth"))

    assert all(torch.equal(value, state[name]) for name, value in backbone.module.state_dict().items())


def test_the_container_of_weights_is_no_part_of_the_identity(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")

    one = loaded(tmp_path / "weights.safetensors")
    other = loaded(pickled(state, tmp_path / "moved.pt"))

    assert one.identity == other.identity
    assert one.name == f"timm:{MODEL}"


def test_the_origin_names_the_file_absolutely_and_builds_it_from_another_folder(state, tmp_path, monkeypatch):
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    backbone = loaded(Path("weights.safetensors"))
    monkeypatch.chdir(tmp_path / "elsewhere")

    origin = dict(backbone.origin)
    again = load_backbone(origin.pop("name"), BackboneOptions(**origin))

    assert origin["weights"] == str(tmp_path / "weights.safetensors")
    assert again.identity == backbone.identity


def test_loading_a_file_says_only_that_it_is_loaded(state, tmp_path, caplog):
    save_file(state, tmp_path / "weights.safetensors")

    with caplog.at_level(logging.INFO):
        loaded(tmp_path / "weights.safetensors")

    (message,) = caplog.messages
    assert message.startswith("loading the backbone")


def test_the_weights_of_another_architecture_are_refused_with_missing_and_unexpected_keys(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")

    message = refusal(tmp_path / "vit.safetensors")

    assert f"vit.safetensors does not hold the weights of timm:{MODEL}" in message
    assert "missing " in message and "layer1.0.bn1.bias" in message and " more" in message
    assert "unexpected " in message and "blocks.0.attn" in message
    assert "Give a file of this architecture." in message


def test_a_partial_state_dict_is_refused_with_the_keys_it_lacks(state, tmp_path):
    save_file({name: value for name, value in state.items() if "layer4" not in name}, tmp_path / "part.safetensors")
    lacking = sum("layer4" in name and "num_batches_tracked" not in name for name in state)

    message = refusal(tmp_path / "part.safetensors")

    assert f"missing {lacking}: layer4.0." in message


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext", "mixer_s32_224"])
def test_one_absent_tensor_is_enough_whatever_loader_the_family_has(name, tmp_path):
    whole = timm.create_model(name).state_dict()
    gone = next(key for key in whole if key.endswith("weight") and "head" not in key and "classifier" not in key)
    save_file({key: value for key, value in whole.items() if key != gone}, tmp_path / "part.safetensors")

    assert gone in refusal(tmp_path / "part.safetensors", name)


def test_a_file_of_other_classes_is_taken_with_them_as_by_the_option(tmp_path):
    save_file(timm.create_model(MODEL, num_classes=7).state_dict(), tmp_path / "seven.safetensors")

    by_itself, told = (loaded(tmp_path / "seven.safetensors", architecture=a) for a in ({}, {"num_classes": 7}))

    assert by_itself.num_logits == told.num_logits == 7
    assert by_itself.identity == told.identity


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path):
    target = tmp_path / "ran"
    path = pickled({"fc.weight": Bomb(target)}, tmp_path / "bomb.pth")

    assert "holds more than tensors" in refusal(path)
    assert not target.exists()


def test_a_pickle_with_code_under_the_name_of_safetensors_is_refused(tmp_path):
    path = pickled({"fc.weight": Bomb(tmp_path / "ran")}, tmp_path / "bomb.safetensors")

    assert "cannot be read as safetensors" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_archive_is_refused_by_kind(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py", "script/version"):
            archive.writestr(name, b"3\n")

    assert "is a TorchScript archive, which holds code. Save its state_dict() as safetensors" in refusal(
        tmp_path / "script.pt"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(state, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])

    assert str(path) in refusal(path)


@pytest.mark.parametrize("value", [[1, 2], {}, {"lr": 0.1}, torch.zeros(3)])
def test_a_pickle_of_something_else_is_refused(tmp_path, value):
    assert "holds no state dict (names with tensors)" in refusal(pickled(value, tmp_path / "other.pth"))


def test_a_missing_file_is_answered_with_the_way_out(tmp_path):
    assert refusal(tmp_path / "gone.pth") == (
        f"there is no weights file {tmp_path / 'gone.pth'}. Give --weights FILE, or --weights random:SEED."
    )


def test_weights_that_timm_never_had_name_the_way_out():
    with pytest.raises(
        WeightsError, match="timm has no weights for vit_base_patch32_plus_256[^ ]* Give --weights FILE"
    ):
        load_backbone("timm:vit_base_patch32_plus_256")


def test_a_download_that_fails_names_the_place_and_the_way_out(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("the network is down")

    monkeypatch.setattr("featurecache.backbones._downloading.why_unreachable", lambda url: "")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)

    with pytest.raises(WeightsError, match=r"from https://huggingface.co/timm/.*\(.*network is down\).*--weights FILE"):
        load_backbone("timm:resnet18")


ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
FIRST_THING = 398
"""In ImageNet's order of classes the animals come first."""


@needs_shared
@pytest.mark.parametrize(
    ("name", "path", "architecture"),
    [("vit_tiny_patch16_224", VIT_TINY, {}), ("mobilenetv2_100", MOBILENET, {"pad_type": "same"})],
)
def test_real_weights_tell_animals_from_vehicles(name, path, architecture):
    backbone = loaded(path, name, architecture=architecture, transform={"mean": 0.5, "std": 0.5})
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(member for member in archive.namelist() if member.endswith(".jpg"))[::150]
        pictures = [Image.open(io.BytesIO(archive.read(member))).convert("RGB") for member in names]

    logits = backbone.forward(torch.stack([backbone.transform(p) for p in pictures]), Request(logits=True))["logits"]

    is_animal = torch.tensor([member.split("/")[1] in ANIMALS for member in names])
    right = ((logits.argmax(1) < FIRST_THING) == is_animal).float().mean()
    assert 0.4 < is_animal.float().mean() < 0.7 and len(names) >= 40
    assert right >= 0.8


@needs_shared
def test_padding_changes_features_of_the_same_real_weights_and_the_identity_says_so():
    same, plain = (loaded(MOBILENET, "mobilenetv2_100", architecture=a) for a in ({"pad_type": "same"}, {}))
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    features = [backbone.forward(images, Request())["embedding"] for backbone in (same, plain)]

    assert same.identity["weights"] == plain.identity["weights"]
    assert same.identity != plain.identity
    assert not torch.allclose(*features, atol=1e-2)
