"""Signals in the middle of a verb: the phases of every long verb, and command lines that get a signal in one of them.

A signal that a test sends by the clock meets another phase on every machine. These calls send it to themselves, just before
the n-th call of a function, from whatever thread it runs on.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

PROBED = 32
PHASES: Mapping[str, Sequence[str]] = {
    "extract": (
        "save_features:open_dataset", "save_features:load_backbone", "save_features:header_of",
        "featurecache.stores._creation:write_durably 3", "featurecache.stores._creation:sync_folder 2",
        "save_features:note", "save_features:_computed 2", "save_features:rounded", "save_features:stored_form 3",
        "featurecache.stores._chunks:write_all 5", "featurecache.stores._chunks:sync_folder 3",
        "featurecache.stores._ledger:append 2", "featurecache.stores._writer:Writer.seal",
        "featurecache.stores._ledger:replace", "featurecache.stores._locking:Lock.release",
        "save_features:saved_scores", "featurecache.scoring:score_array 2", "featurecache.scoring:write_atomic 2",
        "save_features:costs", "cli:_show",
    ),
    "extract into a file": (
        "featurecache.stores._ledger:append 2", "featurecache.stores.hdf5:assemble",
        "featurecache.stores._hdf5_file:_Reserved.reserve 2", "featurecache.stores._hdf5_file:checked_blocks 2",
        "featurecache.stores._hdf5_file:_Reserved.write 3", "featurecache.stores._hdf5_file:_text 2",
        "featurecache.stores._hdf5_file:write_block", "featurecache.stores._hdf5_file:check_copy",
        "featurecache.stores.hdf5:clear", "featurecache.stores._side:shutil.rmtree 2",
        "featurecache.stores.hdf5:remove_empty", "save_features:saved_scores",
    ),
    "extract with text": (
        "save_features:templates_asked", "featurecache.opening:class_values",
        "featurecache.stores._creation:write_constants", "featurecache.backbones._clip_text:ClipText.features 2",
    ),
    "extract with views": (
        "save_features:_computed 2", "featurecache.stores._ledger:append 3",
    ),
    "extend": (
        "featurecache.opening:_extend", "featurecache.stores.zarr:extend_files",
        "featurecache.stores._creation:replace_metadata", "featurecache.stores._creation:write_atomic 2",
        "save_features:_computed 2", "featurecache.stores._chunks:write_all 3",
        "featurecache.stores._ledger:append 3", "featurecache.stores._writer:Writer.seal",
    ),
    "extend a file": (
        "featurecache.stores.hdf5:take_apart", "featurecache.stores._copying:write_durably 4",
        "featurecache.stores._copying:checked_blocks", "save_features:_computed 2",
        "featurecache.stores.hdf5:assemble", "featurecache.stores.hdf5:clear",
    ),
    "merge": (
        "featurecache.stores._creation:write_durably 3", "featurecache.stores._chunks:write_all 2",
        "featurecache.stores._merging:committed_blocks 3", "featurecache.stores._ledger:append",
        "featurecache.stores._writer:Writer.seal", "featurecache.stores._copying:os.replace",
    ),
    "merge into a file": (
        "featurecache.stores._ledger:append", "featurecache.stores._hdf5_file:checked_blocks 2",
        "featurecache.stores._hdf5_file:check_copy",
    ),
    "convert to a file": (
        "featurecache.stores._hdf5_file:checked_blocks 2", "featurecache.stores._hdf5_file:_Reserved.write 3",
        "featurecache.stores._hdf5_file:check_copy", "featurecache.stores.hdf5:copy_notes",
    ),
    "convert to a folder": (
        "featurecache.stores._copying:remove_leftovers", "featurecache.stores._copying:checked_blocks 2",
    ),
    "convert to fewer bits": (
        "pipelines._narrowing:stored_form 2", "featurecache.stores._ledger:append",
    ),
    "delete": (
        "featurecache.stores._locking:Lock.moved_to 2", "featurecache.stores._erasing:write_durably 2",
        "featurecache.stores._ledger:append", "featurecache.stores._erasing:unstage",
        "featurecache.stores._creation:os.replace 2", "featurecache.stores._writer:Writer.seal",
    ),
    "delete from a file": (
        "featurecache.stores.hdf5:take_apart", "featurecache.stores._erasing:write_durably 2",
        "featurecache.stores._ledger:append", "featurecache.stores.hdf5:assemble", "featurecache.stores.hdf5:clear",
    ),
    "repair": (
        "pipelines.verify:examine_store", "pipelines.verify:mend_store", "featurecache.stores._restoring:acquire",
        "featurecache.stores._restoring:write_all", "featurecache.stores._restoring:os.replace",
        "pipelines.verify:note", "pipelines.verify:examine_store 2",
    ),
    "recompute": (
        "pipelines.verify:_examined", "featurecache.stores._verifying:_chunks", "pipelines.verify:recomputed",
    ),
    "collect": (
        "pipelines.gc:_of_store", "pipelines.gc:open_store", "pipelines.gc:_remove 2",
    ),
    "rank": (
        "pipelines.rank:_scorable", "featurecache.scoring:score_array 2", "featurecache.scoring:write_atomic 2",
        "pipelines.scores._keeping:Rows.stored 2", "cli:_show",
    ),
    "train": (
        "pipelines.train_head:planned", "featurecache.runs:write_atomic", "pipelines.training.training:fit",
        "pipelines.training.fitting:judged 3", "pipelines.train_head:evaluate", "pipelines._evaluation:prediction_table",
        "pipelines.train_head:save_head", "heads._checkpoint:write_atomic 2", "pipelines.train_head:write_record",
    ),
    "embed": (
        "save_features:_computed 2", "featurecache.stores._writer:Writer.seal", "pipelines.embed:_names",
        "pipelines.embed:write_whole", "pipelines.embed:remove_store", "featurecache.stores._leftovers:shutil.rmtree",
    ),
    "embed into a table": (
        "pipelines.embed:_names", "pipelines.embed:write_whole",
    ),
    "predict": (
        "pipelines.predicting.predictor:load_backbone", "pipelines.predicting.predictor:stored_form", "pipelines.predict:write_atomic",
    ),
}  # fmt: skip
"""Verb -> what a signal may come before: `module:function`, or with ` N` behind it, before its N-th call."""


def prepare(happens: Mapping[str, int | str]) -> None:
    """Let this process be one of a small run, to which something happens before phases."""
    importlib.import_module("save_features").PROBED = PROBED
    for phase, event in happens.items():
        _happen(phase, event)


def place_of(phase: str) -> tuple[Any, str, int]:
    """Return (what holds the function of a phase, its name there, which of its calls)."""
    place, _, call = phase.partition(" ")
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name, int(call or 1)


def _happen(phase: str, event: int | str) -> None:
    """Let a signal come to this process, or a store be removed, before a phase."""
    owner, name, call = place_of(phase)
    act, numbers = getattr(owner, name), itertools.count(1)

    def acting(*arguments: Any, **named: Any) -> Any:
        if next(numbers) == call:
            shutil.rmtree(event) if isinstance(event, str) else os.kill(os.getpid(), event)
        return act(*arguments, **named)

    setattr(owner, name, acting)
