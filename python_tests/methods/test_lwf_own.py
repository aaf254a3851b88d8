"""LwF on text of the model's own, in front of any optimizer."""

import copy

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from gsr_kernels import EWC, LwFOwn, attach
from gsr_kernels.integrations.transformers import attach_to
from gsr_kernels.methods.lwf_own import OWN_STEPS
from python_tests.distributed.ranks import run
from python_tests.oracle import error

SHORT = {"own_rows": 2, "own_tokens": 6}


def llama(width=16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def sequences(first, step, seed, rows=8):
    """Rows that count in steps within twelve tokens."""
    begin = torch.randint(12, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return first + (begin + step * torch.arange(10)) % 12


def take_steps(model, optimizer, rows):
    for batch in rows:
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("scale", [None, 4.0])
def test_the_gradient_of_the_divergence_is_added(scale):
    model = llama().double()
    before = copy.deepcopy(model)
    own = LwFOwn(lam=0.7, temperature=3.0, seed=5, **SHORT)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=scale is not None)
    if scale is not None:
        # as a GradScaler tells an optimizer that divides by its scale
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
    state = torch.get_rng_state()
    handle = attach(model, optimizer, own)
    assert torch.equal(torch.get_rng_state(), state)
    written = handle.state_dict()["0.written"]
    assert written.shape == (2 * OWN_STEPS, 6) and len(written.unique(dim=0)) > OWN_STEPS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    given = [parameter.grad.clone() for parameter in model.parameters()]
    # lam T² times the mean over the rows' tokens of Σ q log(q / p), token by token
    torch.manual_seed(1)
    rows, total = written[torch.randperm(len(written))[:2]], 0
    # of all rows at once: the model's own norms are in float32
    logits = [one(rows).logits for one in (before, model)]
    for row in range(2):
        for place in range(5):
            q, p = ((one[row, place] / 3).exp() for one in logits)
            q, p = q / q.sum(), p / p.sum()
            total = total + (q.detach() * (q.detach() / p).log()).sum()
    truth = torch.autograd.grad(0.7 * 9 * total / 10, list(model.parameters()))
    old = [parameter.detach().clone() for parameter in model.parameters()]
    torch.manual_seed(1)
    optimizer.step()
    for was, parameter, gradient, term in zip(old, model.parameters(), given, truth):
        assert error(was - parameter.detach(), gradient / (scale or 1) + term) < 1e-10
    assert handle.scalars()["lwf_own/loss"] == pytest.approx(0.7 * 9 * total.item() / 10, rel=1e-9)


def test_what_was_learned_before_is_kept_better():
    known, new = sequences(0, 1, 0), sequences(12, 5, 99)

    def lost(lam):
        model = llama(width=32)
        take_steps(model, torch.optim.AdamW(model.parameters(), lr=1e-2), [sequences(0, 1, i) for i in range(60)])
        start = model(known, labels=known).loss.item()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        handle = attach(model, optimizer, LwFOwn(lam, own_tokens=10))
        torch.manual_seed(0)
        take_steps(model, optimizer, [sequences(12, 5, i) for i in range(80)])
        # of 2.7 before
        assert model(new, labels=new).loss.item() < 1.5
        written = handle.state_dict()["0.written"]
        handle.finish_task()
        # the model has learned, and writes otherwise
        assert not torch.equal(handle.state_dict()["0.written"], written)
        return model(known, labels=known).loss.item() - start

    assert lost(1.0) < 0.1 * lost(0.0)


def test_a_loop_resumes_to_the_last_bit():
    def begin():
        model = llama()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, attach(model, optimizer, LwFOwn(**SHORT))

    model, optimizer, handle = begin()
    rows = [sequences(12, 5, i) for i in range(4)]
    take_steps(model, optimizer, rows[:2])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict(), torch.get_rng_state()))
    # the tied weight is held once
    assert {"0.written", "0.before.model.embed_tokens.weight"} <= saved[2].keys() and "lm_head" not in "".join(saved[2])
    take_steps(model, optimizer, rows[2:])

    again, optimizer, handle = begin()
    with torch.no_grad():
        handle.methods[0]._before.model.norm.weight += 1
    for one, state in zip((again, optimizer, handle), saved):
        one.load_state_dict(state)
    torch.set_rng_state(saved[3])
    take_steps(again, optimizer, rows[2:])
    assert same(model, again)


class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        row = sequences(12, 5, i, rows=1)[0]
        return {"input_ids": row, "labels": row}


def test_under_the_trainer_it_resumes_and_logs(tmp_path):
    def trained(lam, **resume):
        arguments = TrainingArguments(
            str(tmp_path / str(lam)), use_cpu=True, report_to="none", max_steps=4, save_steps=2, logging_steps=2,
            learning_rate=1e-2, per_device_train_batch_size=2, gradient_accumulation_steps=2, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(llama(), arguments, train_dataset=Rows())
        attach_to(trainer, LwFOwn(lam, **SHORT))
        trainer.train(**resume)
        return trainer

    whole = trained(3.0)
    assert [entry["lwf_own/loss"] > 0 for entry in whole.state.log_history if "loss" in entry] == [True, True]
    assert not whole.optimizer.optimizer._optimizer_step_pre_hooks
    assert same(whole.model, trained(3.0, resume_from_checkpoint=str(tmp_path / "3.0" / "checkpoint-2")).model)
    assert not same(whole.model, trained(0.0).model)


def replicas():
    """Two ranks with rows and drawn text of their own: the same weights after every step."""
    model = llama()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = attach(ddp, optimizer, LwFOwn(**SHORT))
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    take_steps(ddp, optimizer, [sequences(12, 5, 10 * rank + i) for i in range(2)])
    refused = ""
    try:
        attach(fully_shard(llama()), optimizer, LwFOwn())
    except TypeError as error:
        refused = str(error)
    return [parameter.detach() for parameter in model.parameters()], handle.scalars(), refused


def test_replicas_move_alike_and_shards_are_refused():
    (first, told, refused), (second, otherwise, _) = run(2, (replicas,))["replicas"]
    assert all(torch.equal(a, b) for a, b in zip(first, second)) and told != otherwise
    assert refused.startswith("model is sharded, and LwFOwn needs it whole on every rank")


def test_bad_input_is_refused():
    for settings, message in (
        ({"lam": -1}, "lam"), ({"temperature": 0}, "temperature"), ({"own_rows": 0}, "own_rows"),
        ({"own_tokens": 1}, "own_tokens"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            LwFOwn(**settings)
    encoder_decoder = T5ForConditionalGeneration(T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2))
    for model in (torch.nn.Linear(2, 2), encoder_decoder):
        with pytest.raises(TypeError, match=f"for transformers' decoders, not for {type(model).__name__}"):
            attach(model, torch.optim.SGD(model.parameters()), LwFOwn())
    with pytest.raises(ValueError, match="own_tokens must be at most 64, the model's positions, got 65"):
        attach(llama(), torch.optim.SGD(llama().parameters()), LwFOwn(own_tokens=65))
    with pytest.raises(ValueError, match=r"attach\(\) first, then handle.load_state_dict"):
        LwFOwn().load_state_dict({})
    model, wider = llama(), llama(width=32)
    handle, other = (attach(one, torch.optim.SGD(one.parameters()), LwFOwn(**SHORT)) for one in (model, wider))
    with pytest.raises(ValueError, match=r"the state is of another model, which differs in model\.embed_tokens"):
        handle.load_state_dict(other.state_dict())
    for method in (LwFOwn(**SHORT), EWC(1.0)):
        with pytest.raises(ValueError, match="supports descent: negate the loss"):
            attach(model, torch.optim.SGD(model.parameters(), maximize=True), method)
