"""Training goes on bitwise from a checkpoint, also from one whose writing was killed."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from gsr_kernels import attach, load_bases
from gsr_kernels.io.atomic import replacing
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, make_model, take_steps

GOLDEN = Path(__file__).parent / "golden"

# how often the writer is killed; KILLS=200 before a release
KILLS = int(os.environ.get("KILLS", "5"))


def begin(path, optimizer_name, dtype, settings):
    model = make_model(dtype)
    optimizer = OPTIMIZERS[optimizer_name](list(model.parameters()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return model, optimizer, scheduler, lambda: attach(model, optimizer, bases=path / "bases.safetensors", **settings)


SETTINGS = {"drop": {"rho": 0.7}, "keep": {"rho": 0.7, "rank": 5}, "groups": {"rho": {".*": 0.2, "3": 0.9}}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_train_10_save_train_10_is_load_train_10(tmp_path, name, dtype, settings):
    model, optimizer, scheduler, attach_here = begin(tmp_path, name, dtype, settings)
    attach_here()
    take_steps(model, optimizer, range(10), scheduler)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({key: part.state_dict() for key, part in parts.items()}, tmp_path / "checkpoint.pt")
    take_steps(model, optimizer, range(10, 20), scheduler)

    resumed, optimizer, scheduler, attach_here = begin(tmp_path, name, dtype, settings)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    attach_here()
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    take_steps(resumed, optimizer, range(10, 20), scheduler)
    assert_same_weights(resumed, model)


def save_for_ever(folder):
    """Writes the bases of step n and then a checkpoint that needs them, n = 0, 1, 2, …, until it is killed."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    handle = attach(model, optimizer, rho=0.7)
    handle.refresh_every = 1
    for step in range(10**6):
        take_steps(model, optimizer, [step])
        handle.save_bases(folder / f"bases-{step % 2}.safetensors")
        with replacing(folder / "checkpoint.pt") as partial:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
        (folder / "started").touch()


def test_a_kill_leaves_a_checkpoint_that_resumes(tmp_path):
    chance = random.Random(0)
    server = multiprocessing.get_context("forkserver")
    # imported once, for all writers
    server.set_forkserver_preload([__name__, "gsr_kernels"])
    for kill in range(KILLS):
        writer = server.Process(target=save_for_ever, args=(tmp_path,))
        (tmp_path / "started").unlink(missing_ok=True)
        writer.start()
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        resumed = make_model()
        resumed.load_state_dict(saved["model"])
        optimizer = OPTIMIZERS["adamw"](resumed.parameters())
        attach(resumed, optimizer, rho=0.7, bases=saved["optimizer"]["gsr_kernels"]["bases"])
        optimizer.load_state_dict(saved["optimizer"])
        take_steps(resumed, optimizer, [kill])


def test_files_of_version_1_load_for_ever(tmp_path):
    bases = load_bases(GOLDEN / "bases-1.safetensors")
    assert {name: basis.rank for name, basis in bases.items()} == {"1.weight": 5, "3.weight": 5, "5.weight": 5}
    saved = torch.load(GOLDEN / "checkpoint-1.pt", weights_only=True)
    model = make_model()
    model.load_state_dict(saved["model"])
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    handle = attach(model, optimizer, rho=0.7, rank=5, bases=GOLDEN / "bases-1.safetensors")
    optimizer.load_state_dict(saved["optimizer"])
    take_steps(model, optimizer, range(3, 4))
    assert handle.state_dict()["steps"] == 4
    assert (
        handle.weights[0].basis.fingerprint == saved["optimizer"]["gsr_kernels"]["weights"]["1.weight"]["fingerprint"]
    )
