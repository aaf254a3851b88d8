import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from gsr_kernels import EWC, attach
from gsr_kernels.integrations.lightning import MethodCallback
from python_tests.optim.toy import assert_same_weights, loss_of, make_model, take_steps

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class Module(pl.LightningModule):
    def __init__(self, optimizers=1):
        super().__init__()
        self.model = make_model()
        self.optimizers_made = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, step):
        return loss_of(self.model, int(step))

    def configure_optimizers(self):
        return [torch.optim.AdamW(self.model.parameters(), 1e-2) for _ in range(self.optimizers_made)]


def fit(module, folder, *method, **settings):
    callback = MethodCallback(*method, **settings)
    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, callbacks=[callback], **QUIET)
    trainer.fit(module, torch.utils.data.DataLoader(range(5), batch_size=None))
    return callback.handle


def test_every_step_is_transformed_the_first_as_well(tmp_path):
    module = Module()
    handle = fit(module, tmp_path, rho=0.7)
    assert handle.state_dict()["steps"] == 5 and {weight.steps for weight in handle.weights} == {5}
    assert [weight.name for weight in handle.weights] == ["model.1.weight", "model.3.weight", "model.5.weight"]
    plain = make_model()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-2)
    attach(plain, optimizer, rho=0.7)
    take_steps(plain, optimizer, range(5))
    assert_same_weights(module.model, plain)


def test_several_optimizers_are_attached_by_hand(tmp_path):
    with pytest.raises(ValueError, match="configure_optimizers returned 2"):
        fit(Module(optimizers=2), tmp_path, rho=0.7)


def test_a_method_on_the_whole_model_is_taken_off_when_the_fit_ends(tmp_path):
    held, plain, ewc = Module(), Module(), EWC(1e9)
    handle = fit(held, tmp_path, ewc)
    fit(plain, tmp_path, EWC(0.0))
    # before the first task is finished nothing is pulled
    assert_same_weights(held.model, plain.model)
    handle.finish_task([0, 1], lambda module, step: loss_of(module.model, step))
    anchors = [parameter.detach().clone() for parameter in held.model.parameters()]
    assert not fit(held, tmp_path, ewc)._optimizer._optimizer_step_pre_hooks
    fit(plain, tmp_path, EWC(0.0))
    moved = [
        sum(torch.dist(parameter, anchor).item() for parameter, anchor in zip(module.model.parameters(), anchors))
        for module in (held, plain)
    ]
    assert moved[0] != moved[1]


class Sharded(Module):
    def configure_model(self):
        if not hasattr(self.model[1].weight, "placements"):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def test_sharded_weights_resume(tmp_path):
    """One process, whose mesh has one rank: its weights are DTensors, and the strategy drops the handle's state."""

    def begin(epochs, **arguments):
        callback = MethodCallback(rho=0.7, bases=tmp_path / "bases")
        strategy = ModelParallelStrategy(process_group_backend="gloo")
        where = {"strategy": strategy, "devices": 1, "default_root_dir": tmp_path, "use_distributed_sampler": False}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[callback], **where, **QUIET)
        module = Sharded()
        trainer.fit(module, torch.utils.data.DataLoader(range(3), batch_size=None), **arguments)
        return trainer, module.model, callback.handle

    try:
        trainer, _, handle = begin(1)
        assert handle._step.record_every == 0
        trainer.save_checkpoint(tmp_path / "checkpoint")
        _, resumed, handle = begin(2, ckpt_path=tmp_path / "checkpoint")
        assert handle.state_dict()["steps"] == 6
        assert_same_weights(resumed, begin(2)[1])
    finally:
        torch.distributed.destroy_process_group()
