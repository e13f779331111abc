"""The last line of a run: how its values were found, and the parameters of backbone and head."""

from __future__ import annotations

import pytest

from heads import HEADS
from pipelines.training.closing import describe_parameters, describe_training

CACHED = {
    "head": "linear", "parameters": 1930, "trained_parameters": 1930, "epochs": 10, "best_epoch": 3, "closed_form": {},
    "features": {"backbone": {"name": "vit_tiny"}},
}  # fmt: skip
ONLINE = {**CACHED, "backbone_parameters": 10000, "trained_backbone_parameters": 384, "trained_parameters": 2314}


@pytest.mark.parametrize(("head", "words"), [
    ("ridge", "closed form"), ("kernel", "closed form"), ("logistic", "converged optimum"),
    ("knn", "training rows kept as neighbours"), ("prototype", "means of the classes"),
    ("zero_shot", "embeddings of the class names"), ("lfa_clip", "no parameter was trained"),
    ("a_head_of_somebody", "no parameter was trained"), ("linear", "converged optimum"),
])  # fmt: skip
def test_only_a_closed_form_is_called_one(head, words):
    assert describe_training({**CACHED, "head": head, "trained_parameters": 0}) == words


def test_heads_that_nothing_is_trained_of_say_how_they_come_to_their_values():
    silent = [
        name for name in HEADS.names() if not HEADS.load(name).LEARNING_RATE and not HEADS.constant(name, "FITTED")
    ]

    assert silent == []


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "best at epoch 3 of 10"),
    ({"epochs": 0, "best_epoch": 0}, "initial values, 0 epochs of training"),
    ({"epochs": 0, "best_epoch": 0, "closed_form": {"lambda_per_row": 0.1}}, "closed-form start, 0 epochs of training"),
    ({"head": "ridge"}, "best at epoch 3 of 10"),
])  # fmt: skip
def test_what_was_trained_by_steps_says_its_epoch(changes, words):
    assert describe_training({**CACHED, **changes}) == words


def test_parameters_are_those_of_backbone_and_head():
    assert (
        describe_parameters(CACHED)
        == "head of 1,930 parameters, 1,930 of them trainable; the backbone vit_tiny is frozen"
    )
    assert describe_parameters(ONLINE) == ("11,930 parameters (backbone 10,000 + head 1,930), 2,314 of them trainable")
    frozen = {**ONLINE, "trained_backbone_parameters": 0, "trained_parameters": 1930}
    assert describe_parameters(frozen).endswith("1,930 of them trainable, the backbone is frozen")
    assert describe_parameters({**CACHED, "teachers": [{}]}).endswith("; the teachers are frozen")
