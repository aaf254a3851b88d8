import pytest
import torch


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    """Every test draws the same numbers; memory that nothing wrote holds NaN and cannot pass for a result."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
