"""Pictures that are unlike the others are named with what is odd; where all are alike, or half are so, nothing is odd."""

from __future__ import annotations

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

import cli
from pipelines.data import DataConfig, run
from tests.featurecache.datasets.pictures import as_folder, as_zip, encoded
from tests.shared_data import SHARED, needs_shared


def photo(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a picture of many colours."""
    values = np.random.default_rng(seed).integers(0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def saved(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photos(count: int = 12) -> dict[str, bytes]:
    return {
        f"{label}/{n}.jpg": saved(photo(100 * k + n)) for k, label in enumerate(("cat", "dog")) for n in range(count)
    }


def placeholder() -> Image.Image:
    picture = Image.new("RGB", (64, 48), (200, 205, 210))
    ImageDraw.Draw(picture).text((6, 18), "no photo", fill=(90, 90, 90))
    return picture


def checked(spec):
    return run(DataConfig(what="check", data=str(spec), quiet=True))


ODD = {
    "a gif among jpegs": (saved(photo(7), "GIF"), "GIF among JPEG"),
    "a png among jpegs": (saved(photo(7), "PNG"), "PNG among JPEG"),
    "a placeholder": (saved(placeholder()), "few colours (.*): a placeholder?"),
    "a blank": (saved(Image.new("RGB", (64, 48), "red")), "few colours (1 in most of it"),
    "tiny": (saved(photo(7, (8, 8))), "far smaller: 8 x 8, the usual shorter side is 48"),
    "a line": (saved(photo(7, (1200, 40)), "JPEG"), "far longer than wide: 1200 x 40"),
    "grey": (saved(photo(7).convert("L")), "grey among colour"),
    "grey in three channels": (saved(photo(7).convert("L").convert("RGB")), "grey among colour"),
    "cmyk": (saved(photo(7).convert("CMYK")), "CMYK among colour"),
    "animated": (saved(photo(7), "GIF", save_all=True, append_images=[photo(8), photo(9)]), "3 frames, of which the first is read"),
    "a shape in the alpha alone": (saved(Image.merge("RGBA", [*[Image.new("L", (64, 48))] * 3, photo(7).convert("L")]), "PNG"),
                                   "shape in the alpha channel alone"),
    "16 bits": (saved(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20), "PNG"), "16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ODD))
@pytest.mark.parametrize("pack", [as_folder, as_zip])
def test_an_odd_one_out_is_named_and_no_other(name, pack, tmp_path):
    content, words = ODD[name]

    report = checked(pack({**photos(), "dog/odd.one": content}, tmp_path / ("x.zip" if pack is as_zip else "x")))

    assert list(report.odd) == ["dog/odd.one"]
    assert any(part in " ".join(report.odd["dog/odd.one"]) for part in [words, words.partition(" (")[0]])


def test_photographs_alone_hold_no_odd_ones(tmp_path):
    report = checked(as_folder(photos(), tmp_path / "x"))

    assert (report.odd, report.formats, report.pixels) == ({}, {"JPEG": 24}, {"64 x 48": 24})
    assert report.kinds == {"colour": 24}
    assert "odd" not in " ".join(table.title for table in report.tables())


@pytest.mark.parametrize("change", [
    lambda picture: saved(picture.convert("L")), lambda picture: saved(picture, "GIF"), lambda picture: saved(picture.resize((8, 6))),
    lambda picture: saved(picture.quantize(4).convert("RGB"), "PNG"),
    lambda picture: saved(picture, "GIF", save_all=True, append_images=[picture.rotate(90)]),
], ids=["grey", "gif", "small", "few colours", "animated"])  # fmt: skip
def test_what_half_or_all_of_the_pictures_are_is_not_odd(change, tmp_path):
    half = {f"cat/{n}": change(photo(n)) for n in range(12)} | {f"dog/{n}": saved(photo(50 + n)) for n in range(12)}

    report = checked(as_folder(half, tmp_path / "half"))
    assert report.odd == {}
    assert sum(report.kinds.values()) == 24 + report.kinds.get("animated", 0)
    assert checked(as_folder({n: c for n, c in half.items() if n[0] == "c"}, tmp_path / "all")).odd == {}


def test_a_picture_that_is_there_many_times_is_named_each_time(tmp_path):
    copies = {f"cat/missing{n}.jpg": saved(photo(999)) for n in range(6)}

    report = checked(as_folder({**photos(), **copies}, tmp_path / "x"))

    assert report.odd == {name: ["the same picture 6 times"] for name in copies}


def test_formats_sizes_odd_ones_and_what_is_left_out_are_in_both_forms_and_all_ends_well(tmp_path):
    files = {
        **photos(),
        "cat/stray.gif": saved(photo(7), "GIF"),
        "cat/tiny.jpg": saved(photo(8, (9, 9))),
        "cat/notes.txt": b"x",
    }
    root = as_folder(files, tmp_path / "x")
    (tmp_path / "x/owl").mkdir()

    table = CliRunner().invoke(cli.main, ["data", "check", root])
    found = checked(root).json()

    assert table.exit_code == 0
    for words in (
        "format (2)",
        "odd ones out (2)",
        "GIF among JPEG",
        "left out (2)",
        "cat/notes.txt",
        "folder without a picture",
    ):
        assert words in table.stdout
    assert (found["formats"], found["pixels"]) == ({"JPEG": 25, "GIF": 1}, {"64 x 48": 25, "9 x 9": 1})
    assert found["odd"].keys() == {"cat/stray.gif", "cat/tiny.jpg"}
    assert found["left_out"] == {"files": ["cat/notes.txt"], "folders": ["owl"]}


def test_names_with_brackets_are_shown_as_they_are(tmp_path):
    root = as_folder({"[red]/1.jpg": encoded(1), "[bold]/:cat:.jpg": b"", "a|b/[x].jpg": b""}, tmp_path / "x")

    shown = CliRunner().invoke(cli.main, ["data", "check", root])

    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in ("[red]", "[bold]/:cat:.jpg", "a|b/[x].jpg"))


def test_data_that_is_in_no_files_has_no_formats():
    report = checked("digits")

    assert (report.formats, report.pixels) == ({}, {"8 x 8": 1797})


@needs_shared
def test_of_real_photographs_few_are_odd():
    report = checked(SHARED / "data/blood-cells/blood_cells.zip")

    assert report.formats == {"JPEG": 1159}
    assert len(report.odd) <= 3
