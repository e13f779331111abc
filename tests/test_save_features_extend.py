"""A store takes in more layers, tokens and logits on request; what is there is neither computed again nor touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurecache.errors import StoreContentsError
from featurecache.stores import _creation, open_store
from save_features import ExtractionReport, run
from tests.extraction_samples import BATCH, Forwards, lasting, pictures, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "animals")


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    return Forwards().watch(monkeypatch)


MORE = {
    "layers": ({"layers": "4-5"}, {"layers": "1-5"}),
    "tokens": ({"layers": "3"}, {"layers": "3", "tokens": "cls+patch-grid:2"}),
    "logits": ({"layers": "3"}, {"layers": "3", "logits": True}),
    "any layers": ({"layers": "none"}, {"layers": "2,5", "tokens": "cls+mean"}),
    "everything": ({"layers": "5"}, {"layers": "all", "tokens": "cls+mean", "logits": True}),
}
more = pytest.mark.parametrize(("little", "much"), MORE.values(), ids=MORE.keys())


@more
def test_more_than_is_there_is_refused_and_the_way_is_named(folder, tmp_path, little, much):
    config = settings(folder, tmp_path / "x.zarr", **little)
    run(config)
    before = lasting(config.out)

    with pytest.raises(StoreContentsError, match=r"but without .*Give --extend to add just those"):
        run(settings(folder, config.out, **much))

    assert lasting(config.out) == before


@more
def test_an_extended_store_is_byte_for_byte_the_one_of_a_single_run(folder, tmp_path, forwards, little, much):
    whole, grown = settings(folder, tmp_path / "whole.zarr", **much), tmp_path / "grown.zarr"
    run(whole)
    run(settings(folder, grown, **little))
    held = {spec.name for spec in open_store(grown).header.arrays}
    forwards.requests.clear()

    report = run(settings(folder, grown, **much, extend=True))

    assert len(forwards.requests) == -(-40 // BATCH)
    assert not any(request.embedding for request in forwards.requests)
    assert set(report.added) == {spec.name for spec in open_store(grown).header.arrays} - held
    assert lasting(grown) == lasting(whole.out)
    assert json.loads((grown / "scores/logme.json").read_text()) == json.loads(
        (whole.out / "scores/logme.json").read_text()
    )


def test_an_extension_says_what_it_added(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    run(config)

    report = run(settings(folder, config.out, layers="4-5", extend=True))

    assert "extended by layers/cls/04; what was there is as it was" in report.tables()[0].notes
    assert report.kept == 0


def test_an_extension_by_nothing_is_nothing_to_do(folder, tmp_path, forwards):
    config = settings(folder, tmp_path / "x.zarr", layers="5", extend=True)
    run(config)
    forwards.requests.clear()

    report = run(config)

    assert report.was_finished
    assert forwards.requests == []


def test_an_extension_that_was_stopped_goes_on_without_the_word(folder, tmp_path, forwards):
    much = {"layers": "1-5", "tokens": "cls+mean"}
    whole = settings(folder, tmp_path / "whole.zarr", **much)
    run(whole)
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    run(config)
    stop_at(forwards, len(forwards.requests) + 1)

    with pytest.raises(KeyboardInterrupt):
        run(settings(folder, config.out, **much, extend=True))
    stop_at(forwards, None)
    report = run(settings(folder, config.out, **much))

    assert (report.kept, report.recomputed) == (BATCH, BATCH)
    assert lasting(config.out) == lasting(whole.out)


def test_an_extension_that_died_as_it_began_is_not_begun_twice(folder, tmp_path, monkeypatch, caplog):
    whole = settings(folder, tmp_path / "whole.zarr", layers="4-5")
    run(whole)
    config = settings(folder, tmp_path / "x.zarr", layers="4-5", extend=True)
    run(settings(folder, config.out, layers="5"))

    def die(path: Path, files: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_creation, "replace_metadata", die)
        run(config)
    caplog.clear()
    caplog.set_level("INFO", "featurecache")
    report = run(config)

    assert report.added == ("layers/cls/04",)
    assert "extending by" not in caplog.text
    assert lasting(config.out) == lasting(whole.out)


def test_a_store_that_was_stopped_can_be_extended_before_it_is_whole(folder, tmp_path, forwards):
    much = {"layers": "3-5", "logits": True}
    whole = settings(folder, tmp_path / "whole.zarr", **much)
    run(whole)
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    stop_at(forwards, len(forwards.requests) + 1)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    stop_at(forwards, None)

    run(settings(folder, config.out, **much, extend=True))

    assert lasting(config.out) == lasting(whole.out)


def test_a_wider_store_is_told_by_the_arrays_that_were_not_asked_for(folder, tmp_path):
    config = settings(folder, tmp_path / "x.zarr", layers="5")
    run(settings(folder, config.out, layers="4-5"))

    report: ExtractionReport = run(config)

    assert report.beyond == ("layers/cls/04",)
    assert "and more than that (layers/cls/04): nothing to do" in report.tables()[0].notes[0]


def stop_at(forwards: Forwards, batch: int | None) -> None:
    """Interrupt, as Ctrl-C does, when the backbone has been asked for this many batches."""

    def change(outputs: object, number: int) -> None:
        if number == batch:
            raise KeyboardInterrupt

    forwards.change = change
