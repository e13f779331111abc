"""The methods of the PEFT study against the recorded numbers of the original implementation, a test id for each file."""

from __future__ import annotations

import pytest

from tests.conformance.peft_methods import applied, everything
from tests.conformance.recorded import FOLDER, changed, kinds, read, unequal

HEAD = "peft_clip_zero_shot_head"
"""A head, which `test_clip_head` reads."""
FILES = [path for path in sorted(FOLDER.glob("peft_*.npz")) if path.stem != HEAD]
INPUTS = (
    "cfg__", "hp__", "backbone__", "method__", "images", "labels", "token_index", "vitb16_setting",
    "marker__drop_path_rate", "fact_alias_prefixes",  # the last one: where the original registers shared values again
)  # fmt: skip

if not FILES:
    pytest.skip(f"no peft_*.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE", allow_module_level=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_number_is_ours_and_would_be_missed(path, monkeypatch):
    arrays = read(path)

    found, names = everything(arrays, monkeypatch), kinds(arrays, INPUTS)

    assert unequal(arrays, found, names) == []
    assert [name for name in names if not unequal({name: changed(arrays[name])}, found, [name])] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_given_value_of_the_method_matters(path):
    arrays = read(path)
    adapted = applied(arrays)

    assert adapted.tokens_per_layer and set(adapted.kept) >= set(adapted.trainable)
