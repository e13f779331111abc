"""LFA against the recorded numbers of the original implementation: its head, and the features that it reads, extracted with a backbone of open_clip and read from the store."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heads._published_lfa import HERE
from tests.conformance.lfa_head import IMAGES, found_by, from_features, from_store
from tests.conformance.lfa_store import WEIGHTS, Arrays, in_the_store, read, store_of

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEATURECACHE_CONFORMANCE", REPOSITORY / ".." / "shared" / "conformance"))
FILES = sorted(FOLDER.glob("lfa_*.npz"))

ELSEWHERE = ("lfa_dg_protocol", "lfa_fewshot_lr_schedule")
"""Files that `test_lfa_protocols` reads."""
EXTRACTED = {"image_layer_features", "text_layer_features", "clip_image_embed", "clip_text_embed_first_prompt"}
INPUTS = {
    IMAGES, "token_ids", "image_features", "text_features", "labels", "logit_scale_log", "beta",
    "dropout_p", "dropout_mask_image", "dropout_mask_text", "adapter_w_down", "adapter_w_up", "adapter_ratio",
}  # fmt: skip
ATOL = 1e-4
"""Of logits, which are of the order of 100, and of features; other arrays are compared relative to their largest value."""

if not FILES:
    pytest.skip(
        f"no lfa_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE to the folder of fixtures",
        allow_module_level=True,
    )

CLAIMED = [path for path in FILES if path.stem not in ELSEWHERE]


def expected_in(arrays: Arrays) -> set[str]:
    """Return the arrays of a file that are neither images, features, weights, nor options."""
    given = set(HERE)
    if IMAGES in arrays:  # values begin where the store says: they are compared
        given = {name for name in HERE if not name.startswith("Wv")}
    inputs = INPUTS - ({"logit_scale_log"} if IMAGES in arrays else set())
    return {name for name in arrays if not name.startswith(WEIGHTS)} - inputs - given


def differences(arrays: Arrays, found: Arrays) -> dict[str, float]:
    """Return array -> largest difference in units of what is tolerated; raises where one is not compared."""
    assert {name: values.shape for name, values in found.items()} == {
        name: arrays[name].shape for name in expected_in(arrays)
    }
    absolute = EXTRACTED | {name for name in found if name.startswith("logits")}
    sizes = {name: ATOL * (1 if name in absolute else float(np.abs(arrays[name]).max())) for name in found}
    return {name: float(np.abs(found[name] - arrays[name]).max()) / sizes[name] for name in found}


def everything(arrays: Arrays, folder: Path, suffix: str = ".zarr") -> Arrays:
    """Return all that a file expects, as it comes out of its inputs here."""
    folder.mkdir(exist_ok=True)
    if IMAGES not in arrays:
        return found_by(arrays, from_features(arrays), folder)
    store = store_of(arrays, folder, suffix)
    return in_the_store(store) | found_by(arrays, from_store(arrays, store), folder)


def changed(values: np.ndarray[Any, Any], name: str, classes: int) -> np.ndarray[Any, Any]:
    """Return an array of which one number is another."""
    other = values.copy()
    if name == "labels":
        other.flat[-1] = (other.flat[-1] + 1) % classes
    elif name == "token_ids":
        other.flat[1] += 1  # a word of the first prompt, neither begin nor end
    elif "mask" in name:
        other.flat[-1] = 1 - other.flat[-1]
    elif name.startswith("adapter_w"):
        other *= 1.1  # a single number may stand behind a rectifier that is shut
    else:
        other.flat[-1] += max(0.05, float(np.abs(values).max()) * 0.05)
    return other


def test_every_file_is_read_here_or_listed():
    assert {path.stem for path in FILES} - set(ELSEWHERE) == {
        "lfa_end_to_end_tiny_clip", "lfa_head_dg_fullrank", "lfa_head_dg_lowrank", "lfa_head_fewshot",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "suffix"), [
    (path, suffix) for path in CLAIMED for suffix in ([".zarr", ".h5"] if path.stem.startswith("lfa_end") else [".zarr"])
], ids=lambda value: getattr(value, "stem", value))  # fmt: skip
def test_features_and_head_give_what_the_original_gave(path, suffix, tmp_path):
    arrays = read(path)

    far = differences(arrays, everything(arrays, tmp_path, suffix))

    assert {name: value for name, value in far.items() if not value <= 1} == {}


@pytest.mark.parametrize("path", CLAIMED, ids=lambda path: path.stem)
def test_one_changed_number_is_noticed_whatever_array_it_is_in(path, tmp_path):
    arrays, unnoticed = read(path), []
    found, classes = everything(arrays, tmp_path / "same"), arrays["logits"].shape[1]

    for number, name in enumerate(name for name in arrays if not name.startswith(WEIGHTS)):
        other = {**arrays, name: changed(arrays[name], name, classes)}
        again = found if name in expected_in(arrays) else everything(other, tmp_path / str(number))
        if max(differences(other, again).values()) <= 1:
            unnoticed.append(name)

    assert unnoticed == []
