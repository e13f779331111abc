"""Draws are a fixed function of what they are for, on every machine."""

from __future__ import annotations

import hashlib

import numpy as np

from featurecache.seeding import generator, permutation, seed_of, unit_interval


def test_a_seed_is_a_digest_of_all_its_parts():
    expected = int(hashlib.blake2b(b"rows\x1f7", digest_size=8).hexdigest(), 16) // 2

    assert seed_of("rows", 7) == expected
    assert 0 <= seed_of("rows", 7) < 2**63
    assert len({seed_of("rows", 7), seed_of("rows", 8), seed_of("row", "s7"), seed_of("rows7")}) == 4


def test_the_unit_interval_is_filled_evenly():
    values = np.array([unit_interval(f"{i}.jpg", "split", 0) for i in range(4000)])

    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, 10, (0, 1))[0]
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400)


def test_the_salt_changes_the_place():
    assert unit_interval("a", "split", 0) == unit_interval("a", "split", 0)
    assert unit_interval("a", "split", 0) != unit_interval("a", "split", 1)


def test_a_permutation_holds_every_row_once_and_depends_on_its_parts():
    one, again, other = permutation(100, "order", 0), permutation(100, "order", 0), permutation(100, "order", 1)

    assert sorted(one) == list(range(100))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_drawing_does_not_touch_numpys_global_generator():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)

    generator("x").random(10)

    assert np.random.random() == expected
