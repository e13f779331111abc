"""What every analysis promises; the suite runs over the files of the room, so that a new one is held to it without an edit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurecache.backbones import BackboneOptions, load_backbone
from featurecache.datasets import open_dataset
from pipelines.analyses import ANALYSES
from pipelines.analyses._subjects import LiveSubject
from tests.pipelines.online_samples import photos


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSubject]:
    """Yield a small transformer with random values on generated pictures."""
    data = open_dataset(str(photos(tmp_path_factory.mktemp("seen") / "photos", each=4)))
    backbone = load_backbone("timm:test_vit", BackboneOptions(weights="random:0", image_size=96))
    found = LiveSubject(backbone, data, "a model", split="all", layers="all", tokens="auto")
    yield found
    found.close()


class AnalysisContract:
    def test_its_file_says_its_source_and_how_much_it_looks_at(self, name):
        room = ANALYSES.load(name)
        _, _, _, *options = inspect.signature(room.analyse).parameters.values()

        assert room.__doc__ and inspect.getdoc(room.analyse) and room.PAPER and room.SAMPLES > 0
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)

    def test_it_finds_the_same_twice_and_says_it_for_people_and_machines(self, name, subject):
        one, other = (ANALYSES.load(name).analyse([subject], subject.ids[:8], 4) for _ in range(2))

        assert json.dumps(one.section.values) == json.dumps(other.section.values)
        assert one.section.title and one.section.text and one.section.figures
        assert dict(one.files) == dict(other.files)
        assert all(Path(file).suffix == ".png" for file in one.files)

    def test_it_leaves_the_model_as_it_was(self, name, subject):
        before = [part.fused_attn for part in subject.backbone.module.modules() if hasattr(part, "fused_attn")]

        ANALYSES.load(name).analyse([subject], subject.ids[:4], 4)

        after = [part for part in subject.backbone.module.modules() if hasattr(part, "fused_attn")]
        assert [part.fused_attn for part in after] == before
        assert not any(part.attn_drop._forward_hooks for part in after)
