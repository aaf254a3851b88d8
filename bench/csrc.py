"""``python -m bench.csrc [--dry-run] [PART …]``: builds the CUDA extension here, proves it on this GPU and times it.

Its parts, of at most a quarter of an hour together, run one after another, whatever became of those before; exits with
1 if one failed. ``candidates`` builds what csrc/candidates holds, ``comparison`` proves and times it beside what it
would replace. ``problems`` is what compute-sanitizer runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from .gpu.__main__ import PYTEST, ROOT, SANITIZER
from .gpu.sanitize import ENVIRONMENT

TOOLS = ("memcheck", "racecheck", "synccheck")
# a command for this Python or a program, the seconds that it may take, and what its environment has beside ours
PARTS: dict[str, tuple[list[str], int, dict[str, str]]] = {
    "build": ([sys.executable, "setup.py", "build_ext", "--inplace"], 150, {"GSR_KERNELS_CUDA": "1"}),
    "tests": ([sys.executable, "-m", *PYTEST[:-1], "python_tests/gpu/test_small_svd.py"], 120, {}),
    "times": ([sys.executable, "-m", "bench", "--case", "small_svd_gpu"], 120, {}),
    **{
        tool: (
            [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.csrc", "problems"],
            60,
            ENVIRONMENT,
        )
        for tool in TOOLS
    },
    "candidates": ([sys.executable, "-m", "bench.candidates", "--sm", "HERE"], 150, {}),
    "parity": ([sys.executable, "-m", *PYTEST[:-1], "python_tests/gpu/test_candidates.py"], 60, {}),
    "comparison": ([sys.executable, "-m", "bench", "--case", "rescale_gpu", "second_product_gpu"], 120, {}),
}


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
    torch.cuda.synchronize()
    print("done")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.csrc", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
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
    return max([_run(name) for name in chosen])


def _run(name: str) -> int:
    """Runs one part; 1 if it failed."""
    command, seconds, environment = PARTS[name]
    major, minor = torch.cuda.get_device_capability()
    suffix = "a" if major == 9 else ""
    command = [f"{major}{minor}{suffix}" if word == "HERE" else word for word in command]
    here = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}{suffix}"}
    try:
        code = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **here, **environment}, timeout=seconds, check=False
        ).returncode
        outcome = f"failed with {code}" if code else "done"
    except (subprocess.TimeoutExpired, FileNotFoundError) as reason:
        outcome = f"failed: {reason}"
    print(f"{name}: {outcome}", flush=True)
    return int(outcome != "done")


if __name__ == "__main__":
    sys.exit(main())
