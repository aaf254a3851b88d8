from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from gsr_kernels.adapters.terms import OLoRA, PSLoRA
from gsr_kernels.integrations.transformers import MethodCallback, attach_to


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 4)

    def forward(self, x, labels=None):
        return {"loss": (self.linear(x) - labels).square().mean()}


class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"x": torch.randn(5, generator=generator), "labels": torch.randn(4, generator=generator)}


def after_training(folder, lam, accumulate):
    torch.manual_seed(0)
    model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["linear"]), adapter_name="old")
    torch.nn.init.normal_(model.base_model.model.linear.lora_B["old"].weight)
    model.add_adapter("new", LoraConfig(r=2, target_modules=["linear"]))
    model.set_adapter("new")
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", save_strategy="no", max_steps=4, logging_steps=2,
        learning_rate=0.01, per_device_train_batch_size=8 // accumulate, gradient_accumulation_steps=accumulate,
        remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=Rows())
    attach_to(trainer, [PSLoRA(lam), OLoRA(lam)])
    trainer.train()
    return model.base_model.model.linear.lora_A["new"].weight.detach(), trainer


def test_the_trainer_adds_it_once_a_step(tmp_path):
    whole, trainer = after_training(tmp_path, 1.0, accumulate=1)
    parts, _ = after_training(tmp_path, 1.0, accumulate=4)
    weak, _ = after_training(tmp_path, 1e-6, accumulate=1)
    assert torch.allclose(whole, parts, atol=1e-5) and not torch.allclose(whole, weak, atol=1e-3)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all({"ps_lora/same_sign", "o_lora/loss"} <= entry.keys() for entry in logs)
    assert logs[-1]["ps_lora/same_sign"] + logs[-1]["ps_lora/opposite_sign"] == pytest.approx(1.0)
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_training_that_failed_leaves_no_second_hook():
    model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["linear"]), adapter_name="old")
    model.add_adapter("new", LoraConfig(r=2, target_modules=["linear"]))
    optimizer = torch.optim.SGD(model.parameters())
    callback = MethodCallback(
        SimpleNamespace(model=model, model_wrapped=model, is_deepspeed_enabled=False), OLoRA(), {}
    )
    for _ in range(2):
        callback.on_train_begin(None, None, None, optimizer=optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    callback.on_train_end(None, None, None)
    assert not optimizer._optimizer_step_pre_hooks
