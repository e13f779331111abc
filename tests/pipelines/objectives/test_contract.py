"""The contract of objectives, over every one that has teachers."""

from __future__ import annotations

import pytest

from pipelines.objectives import _paraphrasing
from tests.pipelines.objectives.contract import GUIDED, ObjectiveContract


class TestObjectives(ObjectiveContract):
    @pytest.fixture(autouse=True, params=GUIDED)
    def member(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = request.param
        monkeypatch.setattr(_paraphrasing, "EPOCHS", 3)
