"""What the documentation tells a user to type works as written, offline, on a folder of small images."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import _registry

import cli
import featurecache
from featurecache.backbones import _timm_weights
from featurecache.sources import _workers
from pipelines.exporting import proving
from pipelines.training import recipe
from tests.journeys.pages import PAGES, ROOT, commands, follow, steps
from tests.pipelines.exporting.here import said_here

CLASSES = ("cat", "dog", "owl")
ORDER = (
    "index", "data", "backbones", "extracting", "scores", "heads", "protocols", "reporting", "predicting", "python", "exporting",
    "online", "students", "analyses", "store",
)  # fmt: skip
"""Pages of docs in the order of the index: a page may use what an earlier one has made."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: photos, bad photos, a weights file; downloads give random weights instead.

    Where a page names no number of epochs, heads train for a tenth of their usual steps, and backbones for one epoch. Models look at 32 pixels where a
    page names no size, and ViT-Tiny is a quarter as wide. A command that asks for several worker processes gets one, and an
    export is proved in this process.
    """
    for name, config in list(_registry._model_pretrained_cfgs.items()):
        if name.startswith(("vit_tiny_patch16_224", "resnet18")):
            monkeypatch.setitem(_registry._model_pretrained_cfgs, name, replace(config, input_size=(3, 32, 32)))
    narrow = partial(_registry._model_entrypoints["vit_tiny_patch16_224"], embed_dim=48)
    monkeypatch.setitem(_registry._model_entrypoints, "vit_tiny_patch16_224", narrow)
    monkeypatch.setattr(_workers, "ProcessPoolExecutor", lambda count, *rest: ProcessPoolExecutor(1, *rest))
    generator = np.random.default_rng(0)
    for split, count in (("train", 14), ("test", 3)):
        for shade, name in enumerate(CLASSES):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (40, 48, 3)) + 70 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    shutil.copytree(tmp_path / "photos" / "train", tmp_path / "hostile")
    whole = (tmp_path / "hostile/cat/0.png").read_bytes()
    (tmp_path / "hostile/cat/0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hostile/dog/0.png").write_bytes(b"")
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit_tiny.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "MOST_EPOCHS", 50)
    monkeypatch.setattr(proving, "_said", said_here)
    monkeypatch.setattr(_timm_weights, "_downloaded", lambda create, name, skeleton: _drawn(create))
    yield tmp_path
    sys.modules.pop("my_models", None)


def _drawn(create):
    torch.random.default_generator.manual_seed(0)
    return create(pretrained=False)


def test_what_the_readme_says_works(workplace):
    follow(ROOT / "README.md")

    lines = (workplace / "answers.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * len(CLASSES)


def test_what_the_pages_say_works(workplace):
    for name in ORDER:
        follow(ROOT / "docs" / f"{name}.md")


@pytest.mark.parametrize("page", [ROOT / "docs/python.md", ROOT / "README.md"], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_on_a_store_with_skipped_rows(workplace, page):
    """What one reads of a store belongs together also where an image could not be read."""
    (workplace / "photos/train/dog/3.png").write_bytes(b"")
    for store in ("photos.zarr", "notebook.zarr"):
        featurecache.extract_features(
            "photos", backbone="timm:vit_tiny_patch16_224", out=store, layers="last" if store == "notebook.zarr" else "all",
            tokens="auto" if store == "notebook.zarr" else "cls+mean", on_error="skip", quiet=True,
        )  # fmt: skip
        assert "1 of them skipped" in repr(featurecache.open_store(store))
    featurecache.train_head("photos.zarr", head="lfa", epochs=1, out="runs/lfa", quiet=True)
    namespace: dict[str, object] = {}

    for step in steps(page):
        if step.language == "python":
            exec(compile(step.text, str(page), "exec"), namespace)


def test_every_page_is_followed_and_in_the_index():
    index = (ROOT / "docs/index.md").read_text()

    assert {page.stem for page in PAGES} == {"README", *ORDER}
    assert [name for name in ORDER[1:] if f"({name}.md)" not in index] == []


def test_every_verb_is_typed_somewhere():
    typed = {arguments[0] for page in PAGES for arguments in commands(page)}

    assert set(cli.VERBS) - typed == {"demo"}
    assert "make demo" in (ROOT / "README.md").read_text()


OPTION = re.compile(r"(?<![\w-])--[a-z]+(?:[_-][a-z]+)*(?![\w-])")
"""An option in prose, in a command or in a message; what ends in a dash is a part of a name that the code completes."""
OTHERS = {"torchrun": {"--nproc-per-node", "--no-python"}}
"""Program -> options of it that the documentation or a message names."""


@cache
def known_options() -> frozenset[str]:
    """Return every option of every verb, and what the papers' scripts call some of them."""
    verbs = [cli.main.get_command(None, verb) for verb in cli.VERBS]
    ours = {name for verb in verbs for option in verb.params for name in (*option.opts, *option.secondary_opts)}
    return frozenset({*ours, *cli.OLD_NAMES, "--help"})


def options_of_script(file: Path) -> set[str]:
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text(encoding="utf-8")))


def unknown_options(paragraph: str) -> list[str]:
    """Return the options of a paragraph that neither a verb has nor a program that the paragraph names."""
    known = set(known_options())
    for script in re.findall(r"benchmarks/\w+\.py", paragraph):
        known |= options_of_script(ROOT / script)
    if "predict.py" in paragraph:
        known |= options_of_script(ROOT / "pipelines/exporting/standalone.py")
    for program, options in OTHERS.items():
        known |= options if program in paragraph else set()
    return [name for name in OPTION.findall(paragraph) if name.replace("_", "-") not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_that_a_page_names_exists(page):
    paragraphs = re.split(r"\n\n", page.read_text(encoding="utf-8"))

    assert [name for paragraph in paragraphs for name in unknown_options(paragraph)] == []


def test_every_option_that_a_message_or_a_help_names_exists():
    folders = [ROOT / name for name in ("featurecache", "heads", "pipelines")]
    files = [*(file for folder in folders for file in folder.rglob("*.py")), ROOT / "save_features.py"]
    found = {}
    for file in files:
        texts = [node.value for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip
        extra = options_of_script(file)
        unknown = {name for text in texts for name in unknown_options(text)} - extra
        if unknown:
            found[str(file.relative_to(ROOT))] = sorted(unknown)

    assert found == {}


def test_an_option_that_no_verb_has_is_found():
    assert unknown_options("name them with `--data`, or `--weights`") == ["--data"]
    assert unknown_options("`python predict.py --expect DIGEST`, and `--epochs=5`, `--no-refit`") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []
