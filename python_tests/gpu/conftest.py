import os

import pytest
import torch

# these tests need a GPU and kernels that are not interpreted; elsewhere there is nothing to collect
if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def on_gpu():
    """Everything a test makes lies on the GPU; float32 products of the comparisons are float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.device("cuda"):
        torch.cuda.manual_seed(0)
        yield
