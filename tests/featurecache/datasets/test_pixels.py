"""How pictures become RGB is said behind the path, kept in the spec, and recorded only where it changes features."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.datasets import open_dataset, with_rgb_conversion
from featurecache.errors import DatasetError
from featurecache.rgb_conversion import RgbConversion
from tests.featurecache.datasets.pictures import as_folder, as_tar, as_zip
from tests.featurecache.datasets.test_decoding import ODD_BUT_GOOD
from tests.featurecache.test_rgb_conversion import FULL_SCALE, GREY, png16, saved

TWELVE = {f"a/{n}.png": saved(np.roll(GREY, n).astype(np.uint16) * 16, "PNG") for n in range(12)}


def as_manifest(files, root):
    as_folder(files, root)
    (root / "list.csv").write_text("file,class\n" + "".join(f"{name},x\n" for name in files))
    return f"{root}/list.csv?path=file&label=class"


PACKS = {"folder": as_folder, "zip": as_zip, "tar": as_tar, "manifest": as_manifest}


@pytest.mark.parametrize("pack", PACKS)
def test_a_range_is_followed_recorded_and_opened_again(pack, tmp_path):
    spec = PACKS[pack](TWELVE, tmp_path / (f"x.{pack}" if pack in ("zip", "tar") else "x"))

    dataset = open_dataset(f"{spec}{'&' if '?' in spec else '?'}range=0..4095")
    again = open_dataset(dataset.spec)

    assert dataset.identity == {**open_dataset(spec).identity, "pixels": {"range": [0.0, 4095.0]}}
    assert again.identity == dataset.identity and again.spec == dataset.spec
    assert np.array_equal(again.read(0), dataset.read(0))
    assert np.abs(np.asarray(dataset.read(0))[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    "content", [*ODD_BUT_GOOD.values(), FULL_SCALE["rgb png"], FULL_SCALE["32-bit tiff of 8-bit values"]], ids=str
)
@pytest.mark.filterwarnings("ignore")
def test_what_earlier_versions_read_alike_has_the_identity_that_it_had(content, tmp_path):
    dataset = open_dataset(as_folder({"a/x.png": content}, tmp_path / "x"))

    assert set(dataset.identity) == {"name", "fingerprint", "rows", "split_rule"}
    assert "?" not in dataset.spec


@pytest.mark.parametrize("deep", [1, 30, 64])
def test_values_that_are_scaled_are_recorded_wherever_they_lie(deep, tmp_path):
    files = {f"a/{n:02d}.png": FULL_SCALE["8 bits"] for n in range(64 - deep)}
    files |= {f"b/{n:02d}.tif": FULL_SCALE["tiff"] for n in range(deep)}

    identity = open_dataset(as_folder(files, tmp_path / "x")).identity

    assert identity["pixels"] == {"over_8_bits": "full scale"}


def test_a_folder_whose_name_has_a_question_mark_is_that_folder(tmp_path):
    assert len(open_dataset(as_folder(TWELVE, tmp_path / "x?range=0..9"))) == 12


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("range=0", r"Give LOW\.\.HIGH, such as range=0\.\.4095"),
        ("alpha=red", "Give one of drop, white, black"),
        ("rnge=0..1", "rnge"),
    ],
)
def test_options_that_cannot_be_are_refused(query, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"{as_folder(TWELVE, tmp_path / 'x')}?{query}")


def test_data_without_files_of_its_own_takes_no_such_option():
    with pytest.raises(DatasetError, match="'digits' takes no range or alpha"):
        open_dataset("digits?range=0..16")


def test_a_conversion_is_given_to_data_that_says_none_itself(tmp_path):
    root = as_folder(TWELVE, tmp_path / "x")
    black = RgbConversion((0, 65535))

    assert np.asarray(with_rgb_conversion(open_dataset(root), black).read(0)).max() < 20
    assert np.asarray(with_rgb_conversion(open_dataset(f"{root}?range=0..4095"), black).read(0)).max() > 200
    assert with_rgb_conversion(digits := open_dataset("digits"), black) is digits


def test_16_bit_colour_is_no_reason_for_a_record_but_a_range_for_it_is_refused_when_it_is_read(tmp_path):
    colour = {"a/0.png": png16(np.repeat(GREY.astype(np.uint16)[..., None] * 257, 3, 2))}
    dataset = open_dataset(f"{as_folder(colour, tmp_path / 'x')}?range=0..4095")

    with pytest.raises(DatasetError, match="'a/0.png': it holds 16-bit colour, .*range= cannot be followed"):
        dataset.read(0)
