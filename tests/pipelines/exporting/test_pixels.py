"""What a run was trained on decides how pictures are read for it: by `Predictor`, and by the exported folder alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache.datasets._decoding import FORMATS, decode
from featurecache.errors import UnreadableSampleError
from featurecache.rgb_conversion import RgbConversion
from pipelines.export import ExportConfig
from pipelines.export import run as export
from pipelines.exporting import proving, standalone
from pipelines.predicting.predictor import Predictor
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train
from tests.featurecache.datasets.test_decoding import BAD, DEEP, ODD_BUT_GOOD
from tests.featurecache.test_rgb_conversion import FULL_SCALE, GREY, png16, saved, transparent
from tests.pipelines.exporting.here import said_here
from tests.pipelines.pictures import store_of

TWELVE = GREY.astype(np.uint16) * 16
PICTURES = {
    **ODD_BUT_GOOD, **DEEP, **FULL_SCALE, **{mode: transparent(mode) for mode in ("RGBA", "LA", "P")},
    "12 bits": saved(TWELVE, "PNG"), "12-bit colour": png16(np.repeat(TWELVE[..., None], 3, 2)),
    "float": saved(GREY.astype(np.float32), "TIFF"), "negative": saved(GREY.astype(np.int32) - 9, "TIFF"),
    **{name: content for name, (content, _) in BAD.items()},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "convert", [RgbConversion(), RgbConversion((0, 4095)), RgbConversion((0, 65535), "white")], ids=str
)
@pytest.mark.parametrize("name", PICTURES)
def test_the_exported_folder_reads_and_refuses_the_pictures_that_we_do(name, convert, tmp_path):
    (tmp_path / "x").write_bytes(PICTURES[name])
    try:
        expected = decode(PICTURES[name], "x", convert)
    except UnreadableSampleError:
        with pytest.raises(Exception, match="."):
            standalone.opened(tmp_path / "x", convert.identity)
        return

    np.testing.assert_array_equal(standalone.opened(tmp_path / "x", convert.identity), expected)


def test_the_exported_folder_knows_the_formats_that_we_know():
    assert standalone.FORMATS == FORMATS


def deep_photos(folder: Path, alpha: bool = False) -> Path:
    """Write 12-bit pictures of two classes, or black icons whose shape is in their alpha channel."""
    for label in ("bright", "dark"):
        for number in range(8):
            values = np.random.default_rng(number).integers(60, 90, (32, 32))
            values[8:24, 8:24] += 100 * (label == "bright")
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if alpha:
                flat = np.zeros((32, 32, 4), np.uint8)
                flat[..., 3] = values
                Image.fromarray(flat).save(path)
            else:
                Image.fromarray((values * 16).astype(np.uint16)).save(path)
    return folder


@pytest.mark.parametrize(("query", "alpha"), [("range=0..4095", False), ("alpha=white", True)])
def test_a_run_reads_new_pictures_as_those_it_was_trained_on(query, alpha, tmp_path, monkeypatch):
    photos = deep_photos(tmp_path / "photos", alpha)
    store_of(f"{photos}?{query}", tmp_path / "x.zarr")
    train(TrainHeadConfig(store=tmp_path / "x.zarr", head="ridge", out=tmp_path / "run", quiet=True))
    monkeypatch.setattr(proving, "_said", said_here)
    paths = sorted(photos.rglob("*.png"))

    predictor = Predictor.load(tmp_path / "run")
    export(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out"))
    alone = standalone.Model.load(tmp_path / "out").predict(paths)

    assert [p.answer for p in predictor.predict(paths)] == [path.parent.name for path in paths]
    assert [p.answer for p in predictor.predict([photos / "bright", photos / "dark"])] == ["bright"] * 8 + ["dark"] * 8
    assert [p.answer for p in predictor.predict([Image.open(path) for path in paths])] == [p.parent.name for p in paths]
    assert [entry["answer"] for entry in alone] == [path.parent.name for path in paths]


def test_the_exported_folder_names_a_picture_that_it_cannot_read(tmp_path):
    Image.new("L", (60_000, 1), 9).save(tmp_path / "rule.png")
    steps = [{"step": "resize", "fit": "shorter", "size": 32, "interpolation": "bicubic"}]

    with pytest.raises(standalone.Refused, match=r"cannot read .*rule.png: it is 60000 x 1 pixels, too long"):
        standalone.ready(tmp_path / "rule.png", {}, steps)
    with pytest.raises(standalone.Refused, match=r"cannot read /dev/zero: it is not a file"):
        standalone.ready("/dev/zero", {}, steps)
