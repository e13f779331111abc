"""The methods of the PEFT study against the recorded numbers of the original implementation, a test id for each file."""

from __future__ import annotations

import pytest

from tests.conformance.peft_head import HEAD_INPUTS, altered, head_found
from tests.conformance.peft_methods import everything
from tests.conformance.recorded import FOLDER, changed, kinds, read, unequal

ALL = sorted(FOLDER.glob("peft_*.npz"))
HEADS = [path for path in ALL if "head" in path.stem]
FILES = [path for path in ALL if path not in HEADS]
INPUTS = (
    "cfg__", "hp__", "backbone__", "method__", "images", "labels", "token_index", "vitb16_setting",
    "marker__drop_path_rate", "fact_alias_prefixes",  # the last one: where the original registers shared values again
)  # fmt: skip

SINGLE = {"rtol": 1e-5, "atol": 1e-4}
"""What is tolerated of the head, which is recorded in float32 with logits of the order of 100."""

if not FILES:
    pytest.skip(f"no peft_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE", allow_module_level=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_number_is_ours_and_would_be_missed(path, monkeypatch):
    arrays = read(path)

    found, names = everything(arrays, monkeypatch), kinds(arrays, INPUTS)

    assert unequal(arrays, found, names) == []
    assert [name for name in names if not unequal({name: changed(arrays[name])}, found, [name])] == []


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_the_head_of_clip_is_that_of_the_study(path):
    arrays = read(path)

    found, names = head_found(arrays), set(arrays) - HEAD_INPUTS

    assert unequal(arrays, found, names, **SINGLE) == []
    assert [name for name in names if not unequal({name: altered(arrays[name])}, found, [name], **SINGLE)] == []
