import itertools

import pytest
import torch

from gsr_kernels import SpectralBasis
from gsr_kernels.ops import backend_for

GPU = torch.device("cuda", 0)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_every_pair_is_supported_and_16_bit_bases_by_the_kernels(monkeypatch):
    # in the interpreter the kernels take float32 as well
    monkeypatch.delenv("TRITON_INTERPRET")
    for gradient, basis in itertools.product(DTYPES, DTYPES):
        tensor_cores = gradient != torch.float64 and basis.itemsize == 2
        for op in ("step", "update"):
            assert backend_for(op, GPU, gradient, basis)[0] == ("triton" if tensor_cores else "torch")
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        backend_for("step", GPU, torch.float8_e4m3fn, torch.float16)


@pytest.mark.parametrize("precision, reason", [("bf16x2", "two bf16 planes"), ("tf32", "11 bits")])
def test_other_forms_are_refused_by_name(precision, reason):
    with pytest.raises(ValueError, match=f"precision='{precision}' is not supported: .*{reason}"):
        SpectralBasis.of(torch.randn(3, 3), precision=precision)
