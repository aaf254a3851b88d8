"""Bases and counters kept and found again: what the ranks do in the tests beside this file."""

import os
import signal
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import gsr_kernels
from gsr_kernels import SpectralBasis
from python_tests.distributed.training import gradients, make_model

SIDES = (6, 13, 5, 2)


def refused(call, *arguments, **settings):
    """Error of a call, in words."""
    try:
        call(*arguments, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Decomposed:
    """Counts the weights that this rank decomposes within."""

    def __enter__(self):
        self.count, self._of = 0, SpectralBasis.of

        def of(*arguments, **settings):
            self.count += 1
            return self._of(*arguments, **settings)

        SpectralBasis.of = of
        return self

    def __exit__(self, *raised):
        SpectralBasis.of = self._of


def begin(folder):
    model = make_model(SIDES, torch.float32)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    handle = gsr_kernels.attach(model, optimizer, rho=0.7, bases=Path(folder, "bases"))
    return model, optimizer, handle


def steps(model, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        gradients(model, step, dist.get_rank(), dist.get_world_size())
        optimizer.step()


def everything(model, optimizer, handle):
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "gsr": handle}


def wholes(model):
    return [parameter.full_tensor() for parameter in model.parameters()]


def leave(folder):
    """Trains 4 steps, saves, trains 4 more: how many weights each rank decomposed, and the weights of both moments."""
    with Decomposed() as decomposed:
        model, optimizer, handle = begin(folder)
    steps(model, optimizer, 0, 4)
    dcp.save(everything(model, optimizer, handle), checkpoint_id=Path(folder, "step-4"))
    before = wholes(model)
    steps(model, optimizer, 4, 8)
    return decomposed.count, before, wholes(model)


def go_on(folder):
    """Resumes and trains 4 steps: what was decomposed, the weights found and made, the counters."""
    with Decomposed() as decomposed:
        model, optimizer, handle = begin(folder)
        saved = everything(model, optimizer, handle)
        dcp.load(saved, checkpoint_id=Path(folder, "step-4"))
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        before = wholes(model)
        steps(model, optimizer, 4, 8)
    return decomposed.count, before, wholes(model), handle.state_dict()["steps"]


def from_a_file(folder):
    """Bases that one process wrote to one file: what was decomposed of 3 weights."""
    if dist.get_rank() == 0:
        whole = make_model(SIDES, torch.float32)
        optimizer = torch.optim.SGD(whole.parameters(), 0.1)
        gsr_kernels.attach(whole, optimizer, rho=0.7, bases=Path(folder, "whole.safetensors"))
    dist.barrier()
    model = make_model(SIDES, torch.float32)
    fully_shard(model)
    with Decomposed() as decomposed:
        gsr_kernels.attach(
            model, torch.optim.SGD(model.parameters(), 0.1), rho=0.7, bases=Path(folder, "whole.safetensors")
        )
    return decomposed.count


def damaged(folder):
    """Error of attach() for a directory that was not written to its end."""
    Path(folder, "half").mkdir(exist_ok=True)
    model = make_model(SIDES, torch.float32)
    fully_shard(model)
    try:
        gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.7, bases=Path(folder, "half"))
    except ValueError as error:
        return str(error)
    return ""


def lost_in_part(folder):
    """Errors of attach() where a directory lacks what one rank wrote, and of save_bases() on a full disk."""
    path, last = Path(folder, "lost"), dist.get_world_size() - 1
    model = make_model(SIDES, torch.float32)
    fully_shard(model)
    settings = model, torch.optim.SGD(model.parameters(), 0.1)
    handle = gsr_kernels.attach(*settings, rho=0.7, bases=path)
    handle.remove()
    dist.barrier()
    if dist.get_rank() == 0:
        next(path.glob(f"__{last}_*")).unlink()
    dist.barrier()
    found = [refused(gsr_kernels.attach, *settings, rho=0.7, bases=path)]

    def full(*arguments, **settings):
        raise OSError("No space left on device")

    if dist.get_rank() == last:
        with patch.object(dcp.FileSystemWriter, "write_data", full):
            return [*found, refused(handle.save_bases, path)]
    return [*found, refused(handle.save_bases, path)]


def over_a_file(folder):
    """Directories saved, twice, over a file of bases: what is there then."""
    path = Path(folder, "over", "bases")
    if dist.get_rank() == 0:
        path.parent.mkdir()
        path.write_text("of one process")
    dist.barrier()
    model = make_model(SIDES, torch.float32)
    fully_shard(model)
    handle = gsr_kernels.attach(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.7)
    for _ in range(2):
        handle.save_bases(path)
    dist.barrier()
    return [one.name for one in path.parent.iterdir()], path.is_dir()


def die_in_a_step(folder, victim):
    """One rank is killed inside the second step; the others say what they met."""
    model, optimizer, _ = begin(folder)
    steps(model, optimizer, 0, 1)
    gradients(model, 1, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == victim:
        # its part of the sum is due
        dist.all_reduce = lambda *arguments, **settings: os.kill(os.getpid(), signal.SIGKILL)
    optimizer.step()


def die_in_a_save(folder, victim):
    """One rank is killed while the bases of the next task are written over those of the last."""
    model, optimizer, handle = begin(folder)
    steps(model, optimizer, 0, 1)
    handle.refresh()
    if dist.get_rank() == victim:
        torch.distributed.checkpoint.save = lambda *arguments, **settings: os.kill(os.getpid(), signal.SIGKILL)
    handle.save_bases(Path(folder, "bases"))


def go_on_afresh(folder):
    """Count of what is decomposed by a run that begins with the bases that are there."""
    with Decomposed() as decomposed:
        model, optimizer, _ = begin(folder)
        steps(model, optimizer, 0, 1)
    return decomposed.count
