"""Small work takes one thread, large work all that the process may use; who says a number gets it, and the caller's is kept."""

from __future__ import annotations

import os

import pytest
import torch

from featurecache import threads
from featurecache.errors import ConfigError
from featurecache.threads import FEW_ROWS, MANY_VALUES, SMALL_STEP, Computing, choose_threads, heeds_threads


@pytest.fixture
def eight(monkeypatch):
    """A process with eight cores and eight threads, that nobody told a number."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "all_threads", lambda: 8)


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (245, {}, 1),
        (FEW_ROWS, {"values": 768 * 12}, 1),
        (FEW_ROWS + 1, {}, 8),
        (FEW_ROWS, {"values": MANY_VALUES}, 8),
        (20000, {"step": SMALL_STEP - 1}, 1),
        (20000, {"step": SMALL_STEP}, 8),
        (FEW_ROWS, {"step": 2**40}, 1),
        (0, {}, 1),
    ],
)
def test_rows_values_and_the_size_of_a_step_decide(eight, rows, given, expected):
    assert choose_threads(rows, **given) == expected


def test_a_number_in_the_environment_is_respected_whatever_the_size(eight, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    assert choose_threads(10) == choose_threads(10**6) == 3


def test_a_number_of_the_environment_that_is_none_is_no_number(eight, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")

    assert choose_threads(10) == 1


def test_within_the_block_torch_computes_with_few_and_after_it_as_before(eight, two):
    with threads.suited_threads(100) as count:
        inside = torch.get_num_threads()

    assert (count, inside, torch.get_num_threads()) == (1, 1, 2)


def test_an_error_in_the_block_restores_the_threads_too(eight, two):
    with pytest.raises(ZeroDivisionError), threads.suited_threads(100):
        _ = 1 / 0

    assert torch.get_num_threads() == 2


def test_a_config_decides_for_all_that_its_run_does_and_for_nothing_after_it(two, monkeypatch):
    seen = []

    @heeds_threads
    def run(config: Computing) -> None:
        with threads.suited_threads(10) as count:
            seen.append((count, torch.get_num_threads()))

    run(Computing(threads=3))

    assert seen == [(3, 3)]
    assert torch.get_num_threads() == 2
    assert threads._asked.get() is None


def test_no_threads_are_refused():
    run = heeds_threads(lambda config: None)

    with pytest.raises(ConfigError, match="threads must be positive, got 0"):
        run(Computing(threads=0))


def test_a_quota_of_version_2_holds_for_the_groups_below_it(tmp_path):
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    (groups / "pod" / "box").mkdir(parents=True)
    (groups / "pod" / "cpu.max").write_text("150000 100000\n")
    (groups / "pod" / "box" / "cpu.max").write_text("max 100000\n")
    own.write_text("0::/pod/box\n")

    assert threads.cpu_quota(groups, own) == 1.5


def test_a_quota_of_version_1_is_found_below_its_controller(tmp_path):
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    (groups / "cpu,cpuacct" / "job").mkdir(parents=True)
    (groups / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us").write_text("400000\n")
    (groups / "cpu,cpuacct" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n")

    assert threads.cpu_quota(groups, own) == 4.0


@pytest.mark.parametrize("text", ["-1", "0"])
def test_a_group_of_version_1_without_a_limit_has_none(tmp_path, text):
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    (groups / "cpu").mkdir(parents=True)
    (groups / "cpu" / "cpu.cfs_quota_us").write_text(text)
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000")
    own.write_text("1:cpu:/\n")

    assert threads.cpu_quota(groups, own) is None


def test_a_container_that_shows_its_own_group_as_the_root_is_read_there(tmp_path):
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    groups.mkdir()
    (groups / "cpu.max").write_text("200000 100000")
    own.write_text("0::/system.slice/of-the-host.scope\n")

    assert threads.cpu_quota(groups, own) == 2.0


def test_where_there_are_no_groups_there_is_no_quota(tmp_path):
    assert threads.cpu_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (1.5, 2), (0.2, 1), (64.0, 4)])
def test_cores_are_those_of_the_affinity_or_of_the_quota_where_that_is_less(monkeypatch, quota, expected):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 4, raising=False)

    assert threads.cores() == expected


def test_where_rows_are_images_only_the_steps_decide(eight):
    assert choose_threads() == 8
    assert choose_threads(step=1.0) == 1
