"""Stores of another format version: version 1 is read, any other is refused by its number, by every verb, with the way out."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from featurecache.features import FORMAT_VERSION
from featurecache.stores import _ledger, open_store
from pipelines.maintain import ConvertConfig, convert
from tests.featurecache.stores.samples import files
from tests.pipelines.stores import made_store

VERBS = {
    "info": ["info", "{store}"], "verify": ["verify", "{store}"], "repair": ["verify", "{store}", "--repair"],
    "logme": ["logme", "{store}"], "delete": ["delete", "{store}", "--ids", "3.jpg"],
    "convert": ["convert", "{store}", "--out", "{out}"], "train-head": ["train-head", "{store}", "--out", "{out}"],
    "merge": ["merge", "{store}", "{sound}", "--out", "{out}"],
}  # fmt: skip


def with_version(store: Path, version: object) -> Path:
    """Make a store one that another version of this package could have written: its header, and a ledger that fits."""
    root = json.loads((store / "zarr.json").read_bytes())
    root["attributes"]["featurecache"]["format_version"] = version
    content = json.dumps(root, indent=2).encode()
    records, _ = _ledger.read_records(store / "ledger.jsonl")
    records[0]["files"]["zarr.json"] = zlib.crc32(content)
    (store / "zarr.json").write_bytes(content)
    (store / "journal.copy").unlink()
    _ledger.replace(store / "ledger.jsonl", records)
    return store


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", [0, 2])
def test_every_verb_refuses_another_version_by_its_number_and_changes_nothing(version, verb, tmp_path):
    store, sound = with_version(made_store(tmp_path / "x.zarr"), version), made_store(tmp_path / "sound.zarr")
    before = files(tmp_path)
    words = [word.format(store=store, sound=sound, out=tmp_path / "out.zarr") for word in VERBS[verb]]

    result = CliRunner().invoke(cli.main, words)

    assert result.exit_code == 1
    assert f"has format version {version}; this version of featurecache reads 1" in " ".join(result.output.split())
    assert "Install the version that wrote it" in " ".join(result.output.split())
    assert files(tmp_path) == before


def test_a_file_of_another_version_is_refused_by_its_number(tmp_path, monkeypatch):
    store = with_version(made_store(tmp_path / "x.zarr"), 2)
    with monkeypatch.context() as patch:
        patch.setattr("featurecache.stores._copying.FORMAT_VERSION", 2)
        open_store(store, writable=True).close()  # which makes the second copy again
        convert(ConvertConfig(store=store, out=tmp_path / "x.h5"))

    for verb in ("info", "verify", "logme"):
        result = CliRunner().invoke(cli.main, [verb, str(tmp_path / "x.h5")])
        assert result.exit_code == 1
        assert "has format version 2; this version of featurecache reads 1" in " ".join(result.output.split())


def test_what_this_version_writes_is_version_1_and_a_header_without_later_fields_is_read(tmp_path):
    """Fields that came later are left out where they say nothing, so the oldest header of version 1 has none of them."""
    store = made_store(tmp_path / "x.zarr")
    header = json.loads((store / "zarr.json").read_bytes())["attributes"]["featurecache"]

    assert header["format_version"] == FORMAT_VERSION == 1
    assert not {"constants", "prompts"} & set(header)
    assert open_store(store).header.constants == ()
