"""Features of two kinds never share a store: every field that differs is named, and versions that changed are tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from featurecache.errors import FeatureCacheError, StoreMismatchError, UnreadableSampleError
from featurecache.provenance import PROVENANCE, note, provenance
from save_features import run
from tests.extraction_samples import BATCH, Forwards, lasting, pictures, settings

IMAGENET = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}

CHANGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mean and std": ({"transform": IMAGENET}, ("backbone.transform.mean", "backbone.transform.std")),
    "crop": ({"transform": {"crop": 0.5}}, ("backbone.transform.crop_pct",)),
    "other weights": ({"weights": "random:1"}, ("backbone.weights",)),
    "image size": ({"image_size": 48}, ("backbone.image_size", "backbone.transform.input_size")),
    "norm": ({"norm": "none"}, ("backbone.norm: the store has 'final', this run 'none'",)),
    "precision": ({"precision": "bf16"}, ("backbone.precision: the store has 'fp32', this run 'bf16'",)),
    "batch size": ({"batch_size": 8}, ("backbone.batch_size: the store has 16, this run 8",)),
    "dtype": ({"dtype": "float32"}, ("dtype: the store has 'float16', this run 'float32'",)),
    "another model": ({"backbone": "timm:test_vit2"}, ("backbone.name: the store has 'timm:test_vit",)),
    "activation": (
        {"backbone_option": {"act_layer": "relu"}},
        ("backbone.architecture.act_layer", "backbone.activation"),
    ),
    "split": ({"split_seed": 1}, ("data.split",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    out = folder.parent / "finished.zarr"
    run(settings(folder, out, layers="4-5"))
    return out


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    return Forwards().watch(monkeypatch)


@pytest.mark.parametrize("extend", [False, True], ids=["plain", "extending"])
@pytest.mark.parametrize(("changes", "named"), CHANGES.values(), ids=CHANGES.keys())
def test_every_field_that_differs_is_named(folder, finished, changes, named, extend):
    before = lasting(finished)

    with pytest.raises(StoreMismatchError) as refused:
        run(settings(folder, finished, **{"layers": "all", **changes}, extend=extend))

    assert all(field in str(refused.value) for field in named), str(refused.value)
    assert "Give another --out, or the settings of the store" in str(refused.value)
    assert lasting(finished) == before


def test_padding_that_changes_no_weight_is_named(folder, tmp_path):
    model = {"backbone": "timm:mobilenetv2_035", "layers": "last"}
    config = settings(folder, tmp_path / "x.zarr", **model, backbone_option={"pad_type": "same"})
    run(config)

    with pytest.raises(StoreMismatchError, match=r"architecture\.pad_type: the store has 'same', this run None"):
        run(settings(folder, config.out, **model))


def test_a_grid_of_patches_of_another_size_is_named(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="5", tokens="patch-grid:1")
    run(config)

    with pytest.raises(StoreMismatchError, match=r"tokens\.patch-grid: the store has 'patch-grid:1', this run"):
        run(settings(folder, config.out, layers="5", tokens="patch-grid:2", extend=True))


def test_rows_are_tried_again_when_a_version_has_changed_and_nothing_moved(folder, tmp_path, forwards, caplog):
    config = interrupted(folder, tmp_path / "x.zarr", forwards)
    pretend_older(config.out, "timm", "0.0.1")
    caplog.set_level("INFO", "featurecache")

    run(config)

    assert "timm changed; features recomputed to 0.0e+00 of their size" in caplog.text


def test_an_extension_under_another_version_is_tried_too(folder, tmp_path, forwards):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    run(config)
    pretend_older(config.out, "torch", "0.0.1")
    forwards.change = spoiled(0.01)

    with pytest.raises(StoreMismatchError, match=r"was written with torch 0\.0\.1; now there is torch"):
        run(settings(folder, config.out, layers="4-5", extend=True))


@pytest.mark.parametrize("scale", [0.01, -2.0])
def test_a_backbone_that_gives_something_else_is_refused(folder, tmp_path, forwards, scale):
    config = interrupted(folder, tmp_path / "x.zarr", forwards)
    pretend_older(config.out, "torch", "0.0.1")
    forwards.change = spoiled(scale)
    before = lasting(config.out)

    with pytest.raises(
        StoreMismatchError, match=r"no longer gives what is stored: .* of 'cat/.*' differs by"
    ) as refused:
        run(config)

    assert "Go back to what wrote it (see provenance.jsonl), or give another --out" in str(refused.value)
    after = lasting(config.out)
    assert {name for name in before if before[name] != after[name]} <= {"writer.lock"}


def test_a_difference_of_rounding_is_accepted(folder, tmp_path, forwards):
    config = interrupted(folder, tmp_path / "x.zarr", forwards)
    pretend_older(config.out, "torch", "0.0.1")
    forwards.change = spoiled(1e-5)

    assert run(config).kept == 2 * BATCH


def test_a_store_without_provenance_is_tried_as_well(folder, tmp_path, forwards):
    config = interrupted(folder, tmp_path / "x.zarr", forwards)
    (config.out / "provenance.jsonl").unlink()
    forwards.change = spoiled(0.01)

    with pytest.raises(FeatureCacheError, match="was written with provenance unknown"):
        run(config)


def test_an_image_that_went_bad_is_told_as_such_and_not_as_another_backbone(tmp_path, forwards):
    own = pictures(tmp_path / "animals")
    config = interrupted(own, tmp_path / "x.zarr", forwards)
    pretend_older(config.out, "torch", "0.0.1")
    for victim in (own / "cat/000.png", own / "dog/019.png"):
        victim.write_bytes(bytes(victim.stat().st_size))

    with pytest.raises(UnreadableSampleError, match=r"cannot read 'dog/019\.png'"):
        run(config)


def interrupted(folder: Path, out: Path, forwards: Forwards) -> Any:
    """Stop an extraction of 40 rows in its last batch; return its config."""
    config = settings(folder, out, layers="4-5")

    def stop(outputs: dict[str, Tensor], number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    forwards.change = stop
    with pytest.raises(KeyboardInterrupt):
        run(config)
    forwards.change = lambda outputs, number: None
    return config


def pretend_older(store: Path, library: str, version: str) -> None:
    """Let provenance say that another version of a library wrote the store."""
    line = provenance(store)[0]
    line["environment"]["versions"][library] = version
    (store / PROVENANCE).unlink()
    note(store, line)


def spoiled(scale: float) -> Callable[[dict[str, Tensor], int], None]:
    """Return what changes every feature by `scale` of its size."""

    def change(outputs: dict[str, Tensor], number: int) -> None:
        for values in outputs.values():
            values *= 1 + scale

    return change
