"""Worker processes give what threads give, to the bit and in the same order, and never a hang, an orphan or a leak.

A worker that must import torch takes seconds to start, so each test here starts as few as it can.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from featurecache.datasets import open_dataset
from featurecache.errors import ConfigError, UnreadableSampleError, WorkerError
from featurecache.progress import Stopwatch
from featurecache.sources.images import check_feed, decoded, grid
from featurecache.views import Views
from save_features import SaveFeaturesConfig
from tests.featurecache.datasets.pictures import as_zip
from tests.featurecache.sources.jpegs import jpeg
from tests.featurecache.sources.readers import Failing, Fatal, Homesick, Telling, picture
from tests.featurecache.sources.test_images import ODD, SIDE, backbone, dataset

USUAL = transforms.Compose(
    [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor(), transforms.Normalize(**ODD)]
)
"""The usual steps, of which a worker needs nothing of torchvision."""


def outcome(data, batches, **changes):
    """Return what `decoded` gives in all."""
    given = {"on_error": "skip", **changes}
    return [(rows, images.clone(), said) for rows, images, said in
            decoded(backbone(USUAL), data, batches, Stopwatch(), **given)]  # fmt: skip


def assert_equal(found, expected) -> None:
    assert [(rows, said) for rows, _, said in found] == [(rows, said) for rows, _, said in expected]
    for (_, ours, _), (_, theirs, _) in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture(autouse=True)
def no_process_outlives_the_test():
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


def test_they_give_what_threads_give():
    data, batches = dataset(19, Failing({0, 7, 18})), list(grid(range(19), 4))

    found = outcome(data, batches, workers=2, views=Views(2, "strong", 4))

    assert [rows for rows, _, _ in found] == batches
    assert {rows[place] for rows, _, said in found for place in said} == {0, 7, 18}
    assert_equal(found, outcome(data, batches, threads=2, views=Views(2, "strong", 4)))


def test_they_import_no_library_of_models():
    found = outcome(dataset(1, Telling("torch", "torchvision", "timm", "PIL")), [range(1)], workers=1)

    assert found[0][2] == {0: "imported: ['PIL']"}


def test_they_decode_archives_by_any_decoder_within_the_limits_that_were_set_here(tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg", reason="needs simplejpeg: pip install featurecache[fast]")
    sizes = [(60, 45), (80, 45), (45, 60), (300, 200)]
    files = {f"one/{i}.jpg": jpeg(size=size, seed=i) for i, size in enumerate(sizes)}
    data = open_dataset(as_zip({**files, "one/torn.jpg": files["one/0.jpg"][:500]}, tmp_path / "x.zip"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    batches = list(grid(range(5), 1))

    found = outcome(data, batches, workers=1, decoder="simplejpeg")

    assert [set(said) for _, _, said in found] == [set(), set(), set(), {0}, {0}]
    assert "300 x 200" in found[3][2][0]
    assert_equal(found, outcome(data, batches, threads=1, decoder="simplejpeg"))


def test_the_first_unreadable_image_in_the_order_of_rows_stops():
    data, seen = dataset(24, Failing({9, 11}, slow=frozenset({9}))), []

    with pytest.raises(UnreadableSampleError, match=r"'9.jpg': truncated at 9.*--on-error skip"):
        for rows, _, _ in decoded(
            backbone(USUAL), data, list(grid(range(24), 4)), Stopwatch(), on_error="stop", workers=1
        ):
            seen.append(rows)

    assert seen == [range(4), range(4, 8)]


def test_a_source_that_is_closed_early_ends_its_processes_at_once():
    data = dataset(400, Failing(set(), slow=frozenset(range(4, 400))))

    with closing(
        decoded(backbone(USUAL), data, list(grid(range(400), 4)), Stopwatch(), on_error="stop", workers=1)
    ) as running:
        next(running)
        assert len(multiprocessing.active_children()) == 1
        start = time.monotonic()

    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 5


def test_a_worker_that_dies_is_told_with_how_and_the_way_out():
    data, batches, seen = dataset(12, Fatal(9)), list(grid(range(12), 1)), []
    said = r"a worker process that decodes images ended with exit code 3 while it was at '9'\..*fewer --workers.*--workers 0"

    with pytest.raises(WorkerError, match=said):
        for rows, _, _ in decoded(backbone(USUAL), data, batches, Stopwatch(), on_error="skip", workers=1):
            seen.append(rows)

    assert seen == batches[: len(seen)]
    assert len(seen) <= 9


def test_what_a_worker_cannot_import_is_told_with_the_reason():
    with pytest.raises(
        WorkerError, match=r"cannot make the data set.*ImportError: no module named nearby.*--workers 0"
    ):
        outcome(dataset(4, Homesick()), [range(4)], workers=1)


@pytest.mark.parametrize(
    ("what", "culprit"), [("read", "the data set"), ("transform", "the transform of the backbone")]
)
def test_what_cannot_be_sent_to_workers_is_refused_before_anything_runs(what, culprit):
    data = dataset(4, (lambda row: picture(row)) if what == "read" else picture)
    model = backbone((lambda image: torch.zeros(3, 32, 32)) if what == "transform" else None)

    with pytest.raises(ConfigError, match=rf"^{culprit} cannot be sent to worker processes .*lambda.*give --workers 0"):
        check_feed(model, data, workers=2, decoder="pillow")

    check_feed(model, data, workers=0, decoder="pillow")


def test_workers_and_threads_are_not_both_asked_for():
    with pytest.raises(ConfigError, match="give workers or decode_threads, not both"):
        SaveFeaturesConfig(data="x", backbone="demo", out=Path("x.zarr"), workers=2, decode_threads=2)
    with pytest.raises(ConfigError, match="workers must not be negative, got -1"):
        SaveFeaturesConfig(data="x", backbone="demo", out=Path("x.zarr"), workers=-1)
