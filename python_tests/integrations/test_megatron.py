"""GSR under Megatron-Core's distributed optimizer on four processes of a CPU, which answers where CUDA is asked for."""

import pytest
import torch

from python_tests.distributed.ranks import run
from python_tests.integrations import mcore

REFUSED = {
    "torch's": "TypeError: optimizer must be what get_megatron_optimizer() returns, got AdamW",
    "plain": "TypeError: optimizer: Megatron-Core steps flat partitions: use gsr_kernels.integrations.megatron.attach",
    "stepped": "ValueError: optimizer has taken steps",
    "shard_bases": "ValueError: shard_bases: a rank has the bases of its own shards",
    "EWC": "ValueError: method: methods on a whole model",
    "PSP": "TypeError: method: PSP needs whole matrices",
    "replicas": "TypeError: optimizer: not supported with a method: FP32Optimizer: set use_distributed_optimizer=True",
    "use_precision_aware_optimizer": "TypeError: optimizer: not supported with a method: use_precision_aware_optimizer",
    "use_megatron_fsdp": "TypeError: optimizer: not supported with a method: use_megatron_fsdp",
    "num_moe_experts": "TypeError: optimizer: not supported with a method: num_moe_experts",
    "allreduce": "TypeError: optimizer: not supported with a method: layers of expert parallelism",
    "model_chunks": "TypeError: optimizer: not supported with a method: a virtual pipeline",
    "optimizer": "TypeError: optimizer: not supported with a method: optimizer_cpu_offload",
    "nonfinite": "ValueError: nonfinite: the other stages of a pipeline",
    "few": "ValueError: optimizer: a rank has no part of the weights",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("megatron"))
    checks = (
        (mcore.agreement, folder),
        (mcore.edges,),
        (mcore.in_16_bits,),
        (mcore.resumed, folder),
        (mcore.second_task,),
        (mcore.refusals,),
    )
    return run(4, (mcore.checked, *checks))["checked"]


def test_tensor_and_data_parallel_agree_with_one_process(results):
    for ranks in results:
        assert len(ranks["agreement"]) == 6
        for far, _, (steps, of_weights), _ in ranks["agreement"].values():
            # Megatron's shards are float32
            assert far <= 1e-6 and steps == mcore.STEPS and of_weights == [mcore.STEPS] * 3


def test_bases_are_found_by_any_ranks_of_tensor_parallelism(results):
    for ranks in results:
        counts = {case: count for case, (*_, count) in ranks["agreement"].items()}
        # ranks of data parallelism share three weights; those of tensor parallelism each have the square one
        assert counts[1, "drop"] == counts[1, "keep"] <= 1 <= counts[4, "keep"]
        assert counts[4, "drop"] == counts[2, "drop"] == 0


def test_a_step_sums_a_diagonal_and_gathers_nothing(results):
    for ranks in results:
        for (tensor, out_of_span), (_, seen, *_) in ranks["agreement"].items():
            # 12 directions of each: of two that tensor parallelism shards, and of a square one that it leaves whole
            cut, square = 4 * 2 * (12 if out_of_span == "keep" else 12 * 12), 4 * 12
            expected = {1: [cut + square], 2: [cut, square], 4: [cut]}[tensor]
            assert seen == [("allreduce_", sent) for sent in expected]


def test_overlapped_messages_and_a_frozen_weight_agree_with_one_process(results):
    for ranks in results:
        (overlapped, every), (frozen, trained) = ranks["edges"].values()
        assert max(overlapped, frozen) <= 1e-6
        assert every == ["up.weight", "down.weight", "out.weight"] and trained == every[1:]


def test_16_bits_are_trained_in_float32_shards_and_overflows_skipped(results):
    for ranks in results:
        assert ranks["in_16_bits"].keys() == {torch.bfloat16, torch.float16}
        for far, bare, skipped in ranks["in_16_bits"].values():
            assert far <= 0.1 * bare
            assert skipped == (False, 0, mcore.STEPS)


def test_a_checkpoint_goes_on_bit_by_bit(results):
    for rank, ranks in enumerate(results):
        whole, stages = ranks["resumed"].values()
        assert whole == (0, 2, True, None, ["bases"])
        key = f"optimizer.gsr_kernels.stage_{rank // 2}"
        assert stages == (0, 2, True, key, ["bases-stage-0", "bases-stage-1"])


def test_a_second_task_has_the_bases_of_its_weights(results):
    for ranks in results:
        error, steps = ranks["second_task"]
        assert error <= 1e-6 and steps == 4


def test_what_is_not_supported_is_refused_by_name(results):
    for ranks in results:
        assert ranks["refusals"].keys() == REFUSED.keys()
        for name, message in ranks["refusals"].items():
            assert message.startswith(REFUSED[name]), message
