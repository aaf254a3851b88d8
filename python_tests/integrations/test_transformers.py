import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from gsr_kernels import Handle, SpectralBasis, attach
from gsr_kernels.integrations.transformers import MethodCallback, attach_to
from python_tests.continual.tiny import expert_model

ROWS = [{"input_ids": list(range(start, start + 8)), "labels": list(range(start, start + 8))} for start in range(16)]


def make_trainer(folder, optimizers=(None, None), model=None, model_init=None, kind=Trainer, **arguments):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "weight_decay": 0.1, "logging_steps": 2}
    arguments = defaults | {"save_strategy": "no"} | arguments
    return kind(
        model=None if model_init else model or LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape)),
        model_init=model_init,
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none", **arguments),
        train_dataset=ROWS,
        data_collator=default_data_collator,
        optimizers=optimizers,
    )


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_the_optimizer_is_the_trainer_s_own(tmp_path):
    plain, gsr = make_trainer(tmp_path), make_trainer(tmp_path)
    attach_to(gsr, rho=0.0, out_of_span="keep")
    for trainer in (plain, gsr):
        trainer.train()
    settings = [[{k: v for k, v in g.items() if k != "params"} for g in t.optimizer.param_groups] for t in (plain, gsr)]
    assert settings[0] == settings[1] and [group["weight_decay"] for group in settings[1]] == [0.1, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(gsr)))


def test_accumulation_clipping_and_logs(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1, gradient_checkpointing=True)
    attach_to(trainer, rho=0.7)
    trainer.train()
    handle = Handle.of(trainer.optimizer)
    assert handle.state_dict()["steps"] == 4 and {weight.steps for weight in handle.weights} == {4}
    assert ["gsr/norm_ratio" in entry for entry in trainer.state.log_history] == [True, True, False]
    assert handle._step.record_every == 2


def test_a_callback_may_attach_when_the_trainer_is_made(tmp_path):
    class Attached(Trainer):
        def __init__(self, **settings):
            class Begin(TrainerCallback):
                on_init_end = lambda callback, *_, **__: attach_to(self, rho=0.7)  # noqa: E731

            super().__init__(callbacks=[Begin()], **settings)

    trainer = make_trainer(tmp_path, kind=Attached, max_steps=1)
    trainer.train()
    assert sum(isinstance(one, MethodCallback) for one in trainer.callback_handler.callbacks) == 1
    assert Handle.of(trainer.optimizer).state_dict()["steps"] == 1


def test_fp32_weights_under_bf16_autocast(tmp_path):
    trainer = make_trainer(tmp_path, bf16=True)
    attach_to(trainer, rho=0.7)
    trainer.train()
    assert Handle.of(trainer.optimizer).state_dict()["steps"] == 4
    assert all(parameter.isfinite().all() for parameter in weights(trainer))


def test_a_model_saved_in_training_gains_no_key(tmp_path):
    trainer = make_trainer(tmp_path)
    keys = trainer.model.state_dict().keys()
    attach_to(trainer, rho=0.7)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "saved").state_dict().keys() == keys


def test_an_optimizer_given_to_the_trainer(tmp_path):
    model = make_trainer(tmp_path).model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = make_trainer(tmp_path, (optimizer, None), model)
    with pytest.raises(ValueError, match=r"call gsr_kernels\.attach"):
        attach_to(trainer, rho=0.7)
    handle = attach(model, optimizer, rho=0.7)
    trainer.train()
    assert handle.state_dict()["steps"] == 4


def test_a_trainer_that_makes_its_model_anew(tmp_path):
    model = make_trainer(tmp_path).model
    trainer = make_trainer(tmp_path, model_init=lambda: copy.deepcopy(model))
    attach_to(trainer, rho=0.7)
    handles = []
    for _ in range(2):
        trainer.train()
        handles.append(Handle.of(trainer.optimizer))
    assert handles[0] is not handles[1] and all(handle.state_dict()["steps"] == 4 for handle in handles)


class OwnOptimizer(Trainer):
    """Makes its optimizer itself, in a method without arguments, as LLaMA-Factory's trainers do."""

    def create_optimizer(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        return super().create_optimizer()


@pytest.mark.parametrize("kind", [Trainer, OwnOptimizer])
def test_resumed_from_a_checkpoint(tmp_path, kind):
    def train(folder, resume=None, **arguments):
        saved = {"save_strategy": "steps", "save_steps": 2, "logging_strategy": "no"}
        trainer = make_trainer(tmp_path / folder, kind=kind, **saved, **arguments)
        callback = attach_to(trainer, rho=0.7, bases=tmp_path / "bases.safetensors")
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer), callback.handle.state_dict()

    whole, state = train("whole")
    resumed, after = train("resumed", tmp_path / "whole" / "checkpoint-2")
    assert after["steps"] == state["steps"] == 4 and after["weights"] == state["weights"]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed))


def test_a_trainer_that_loads_by_itself_is_left_to_it_with_a_warning(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    own = type("Own", (type(trainer),), {"_load_from_checkpoint": lambda self, folder, model=None: None})
    monkeypatch.setattr(trainer, "__class__", own)
    with pytest.warns(UserWarning, match="Own loads checkpoints by a function of its own: see that it converts"):
        attach_to(trainer, rho=0.7)
    assert "_load_from_checkpoint" not in vars(trainer)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3", "deepseek"])
def test_experts_that_are_saved_one_by_one_are_resumed(tmp_path, architecture):
    def train(folder, resume=None):
        saved = {"save_strategy": "steps", "save_steps": 2, "logging_strategy": "no", "learning_rate": 1e-2}
        trainer = make_trainer(tmp_path / folder, model=expert_model(architecture), **saved)
        callback = attach_to(trainer, rho=0.7, targets=".*experts.*_proj", bases=tmp_path / "bases.safetensors")
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict(), callback.handle.state_dict()["steps"]

    whole, _ = train("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    file = checkpoint / "model.safetensors"
    saved = load_file(file)
    assert not any(name in saved for name in whole if ".experts." in name and "shared" not in name)
    resumed, steps = train("resumed", checkpoint)
    assert steps == 4 and all(torch.equal(whole[name], resumed[name]) for name in whole)

    # the best model, that the Trainer loads when training ends, likewise
    trainer = make_trainer(tmp_path, model=expert_model(architecture))
    attach_to(trainer, rho=0.7)
    trainer.state.best_model_checkpoint = tmp_path / "whole" / "checkpoint-4"
    trainer._load_best_model()
    assert all(torch.equal(whole[name], value) for name, value in trainer.model.state_dict().items())

    lacking = "model.norm.weight"
    save_file({"strange": saved.pop(lacking), **saved}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"checkpoint-2 lacks {lacking}, which the model has"):
        train("resumed", checkpoint)
    save_file({"strange": torch.ones(16), lacking: torch.ones(16), **saved}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="checkpoint-2 holds strange, which the model has not"):
        train("resumed", checkpoint)


def test_a_second_training_is_another_task(tmp_path):
    trainer = make_trainer(tmp_path)
    callback = attach_to(trainer, rho=0.7)
    trainer.train()
    handle, begun = callback.handle, {name: W.detach().clone() for name, W in trainer.model.named_parameters()}
    trainer.train()
    assert callback.handle is handle and handle.state_dict()["steps"] == 8
    for name, basis in handle.bases.items():
        assert torch.equal(basis.S, SpectralBasis.of(begun[name]).S)


def test_bad_settings_are_named_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    attach_to(trainer, rho=0.7, targets="none.*")
    with pytest.raises(ValueError, match="targets"):
        trainer.train()


def test_fsdp1_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(TypeError, match="FSDP1 keeps nothing"):
        attach_to(trainer, rho=0.7)
    assert "create_optimizer" not in vars(trainer)
