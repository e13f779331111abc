"""The doctor names what is wrong with a machine, and nothing stays behind."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from pipelines import doctor
from pipelines.doctor import DoctorConfig, run


@pytest.fixture
def advice(tmp_path):
    def given() -> dict[str, str]:
        return {finding.what: finding.advice for finding in run(DoctorConfig(folder=tmp_path)).findings}

    return given


def test_a_healthy_folder_is_well_and_left_empty(advice, tmp_path):
    found = advice()

    assert found["python"] == found["libraries"] == found["fsync there"] == ""
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_hides_ours_is_named(advice, monkeypatch):
    real = importlib.util.find_spec
    hostile = ModuleSpec("cli", None, origin="/somewhere/else/cli.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hostile if name == "cli" else real(name))

    assert "another file of that name hides ours" in advice()["module cli"]


def test_a_folder_that_is_not_there_is_told_with_a_way_out(tmp_path):
    report = run(DoctorConfig(folder=tmp_path / "absent"))

    (disk,) = [finding for finding in report.findings if finding.what.startswith("disk")]
    assert disk.found == "No such file or directory"
    assert "give another folder" in disk.advice
    assert report.tables()[0].notes[0].endswith("to look at")


def test_a_small_disk_a_slow_disk_and_idle_cores_are_told(advice, monkeypatch):
    monkeypatch.setattr(doctor, "ROOM_BYTES", 2**80)
    monkeypatch.setattr(doctor, "SLOW_SYNC", -1.0)
    monkeypatch.setattr(doctor, "cores", lambda: torch.get_num_threads() + 1)

    found = advice()

    assert [text for what, text in found.items() if what.startswith("disk")] == ["make room: see featurecache plan"]
    assert found["fsync there"] and found["cpu"]


def test_an_offline_hub_is_told(advice, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert "unset HF_HUB_OFFLINE" in advice()["downloaded weights"]
