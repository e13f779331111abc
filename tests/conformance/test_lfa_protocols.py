"""LFA's protocols against the recorded numbers of the original: DomainBed's splits, seeds and draws; CoOp's learning rates."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.protocols import drawn_setting, run_seed, seed_hash, split_keys
from pipelines.training.schedules import learning_rates

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FEATURECACHE_CONFORMANCE", REPOSITORY / ".." / "shared" / "conformance"))
PROTOCOL, SCHEDULE = (FOLDER / f"lfa_{name}.npz" for name in ("dg_protocol", "fewshot_lr_schedule"))
CASE = ("n", "trial_seed", "env_index", "seed_hash", "out_keys", "in_keys")
DRAWN_FOR, RUN_OF, ALGORITHM = ("PACS", "DomainNet"), ("PACS", "VLCS"), "CLIP_LFA"
"""Data sets that the first column of a table numbers, and the algorithm of its runs."""

if not (PROTOCOL.exists() and SCHEDULE.exists()):
    pytest.skip(
        f"no lfa_dg_protocol.npz in {FOLDER}; set FEATURECACHE_CONFORMANCE to the folder of fixtures",
        allow_module_level=True,
    )


def test_domains_are_split_with_the_seeds_and_in_the_order_of_the_original():
    arrays = dict(np.load(PROTOCOL))
    cases = sorted({name.partition("_")[0] for name in arrays if name.startswith("case")})
    read = {f"{case}_{name}" for case in cases for name in CASE}

    assert cases and read == arrays.keys() - {"hparams_table", "run_seed_table"}
    for case in cases:
        count, trial, domain, seed, out, kept = (arrays[f"{case}_{name}"] for name in CASE)
        assert seed_hash(int(trial), int(domain)) == int(seed)
        found = split_keys(int(count), int(trial), int(domain))
        assert found == (out.tolist(), kept.tolist())


def test_hyper_parameters_are_drawn_as_in_the_original():
    table = np.load(PROTOCOL)["hparams_table"]

    assert len(table)
    for dataset, hparams, trial, lr, momentum, batch in table.tolist():
        draw = drawn_setting(DRAWN_FOR[int(dataset)], int(hparams), int(trial))
        assert draw.lr == pytest.approx(lr, rel=1e-12)
        assert (draw.momentum, draw.batch_size) == (momentum, batch)


def test_runs_are_seeded_as_in_the_original():
    table = np.load(PROTOCOL)["run_seed_table"]

    assert len(table)
    for dataset, domain, hparams, trial, seed in table.tolist():
        assert run_seed(RUN_OF[dataset], ALGORITHM, [domain], hparams, trial) == seed


def test_the_few_shot_schedule_has_the_rate_of_every_epoch():
    arrays = dict(np.load(SCHEDULE))
    base = torch.tensor(float(arrays.pop("base_lr")), dtype=torch.float64)
    warmup = float(arrays.pop("warmup_lr"))

    assert arrays
    for name, rates in arrays.items():
        assert name.startswith("lr_epochs_")
        found = [
            float(learning_rates("coop", base, 3 * epoch + 1, steps_per_epoch=3, epochs=len(rates), warmup_lr=warmup))
            for epoch in range(len(rates))
        ]
        np.testing.assert_allclose(found, rates, rtol=1e-12)
