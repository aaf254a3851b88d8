"""GSR under DeepSpeed's ZeRO, the real one, on two to four processes of a CPU."""

import signal

import pytest
import torch

from python_tests.distributed.ranks import run, start
from python_tests.integrations import zero

REFUSED = {
    "model": "TypeError: engine must be what deepspeed.initialize() returns first, got Sequential",
    "stepped": "ValueError: engine has taken 1 steps",
    "offload": "TypeError: engine: not supported with a method: offload_optimizer: set device to 'none'",
    "nvme": "TypeError: engine: not supported with a method: offload_param: set device to 'none'",
    "elastic": "TypeError: engine: not supported with a method: elastic_checkpoint",
    "1-bit": "TypeError: engine: not supported with a method: OnebitAdam",
    "stage": "TypeError: engine: not supported with a method: zero_optimization.stage 0",
    "no optimizer": "TypeError: engine: not supported with a method: an engine without an optimizer",
    "pipeline": "TypeError: engine: not supported with a method: pipeline parallelism",
    "BF16_Optimizer": "TypeError: engine: not supported with a method: BF16_Optimizer: in bf16 with ZeRO 1",
    "nonfinite": "ValueError: nonfinite: DeepSpeed steps one group",
    "EWC": "ValueError: method: methods on a whole model",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("zero"))
    checks = [(zero.agreement,), (zero.in_bf16,), (zero.resumed, folder), (zero.by_trainer, folder)]
    of_two = run(2, *checks, (zero.second_task,), (zero.beside_fsdp2,), (zero.refusals,))
    of_three, of_four = run(3, (zero.agreement,)), run(4, (zero.agreement,), (zero.on_more_ranks, folder))
    agreements = [found for ranks in (of_two, of_three, of_four) for found in ranks.pop("agreement")]
    return of_two | of_three | of_four | {"agreement": agreements}


def test_every_stage_agrees_with_one_process(results):
    assert len(results["agreement"]) == 2 + 3 + 4
    for found in results["agreement"]:
        assert len(found) == 2 * 3 * 2
        for (dtype, *_), (far, _, (steps, of_weights), _) in found.items():
            assert far <= {torch.float32: 2e-7, torch.float64: 1e-12}[dtype]
            assert steps == zero.STEPS and of_weights == [zero.STEPS] * 3


def test_weights_are_split_inside_a_row(results):
    for cases in zip(*(found.values() for found in results["agreement"])):
        assert sum(inside for *_, inside in cases[:2]) and sum(inside for *_, inside in cases[2:5])
        assert sum(inside for *_, inside in cases[5:])


def test_a_step_sums_a_diagonal_and_gathers_nothing(results):
    for found in results["agreement"]:
        for (dtype, _, out_of_span), (_, seen, *_) in found.items():
            # 6 directions in the first group, 5 and 2 in the second
            elements = (6, 5 + 2) if out_of_span == "keep" else (6 * 6, 5 * 5 + 2 * 2)
            assert seen == [[("allreduce_", dtype.itemsize * number)] for number in elements]


def test_bfloat16_is_trained_in_float32_partitions_and_skips_overflows(results):
    for found in results["in_bf16"]:
        for far, bare, skipped in found.values():
            assert far <= 0.1 * bare
            assert skipped == (0, zero.STEPS, 1)


def test_a_checkpoint_goes_on_bit_by_bit(results):
    for found in results["resumed"]:
        assert list(found.values()) == [(0, 2, True)] * 3


def test_a_universal_checkpoint_goes_on_with_more_ranks(results):
    for found in results["on_more_ranks"]:
        assert [(count, steps) for count, steps, _ in found.values()] == [(0, 2)] * 3
        assert all(far <= 1e-6 for *_, far in found.values())


def test_a_second_task_has_the_bases_of_its_weights(results):
    assert results["second_task"] == [(0, 4)] * 2


def test_a_trainer_goes_on_bit_by_bit(results):
    again, other = zip(*(found for found, _, _ in results["by_trainer"]))
    # of seven weights each rank decomposed some, once
    assert sum(count for count, *_ in again) == 7 and not any(count for count, *_ in other)
    assert all(steps == 4 and logged == 0 for _, steps, logged in again + other)
    assert all(same for _, same, _ in results["by_trainer"])
    assert all("DeepSpeed's configuration has an optimizer" in message for *_, message in results["by_trainer"])


def test_a_rank_that_is_killed_ends_the_other_with_an_error(tmp_path):
    _, failures, codes = start(2, (zero.die_in_a_step, str(tmp_path), 1))
    assert codes[1] == -signal.SIGKILL and len(failures) == 1 and "Error" in failures[0]
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["bases"]


def test_the_bench_times_steps_beside_fsdp2(results):
    for found in results["beside_fsdp2"]:
        assert list(found) == ["FSDP2", "ZeRO 2", "FSDP2, GSR", "ZeRO 2, GSR"]
        assert all(len(times) == 1 and times[0] > 0 for times in found.values())


def test_what_is_not_supported_is_refused_by_name(results):
    for found in results["refusals"]:
        assert found.keys() == REFUSED.keys()
        for name, message in found.items():
            assert message.startswith(REFUSED[name]), message
