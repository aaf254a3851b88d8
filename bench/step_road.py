"""``python -m bench.step_road``: the files and functions of the package that one optimizer step enters.

Two weights, after warm-up, counted by ``sys.setprofile``. Lambdas and comprehensions are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
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


def sharded(rank: int, store: str) -> Entered:
    """The first of two gloo processes, each with half the rows of both weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    gsr_kernels.attach(net, optimizer, rho=0.5)
    found = step(net, optimizer)
    dist.destroy_process_group()
    return found


ROADS: dict[str, Callable[[], Entered]] = {
    "attach": attached,
    "GSRAdamW": fused,
    "attach, GPU path": attached,
    "GSRAdamW, GPU path": fused,
}


def on_gpu_path() -> None:
    """Let the kernels take weights on a CPU, where Triton's interpreter runs them."""
    dispatch.has_kernels = lambda device: True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.step_road", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    # one road in a process of its own: Triton's interpreter is chosen when it is imported
    parser.add_argument("--road", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.road:
        name, *where = args.road
        if name.endswith("GPU path"):
            on_gpu_path()
        found = sharded(int(where[0]), where[1]) if name == "sharded" else ROADS[name]()
        if where[:1] != ["1"]:
            report(name, found, args.list)
        return
    for name in ROADS:
        interpreted = {"TRITON_INTERPRET": "1"} if name.endswith("GPU path") else {}
        start(args.list, name, **interpreted).wait()
    with tempfile.TemporaryDirectory() as folder:
        for process in [start(args.list, "sharded", rank, f"{folder}/store") for rank in "01"]:
            process.wait()


def start(names: bool, *road: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.step_road", *["--list"] * names, "--road", *road]
    return subprocess.Popen(command, env={**os.environ, **environment})


def report(name: str, found: Entered, names: bool) -> None:
    files = sorted({file for file, _ in found})
    print(f"{name}: {len(files)} files, {len(found)} functions")
    for file in files if names else []:
        print(f"  {file}: {', '.join(sorted(function for of, function in found if of == file))}")


if __name__ == "__main__":
    main()
