"""The rows of each step."""

import torch

from gsr_kernels.continual.kinds import IGNORED
from gsr_kernels.continual.trainer import EpochSampler, TaskTrainer

ROWS = [{"input_ids": [number] * (number + 1), "labels": [number] * (number + 1)} for number in range(5)]
FILLING = {"input_ids": [0], "labels": [IGNORED]}


def test_an_epoch_has_every_row_once_and_ends_with_a_full_step():
    turns = EpochSampler(ROWS, batch=4, steps=5, seed=0)
    taken = [turns[turn] for turn in range(len(turns))]
    assert len(taken) == 20
    epochs = [taken[:5], taken[8:13], taken[16:]]
    assert all(sorted(map(len, (row["labels"] for row in epoch))) == [1, 2, 3, 4, 5] for epoch in epochs[:2])
    assert epochs[0] != epochs[1] and all(row in ROWS for row in epochs[2])
    assert [row for row in taken if row not in ROWS] == [FILLING] * 6 == [*taken[5:8], *taken[13:16]]


def test_a_seed_has_an_order_of_its_own():
    orders = [[EpochSampler(ROWS, 5, 1, seed)[turn]["input_ids"][0] for turn in range(5)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_label_may_be_one_number():
    turns = EpochSampler([{"input_ids": [1], "labels": 3}], batch=2, steps=1, seed=0)
    assert [turns[0]["labels"], turns[1]["labels"]] == [3, IGNORED]


def test_a_batch_of_filling_alone_costs_nothing():
    trainer = object.__new__(TaskTrainer)
    # a model would fail at once
    assert trainer.training_step(None, {"labels": torch.full((2, 3), IGNORED)}) == 0
