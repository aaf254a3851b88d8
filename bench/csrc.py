"""``python -m bench.csrc [--seconds S] [--out FOLDER] [--dry-run] [PART …]``: a session of the CUDA extension.

It is built here, proved on this GPU and timed. Parts run in the order of their importance, whatever became of those
before; what no longer fits into the seconds is left out and named. Exits with 1 if one failed or was left out.
``candidates`` builds what csrc/candidates holds, ``comparison`` proves and times it beside what it would replace.
``problems`` is what compute-sanitizer runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from . import candidates
from .gpu.__main__ import PYTEST, ROOT, SANITIZER
from .gpu.sanitize import ENVIRONMENT
from .results import RESULTS

TOOLS = ("memcheck", "racecheck", "synccheck")
# a command for this Python or a program, the seconds that it may take, and what its environment has beside ours
PARTS: dict[str, tuple[list[str], int, dict[str, str]]] = {
    "build": ([sys.executable, "setup.py", "build_ext", "--inplace"], 150, {"GSR_KERNELS_CUDA": "1"}),
    "tests": ([sys.executable, "-m", *PYTEST[:-1], "python_tests/gpu/test_small_svd.py"], 120, {}),
    "times": ([sys.executable, "-m", "bench", "--case", "small_svd_gpu"], 120, {}),
    "candidates": ([sys.executable, "-m", "bench.candidates", "--sm", "HERE"], 240, {}),
    "parity": ([sys.executable, "-m", *PYTEST[:-1], "python_tests/gpu/test_candidates.py"], 90, {}),
    "comparison": ([sys.executable, "-m", "bench", "--case", "rescale_gpu", "second_product_gpu"], 120, {}),
    **{
        tool: (
            [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.csrc", "problems"],
            60,
            ENVIRONMENT,
        )
        for tool in TOOLS
    },
}
# what judges the candidates, and must not pass without them
JUDGING = ("parity", "comparison")


def problems() -> None:
    """One block and clusters, ragged and whole, a zero matrix, NaN: one sweep or two of each, which is all there is."""
    from gsr_kernels.backends import cuda
    from gsr_kernels.backends.cuda import small_svd

    # which loads the operators
    if reason := cuda.refusal(torch.device("cuda", torch.cuda.current_device())):
        raise RuntimeError(f"{reason}: the part build comes first")
    small_svd.SWEEPS = 2
    for k in (1, 5, 33, 64, 130, 161, 256):
        A = torch.randn(4, k, k, device="cuda")
        A[1], A[2, 0, 0] = 0, torch.nan
        *_, sweeps = small_svd.small_svd(A)
        assert sweeps[2] == -1
    if not candidates.obstacle():
        candidates_problems()
    torch.cuda.synchronize()
    print("done")


def candidates_problems() -> None:
    """Every kernel of csrc/candidates; several ragged matrices, G kept and not, right operands of either layout."""
    from .cases.rescale_gpu import Drawn, by_candidate

    for k in (1, 33, 2049, 4097, 16384):
        by_candidate(Drawn([(k, 3), (5, 1)], torch.device("cuda")))()
    if not candidates.has("first_product"):
        return
    rows, columns, depth = 130, 264, 72
    left, lying = (torch.randn(3, side, depth, device="cuda").bfloat16() for side in (rows, columns))
    torch.ops.gsr_candidates.first_product(left, lying, left.new_empty(3, rows, columns))
    G, W, m, v = torch.rand(4, 3, rows, columns, device="cuda")
    given = torch.ones(3, 9, device="cuda"), torch.tensor([True, False, True], device="cuda"), W, m, v
    for lies, kept in ((False, False), (True, True)):
        right = lying if lies else lying.mT.contiguous()
        torch.ops.gsr_candidates.second_product_adamw(left, right, lies, G, kept, *given)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.csrc", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=570, help="for all of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where bench/results/*.csv go after each part")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    arguments = parser.parse_args(argv)
    if arguments.parts == ["problems"]:
        problems()
        return 0
    chosen = arguments.parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    if arguments.dry_run:
        for name in chosen:
            command, seconds, _ = PARTS[name]
            print(f"{name}, at most {seconds} s: {' '.join(command)}")
        return 0
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA GPU; --dry-run says what would be run")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.perf_counter() + arguments.seconds, {}
    for name in chosen:
        left = end - time.perf_counter()
        outcomes[name] = _run(name, left) if left > 1 else "left out: no time was left"
        print(f"{name}: {outcomes[name]}", flush=True)
        for file in RESULTS.glob("*.csv") if arguments.out else ():
            shutil.copy(file, arguments.out)
    return int(set(outcomes.values()) != {"done"})


def _run(name: str, left: float) -> str:
    """How one part ended, within the seconds that are left."""
    command, seconds, environment = PARTS[name]
    architecture = candidates.here()
    if name in JUDGING and (reason := candidates.lacking(architecture)):
        return f"failed: {reason}"
    command = [architecture if word == "HERE" else word for word in command]
    here = {"TORCH_CUDA_ARCH_LIST": re.sub(r"(\d\D?)$", r".\1", architecture)}
    try:
        code = ended(command, {**os.environ, **here, **environment}, min(seconds, left))
    except (subprocess.TimeoutExpired, FileNotFoundError) as reason:
        return f"failed: {reason}"
    return f"failed with {code}" if code else "done"


def ended(command: list[str], environment: dict[str, str], seconds: float) -> int:
    """What a command ends with; after its time it is killed with all that it started, which would slow what follows."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


if __name__ == "__main__":
    sys.exit(main())
