import gc

import pytest


@pytest.fixture(autouse=True)
def local_and_light(monkeypatch):
    """No hub is asked; and the collections that accelerate makes at every task pass over what the session holds."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # where it was imported before, the variable is read already
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gc.freeze()
    yield
    gc.unfreeze()
