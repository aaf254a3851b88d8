"""``python -m bench.step_road``: the files and functions of the package that one optimizer step enters.

Two weights, after warm-up, counted by ``sys.setprofile``. Lambdas and comprehensions are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import gsr_kernels
from gsr_kernels.backends import dispatch

PACKAGE = str(Path(gsr_kernels.__file__).parent)
Entered = set[tuple[str, str]]


def entered(act: Callable[[], Any]) -> Entered:
    """Return (file, function) for every function of the package that ``act`` enters."""
    found: Entered = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            found.add((code.co_filename[len(PACKAGE) + 1 :], code.co_qualname))

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def model() -> nn.Module:
    """Two weights, square and wide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 8, bias=False))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> Entered:
    """One step after two of warm-up."""

    def give() -> None:
        optimizer.zero_grad()
        net(torch.ones(4, 16)).sum().backward()

    for _ in range(2):
        give()
        optimizer.step()
    give()
    return entered(optimizer.step)


def attached() -> Entered:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    gsr_kernels.attach(net, optimizer, rho=0.5)
    return step(net, optimizer)


def fused() -> Entered:
    net = model()
    return step(net, gsr_kernels.GSRAdamW(net, lr=1e-3, method=gsr_kernels.GSR(rho=0.5)))


def sharded() -> Entered:
    """Half the rows of both weights, on each of two gloo processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    gsr_kernels.attach(net, optimizer, rho=0.5)
    return step(net, optimizer)


ROADS: dict[str, Callable[[], Entered]] = {
    "attach": attached,
    "GSRAdamW": fused,
    "attach, GPU path": attached,
    "GSRAdamW, GPU path": fused,
    "sharded": sharded,
}


def travel(rank: int, name: str, store: str, names: bool) -> None:
    """Take one road in a process of its own: Triton's interpreter is chosen when it is imported."""
    if name.endswith("GPU path"):
        # the kernels take weights on a CPU, where the interpreter runs them
        dispatch.has_kernels = lambda device: True
    if name == "sharded":
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = ROADS[name]()
    if name == "sharded":
        dist.destroy_process_group()
    if rank == 0:
        report(name, found, names)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step_road", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ROADS:
            os.environ["TRITON_INTERPRET"] = str(int(name.endswith("GPU path")))
            processes = 2 if name == "sharded" else 1
            torch.multiprocessing.spawn(travel, (name, f"{folder}/store", args.list), processes)


def report(name: str, found: Entered, names: bool) -> None:
    files = sorted({file for file, _ in found})
    print(f"{name}: {len(files)} files, {len(found)} functions")
    for file in files if names else []:
        print(f"  {file}: {', '.join(sorted(function for of, function in found if of == file))}")


if __name__ == "__main__":
    main()
