"""What is compiled ahead of a run on a GPU is what the run asks for."""

import os
import re
import subprocess
import sys

STEP = """
from types import SimpleNamespace

import torch
import triton

from bench.gpu.warm import Driver
from gsr_kernels import SpectralBasis
from gsr_kernels.backends.triton import plan
from gsr_kernels.backends.triton.forms import UPDATES


class Launching(Driver):
    launcher_cls = staticmethod(lambda source, metadata: lambda *given: None)
    utils = SimpleNamespace(load_binary=lambda *given: (0, 0, 0, 0, 1024),
                            get_device_properties=lambda device: {"max_shared_mem": 2**18})


hits = []
triton.runtime.driver.set_active(Launching(90))
triton.knobs.compilation.listener = lambda **said: hits.append(said["cache_hit"])
plan.device_properties = lambda device: (90, 132)
basis = SpectralBasis.of(torch.randn(64, 64), precision="fp16")
for updates in (None, [UPDATES[torch.float32][0]]):
    made = plan.Plan([basis], [torch.float32], 0.5, ["drop"], updates=updates)
    made._bind_around()[0](*(torch.zeros(16, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.float32)))
    made._around[1](made._coefficients, made._finite)
    # as a step binds them: all addresses aligned
    for span in made._spans:
        made._bind_measure(span, True)()
    for launch in made._bind(made._groups[0], True):
        launch()
print(f"{sum(hits)} of {len(hits)} hits")
"""


def test_a_fresh_process_finds_its_kernels_compiled(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)

    def printed(*command):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    only = r"_product fp32 x fp16( inside(, AdamW fp32 fp32)?)?$|largest fp32$|rescale_all fp16$|prepare|finish"
    assert "7 kernels for sm_90, 0 failed" in printed("-m", "bench.gpu", "warm", "--processes", "2", "--only", only)
    hits, asked = re.findall(r"(\d+) of (\d+) hits", printed("-c", STEP))[0]
    assert hits == asked and int(asked) == 7
