"""Recipes: every row of the papers' grids has a name, nothing in them is unknown, and they say on what they were tuned."""

from __future__ import annotations

import pytest

from featurecache.errors import ConfigError, UnknownNameError
from pipelines.online.settings import TrainOnlineConfig
from pipelines.recipes import Recipe, names
from pipelines.recipes import recipe as recipe_for

VTAB_RUNS = {
    "linear": 4, "full": 4, "bitfit": 4, "layernorm": 4, "difffit": 4, "ssf": 4, "vpt_shallow": 20, "vpt_deep": 16,
    "lora": 16, "adaptformer": 36, "pfeiffer": 80, "pfeiffer_random": 64, "zero_adapter": 64, "houlsby": 64,
    "convpass": 80, "repadapter": 60, "fact_tk": 60, "fact_tt": 60,
}  # fmt: skip
"""Runs a task of the study's table, by hand."""


def recipe(name: str) -> Recipe:
    return recipe_for(name, TrainOnlineConfig)


def written(folder, text):
    path = folder / "own.yaml"
    path.write_text(text)
    return f"{path}/row"


def test_every_recipe_of_the_package_is_read_without_a_word_that_means_nothing():
    found = [recipe(name) for name in names()]

    assert {one.name.partition("/")[0] for one in found} >= {
        "peft-vtab1k", "peft-cifar100", "peft-resisc45", "peft-clevr-distance", "peft-imagenet-clip", "dtl-vtab",
        "dtl-plus-vtab", "dtl-swin-vtab", "dtl-plus-swin-vtab", "dtl-few-shot", "dtl-domain", "ila-weak",
    }  # fmt: skip
    assert all(one.paper and one.settings["peft"] for one in found)


@pytest.mark.parametrize(("row", "runs"), VTAB_RUNS.items())
def test_the_grids_are_as_large_as_those_of_the_study(row, runs):
    assert recipe(f"peft-vtab1k/{row}").cells == runs


def test_each_task_has_its_own_rate_and_drop_path():
    dtl, plus = recipe("dtl-vtab/svhn"), recipe("dtl_plus_vtab/clevr_dist")

    assert (dtl.settings["peft"], dtl.settings["rate"], dtl.settings["drop_path"]) == ("dtl", 8e-3, 0.2)
    assert plus.settings["peft_option"] == {"rank": 2, "kernel": 4} and plus.settings["rate"] == 1e-3


def test_what_was_tuned_on_the_target_says_so():
    assert "tuned on the target that its paper measures" in recipe("dtl-domain/imagenet-r").warning
    assert not recipe("peft-vtab1k/lora").warning


def test_a_recipe_fills_what_was_not_said_and_its_lists_are_a_sweep():
    given = {"data": "x", "backbone": "y", "out": "z", "recipe": "peft-vtab1k/lora", "weight_decay": 0.5}

    found = TrainOnlineConfig.expanded({**given, "peft_option": {"rank": 4}, "epochs": 3})

    assert found["sweep"] == {"rate": [1e-3, 1e-2]}
    assert (found["peft"], found["peft_option"], found["weight_decay"], found["epochs"]) == (
        "lora",
        {"rank": 4},
        0.5,
        3,
    )
    assert found["batch_size"] == 64 and found["standardise"] is False


def test_a_fixed_rate_is_that_of_head_and_method():
    found = TrainOnlineConfig.expanded({"recipe": "dtl-vtab/dtd"})

    assert found["lr"] == found["backbone_lr"] == 3e-4 and not found["sweep"]
    assert "backbone_lr" not in TrainOnlineConfig.expanded({"recipe": "peft-vtab1k/linear"})


def test_all_that_is_wrong_with_an_own_recipe_is_told_together(tmp_path):
    text = (
        "paper: p\ntuned: validation\nrows:\n  row: {peft: lora, peft_option: {rnak: 4}, epocs: 3, rate: [1, fast]}\n"
    )

    with pytest.raises(ConfigError) as refused:
        recipe(written(tmp_path, text))

    assert len(refused.value.problems) == 3
    for said in ("has no option 'rnak'. Did you mean 'rank'", "no setting 'epocs'. Did you mean 'epochs'",
                 "rate must be a number or a list of such, got [1, 'fast']"):  # fmt: skip
        assert said in str(refused.value)


def test_the_frame_of_a_file_is_checked_too(tmp_path):
    with pytest.raises(ConfigError) as refused:
        recipe(written(tmp_path, "paper: p\ntuned: somehow\nrow: {}\n"))

    assert len(refused.value.problems) == 3
    assert "own.yaml has a key 'row'. Did you mean 'rows'" in str(refused.value)


def test_an_unknown_file_or_row_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="no recipe file 'peft-vtab'.* Did you mean 'peft-vtab1k'"):
        recipe("peft-vtab/lora")
    with pytest.raises(UnknownNameError, match="has no row 'loar'. Did you mean 'lora'"):
        recipe("peft-vtab1k/loar")
    with pytest.raises(UnknownNameError, match="a recipe is FILE/ROW, got 'lora'"):
        recipe("lora")
