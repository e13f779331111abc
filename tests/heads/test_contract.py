"""Every file of `heads/` keeps the contract of heads."""

from __future__ import annotations

import pytest

from featurecache.errors import RunError, UnknownNameError
from heads import HEADS
from heads._checkpoint import build_head, load_head
from tests.heads.contract import HeadContract
from tests.heads.samples import spec_of


class TestEveryHead(HeadContract):
    @pytest.fixture(params=HEADS.names())
    def name(self, request):
        return request.param


def test_an_unknown_head_is_answered_with_the_nearest_and_the_file_to_write():
    with pytest.raises(
        UnknownNameError, match=r"no head called 'ridgge'\. Did you mean 'ridge'\? .*write heads/ridgge\.py"
    ):
        build_head("ridgge", spec_of(), {})


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(RunError, match=r"nowhere holds no head that can be read"):
        load_head(tmp_path / "nowhere")
