"""Every file of `pipelines/analyses/` keeps the contract of analyses."""

from __future__ import annotations

import pytest

from featurecache.errors import UnknownNameError
from pipelines.analyses import ANALYSES
from tests.pipelines.analyses.contract import AnalysisContract, subject

__all__ = ["subject"]


class TestEveryAnalysis(AnalysisContract):
    @pytest.fixture(params=ANALYSES.names())
    def name(self, request):
        return request.param


def test_an_unknown_analysis_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no analysis called 'ckb'. Did you mean 'cka'\?"):
        ANALYSES.load("ckb")
