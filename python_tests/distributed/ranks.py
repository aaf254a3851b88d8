"""Checks inside the processes of one gloo group on this machine, in bounded time."""

import contextlib
import faulthandler
import io
import multiprocessing
import runpy
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

# seconds: until a collective gives up a rank that is gone, until a group is ended, and what others get after a failure
COLLECTIVE, GROUP, GRACE = 60, 150, 10

# one process imports torch; those of every group are forked from it
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "torch.distributed.fsdp",
        "torch.distributed.tensor.parallel",
        "torch.distributed.checkpoint.state_dict",
        "transformers.models.llama.modeling_llama",
        "transformers.trainer",
        "peft",
        # all of it: its top level loads names when they are asked for
        "gsr_kernels.optim.attach",
        "gsr_kernels.distributed.decompose",
        "gsr_kernels.distributed.store",
    ]
)


def run(world, *checks):
    """Results of each of ``(check, arguments..)`` as ``check(*arguments)``, by its name, a list of the ranks'.

    AssertionError with all that they raised.
    """
    ranks, failures, codes = start(world, *checks)
    assert not failures and not any(codes), f"exit codes {codes}\n" + "\n".join(failures)
    return {check.__name__: [results[check.__name__] for results in ranks] for check, *_ in checks}


def start(world, *checks):
    """The results of each rank, what ranks raised, and their exit codes; those still at work are killed at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_rank, args=(rank, world, name, checks), daemon=True) for rank in range(world)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + GROUP
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            time.sleep(0.02)
            if any(process.exitcode for process in processes) or any(folder.glob("failure.*")):
                end = min(end, time.monotonic() + GRACE)
        for process in processes:
            process.kill()
            process.join()
        import torch

        failures = [path.read_text() for path in sorted(folder.glob("failure.*"))]
        results = [torch.load(path, weights_only=False) for path in sorted(folder.glob("result.*"))]
        return results, failures, [process.exitcode for process in processes]


def _rank(rank, world, folder, checks):
    faulthandler.dump_traceback_later(GROUP - 10, exit=True)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=COLLECTIVE))
        torch.save({check.__name__: check(*arguments) for check, *arguments in checks}, f"{folder}/result.{rank}")
        _leave()
    except BaseException:
        Path(folder, f"failure.{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")


def _leave():
    import torch.distributed as dist

    if dist.is_initialized():
        # a rank that leaves while others still connect takes the connection from them
        dist.barrier()
        dist.destroy_process_group()


def launch(world, script, *arguments, before=()):
    """Runs a script as torchrun would on ``world`` ranks of this machine, after other checks; what each printed."""
    with tempfile.TemporaryDirectory() as folder:
        return run(world, *before, (_script, folder, str(script), list(map(str, arguments))))["_script"]


def _script(folder, script, arguments):
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    _leave()
    # in place of torchrun's store on a port, which others may take
    group = {"store": dist.FileStore(f"{folder}/script", world), "rank": rank, "world_size": world}
    dist.init_process_group = partial(dist.init_process_group, **group)
    sys.argv, sys.path = [script, *arguments], [str(Path(script).parent), *sys.path]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(script, run_name="__main__")
    return printed.getvalue()
