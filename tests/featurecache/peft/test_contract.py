"""Every file of `featurecache/peft/` keeps the contract of methods."""

from __future__ import annotations

import pytest

from featurecache.errors import UnknownNameError
from featurecache.peft import PEFT, adapt, load_adapted
from tests.featurecache.peft.contract import MethodContract, plain


class TestEveryMethod(MethodContract):
    @pytest.fixture(params=PEFT.names())
    def name(self, request):
        return request.param


def test_an_unknown_method_is_answered_with_the_nearest_and_the_file_to_write():
    with pytest.raises(UnknownNameError, match=r"no method called 'fulll'. Did you mean 'full'\? .*peft/fulll\.py"):
        adapt("fulll", plain(), {})


def test_where_nothing_was_trained_there_is_no_file_and_nothing_to_load(tmp_path):
    assert load_adapted(tmp_path, plain(), {}) is None
