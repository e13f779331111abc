"""Images arrive as the backbone's own transform makes them, bit for bit, ahead of time, and in the order of the rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision import transforms

from featurecache.backbones import Backbone
from featurecache.datasets import ImageDataset, RowTable
from featurecache.errors import BackboneError, UnreadableSampleError
from featurecache.progress import Stopwatch
from featurecache.sources._pixels import InPlace, preparation
from featurecache.sources.images import AHEAD, decoded, grid
from tests.featurecache.sources.readers import Failing, picture

SIDE = 32
ODD = {"mean": (0.4815, 0.4578, 0.4082), "std": (0.2686, 0.2613, 0.2758)}


def transform_of(**changes: object) -> Callable[[Image.Image], torch.Tensor]:
    return timm.data.create_transform(**{"input_size": (3, SIDE, SIDE), "is_training": False, **changes})


def prepared(transform: Callable[[Image.Image], torch.Tensor], image: Image.Image) -> torch.Tensor:
    place = np.full((3, SIDE, SIDE), np.nan, np.float32)
    preparation(transform)(image, place)
    return torch.from_numpy(place)


def backbone(transform: Callable[[Image.Image], torch.Tensor] | None = None, device: str = "cpu") -> Backbone:
    return Backbone(
        name="test", module=torch.nn.Identity(), transform=transform or transform_of(), input_size=(3, SIDE, SIDE), dim=1,
        layers=(), tokens=(), forward=lambda images, request: {}, num_logits=0, device=torch.device(device), identity={},
        origin={},
    )  # fmt: skip


def dataset(rows: int, read: Callable[[int], Image.Image] = picture) -> ImageDataset:
    nothing = [""] * rows
    table = RowTable(sample_id=list(map(str, range(rows))), target=np.zeros(rows, np.int64), split=nothing,
                     domain=nothing, group=nothing)  # fmt: skip
    return ImageDataset(
        name="test", spec="test", table=table, class_names=("a",), task="classification", read=read, identity={}
    )


def decode(data, batches, *, threads=3, on_error="stop", transform=None, device="cpu"):
    """Yield what `decoded` does, of its one view."""
    running = decoded(backbone(transform, device), data, batches, Stopwatch(), threads=threads, on_error=on_error)
    with closing(running):
        for rows, images, skipped in running:
            yield rows, images[0], skipped


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


class Doubled(transforms.Normalize):
    """A normalisation of one's own."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tensor)


def outcome(act: Callable[[Image.Image], torch.Tensor], image: Image.Image) -> torch.Tensor | Exception:
    try:
        return act(image)
    except Exception as error:
        return error


class TestPixels:
    @pytest.mark.parametrize("size", [(50, 41), (41, 50), (SIDE, SIDE), (7, 5), (1, 1), (400, 33), (33, 400)])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_they_are_those_of_timm_for_every_size(self, size, interpolation):
        transform = transform_of(interpolation=interpolation, crop_pct=0.9)

        assert torch.equal(prepared(transform, picture(size=size)), transform(picture(size=size)))

    @pytest.mark.parametrize("statistics", [{}, ODD, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"mean": (0.5,) * 3}])
    def test_they_are_those_of_timm_for_all_statistics(self, statistics):
        transform = transform_of(**statistics)

        assert preparation(transform).fast is not None
        assert torch.equal(prepared(transform, picture()), transform(picture()))

    @pytest.mark.parametrize("crop", [{"crop_mode": "squash"}, {"crop_mode": "border"}, {"crop_pct": 1.0}])
    def test_they_are_those_of_timm_for_every_way_to_crop(self, crop):
        transform = transform_of(**crop)

        assert torch.equal(prepared(transform, picture()), transform(picture()))

    def test_every_value_of_every_channel_is_normalised_as_torchvision_does(self):
        rng, ramp = np.random.default_rng(0), (np.arange(SIDE * SIDE) % 256).astype(np.uint8)
        channels = [rng.permutation(ramp).reshape(SIDE, SIDE) for _ in range(3)]
        image = Image.fromarray(np.stack(channels, axis=2))
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(**ODD)])

        found = prepared(transform, image)

        assert {len(np.unique(channel)) for channel in found.numpy()} == {256}
        assert torch.equal(found, transform(image))

    @pytest.mark.parametrize("mode", ["L", "1", "P", "I", "F", "RGBA", "CMYK", "YCbCr", "HSV"])
    def test_a_picture_of_another_mode_gets_whatever_the_transform_itself_makes_of_it(self, mode):
        image = picture(mode=mode)
        transform = transforms.Compose(
            [transforms.CenterCrop(SIDE), transforms.ToTensor(), transforms.Normalize(**ODD)]
        )

        expected, found = (outcome(act, image) for act in (transform, lambda image: prepared(transform, image)))

        assert type(found) is type(expected)
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else str(found) == str(expected)

    @pytest.mark.parametrize(
        "last",
        [
            [transforms.ToTensor()],
            [transforms.ToTensor(), Doubled(**ODD)],
            [transforms.ToTensor(), transforms.Normalize(**ODD), transforms.Lambda(lambda t: t * 2)],
            [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32), transforms.Normalize(**ODD)],
            [transforms.ToTensor(), transforms.Lambda(lambda t: t.flip(0)), transforms.Normalize(**ODD)],
        ],
        ids=["no normalise", "another normalise", "a step after", "another conversion", "a step between"],
    )
    def test_a_transform_with_another_end_is_used_as_it_is(self, last):
        transform = transforms.Compose([transforms.Resize((SIDE, SIDE)), *last])

        assert preparation(transform).fast is None
        assert torch.equal(prepared(transform, picture()), transform(picture()))

    def test_a_transform_that_is_a_plain_function_is_used_as_it_is(self):
        def transform(image: Image.Image) -> torch.Tensor:
            return torch.from_numpy(np.asarray(image.resize((SIDE, SIDE))).copy()).permute(2, 0, 1).float()

        assert torch.equal(prepared(transform, picture()), transform(picture()))

    def test_an_in_place_normalisation_that_differs_in_one_bit_is_not_trusted(self, monkeypatch):
        exact = InPlace.__call__

        def nearly(self: InPlace, image: Image.Image, place: np.ndarray) -> None:
            exact(self, image, place)
            place[2, -1, -1] = np.nextafter(place[2, -1, -1], np.float32(np.inf))

        monkeypatch.setattr(InPlace, "__call__", nearly)

        assert preparation(transform_of()).fast is None
        assert torch.equal(prepared(transform_of(), picture()), transform_of()(picture()))

    def test_a_transform_of_another_size_is_refused_with_both_sizes(self):
        transform = transform_of(input_size=(3, 48, 48))

        with pytest.raises(BackboneError, match=r"gives \(3, 48, 48\), but its input size is \(3, 32, 32\)"):
            prepared(transform, picture())

    def test_a_transform_that_gives_no_tensor_is_refused_by_its_type(self):
        with pytest.raises(BackboneError, match="gives Image, but its input size"):
            prepared(lambda image: image, picture())


class TestGrid:
    def test_batches_lie_on_multiples_of_the_batch_size_wherever_the_rows_begin(self):
        assert list(grid(range(10), 4)) == [range(4), range(4, 8), range(8, 10)]
        assert list(grid(range(5, 13), 4)) == [range(5, 8), range(8, 12), range(12, 13)]
        assert list(grid(range(6, 7), 4)) == [range(6, 7)]
        assert list(grid(range(3, 3), 4)) == []

    @pytest.mark.parametrize("stop", [1, 4, 17, 40])
    def test_a_run_that_goes_on_computes_batches_of_the_run_that_does_not_stop(self, stop):
        whole = list(grid(range(40), 8))

        again = list(grid(range(stop // 8 * 8, 40), 8))

        assert set(again) <= set(whole)


class TestDecoding:
    @pytest.mark.parametrize("threads", [1, 4])
    def test_every_row_comes_in_order_as_its_transform_makes_it(self, threads):
        transform, batches = transform_of(), list(grid(range(3, 30), 8))

        found = list(decode(dataset(30), batches, threads=threads, transform=transform))

        assert [rows for rows, _, _ in found] == batches
        for rows, images, skipped in found:
            assert skipped == {}
            assert torch.equal(images, torch.stack([transform(picture(row)) for row in rows]))

    def test_no_batches_are_no_images(self):
        assert list(decode(dataset(3), [])) == []

    @pytest.mark.parametrize(("device", "ahead"), [("meta", AHEAD), ("cpu", 0)])
    def test_batches_are_decoded_ahead_of_another_device_but_not_of_the_cores_that_decode(self, device, ahead):
        reader, batches = Failing(set()), list(grid(range(40), 4))

        with closing(decode(dataset(40, reader), batches, device=device)) as running:
            next(running)
            deadline = time.monotonic() + 5
            while len(reader.read) < 4 * (1 + ahead) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.05)

            assert sorted(reader.read) == list(range(4 * (1 + ahead)))

    def test_a_batch_that_was_given_is_not_written_again(self):
        running = decode(dataset(24), list(grid(range(24), 4)))
        _, first, _ = next(running)
        before = first.clone()

        rest = list(running)

        assert len(rest) == 5
        assert torch.equal(first, before)

    def test_what_is_waited_for_is_counted_as_decoding(self):
        watch = Stopwatch()

        list(
            decoded(
                backbone(), dataset(2, Failing(set(), frozenset({1}))), [range(2)], watch, threads=2, on_error="stop"
            )
        )

        assert watch.seconds["decode"] >= 0.05
        assert list(watch.seconds) == ["decode"]


class TestFailures:
    def test_skipped_rows_are_zero_say_why_and_move_no_other_row(self):
        data, transform = dataset(8, Failing({1, 6})), transform_of()

        found = list(decode(data, [range(4), range(4, 8)], on_error="skip", transform=transform))

        assert [skipped for _, _, skipped in found] == [{1: "truncated at 1"}, {2: "truncated at 6"}]
        images = torch.cat([images for _, images, _ in found])
        assert not images[[1, 6]].any()
        for row in (0, 2, 3, 4, 5, 7):
            assert torch.equal(images[row], transform(picture(row)))

    def test_the_first_failure_in_the_order_of_rows_stops_not_the_first_in_time(self):
        data = dataset(8, Failing({1, 3}, slow=frozenset({1})))

        with pytest.raises(UnreadableSampleError, match=r"'1.jpg': truncated at 1.*--on-error skip"):
            list(decode(data, [range(8)], threads=8))

    def test_batches_before_the_failure_are_given_first(self):
        data, seen = dataset(12, Failing({9})), []

        with pytest.raises(UnreadableSampleError, match="9.jpg"):
            for rows, _, _ in decode(data, list(grid(range(12), 4))):
                seen.append(rows)

        assert seen == [range(4), range(4, 8)]

    @pytest.mark.parametrize("error", [BackboneError("another size"), MemoryError(), KeyboardInterrupt()])
    def test_another_error_is_never_skipped(self, error):
        def read(row: int) -> Image.Image:
            if row == 2:
                raise error
            return picture(row)

        with pytest.raises(type(error)):
            list(decode(dataset(4, read), [range(4)], on_error="skip"))

    @pytest.mark.parametrize("end", ["failure", "closed early", "all read"])
    def test_no_thread_outlives_the_source(self, end):
        running = decode(dataset(40, Failing({5} if end == "failure" else set())), list(grid(range(40), 4)))
        next(running)
        assert decoding_threads()

        if end == "failure":
            with pytest.raises(UnreadableSampleError):
                list(running)
        elif end == "closed early":
            running.close()
        else:
            list(running)

        assert decoding_threads() == []

    def test_images_that_were_not_begun_are_not_read_after_a_failure(self):
        reader = Failing({0}, slow=frozenset(range(100)))

        with pytest.raises(UnreadableSampleError, match="0.jpg"):
            list(decode(dataset(100, reader), list(grid(range(100), 1)), threads=1))

        assert len(reader.read) <= 1 + AHEAD
