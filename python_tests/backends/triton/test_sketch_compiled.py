"""The sketch compiled ahead of time for GPUs that are not there: within their registers and shared memory."""

import json
import os
import subprocess
import sys

# in a process of its own, where kernels are not interpreted
COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gsr_kernels.backends.triton.sketch import OPTIONS, TILE, sketch_kernel

arguments = {"p_w": "*fp32", "p_y": "*fp32", "rows": "i32", "n": "i32", "width": "i32", "seed": "i64"}
constants = {"SPARSE": False, **TILE}
signature = {**arguments, **dict.fromkeys(constants, "constexpr")}
places = {name: (place,) for place, name in enumerate(signature)}
source = ASTSource(
    sketch_kernel, signature,
    constexprs={places[name]: value for name, value in constants.items()},
    attrs={places[name]: [["tt.divisibility", 16]] for name in ("p_w", "p_y", "n", "width")},
)
dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
found = {}
for arch in map(int, sys.argv[1:]):
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    wgmma = "wgmma" in compiled.asm["ptx"]
    found[arch] = {"usage": usage.stdout, "shared": compiled.metadata.shared, "wgmma": wgmma}
print(json.dumps(found))
"""

# bytes of shared memory that a block may have
SHARED = {80: 166912, 90: 232448, 100: 232448}


def test_it_fits():
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "0"}
    environment.pop("TRITON_INTERPRET")
    command = [sys.executable, "-c", COMPILE, *map(str, SHARED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for arch, found in json.loads(done.stdout).items():
        assert "STACK:0 " in found["usage"], "spills"
        assert found["shared"] <= SHARED[int(arch)]
        assert found["wgmma"] == (arch == "90")
