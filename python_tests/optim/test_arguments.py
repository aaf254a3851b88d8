"""Every argument answers what it cannot be by its name; attach() and GSRAdamW leave the optimizer as it was."""

import inspect
from collections import UserList
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gsr_kernels import (
    AdaptiveOSF,
    DataAwareGSR,
    EBLoRA,
    GSRAdamW,
    LwFOwn,
    PSLoRA,
    RiemannianAdamW,
    adaptive_shares,
    attach,
    input_scales,
    layer_importance,
    linalg,
    load_bases,
    scheduled_share,
)
from gsr_kernels.continual.baselines import Replay
from gsr_kernels.optim.handle import attached

BAD = (None, "", [], [None], b"x", object(), torch.tensor([1.0]), float("nan"), "misspelt")
ATTACH, GSR_ADAMW = (inspect.signature(each).parameters for each in (attach, GSRAdamW))
# torch's own words
CALLED = {"lr": "lr|learning rate", "eps": "eps"}
# a path of any name, and a number as a tensor
TAKEN = {"bases": ["misspelt"], "lr": [BAD[6]], "eps": [BAD[6]], "weight_decay": [BAD[6]]}


def refused(name, parameter):
    """The values that an argument cannot be: None only where it is no default."""
    taken = [id(value) for value in TAKEN.get(name, ())]
    return [value for value in BAD if not (value is parameter.default or id(value) in taken)]


@pytest.mark.parametrize("name", ATTACH)
def test_attach_names_the_argument(name):
    for value in refused(name, ATTACH[name]):
        model = nn.Sequential(nn.Linear(4, 4))
        optimizer = torch.optim.SGD(model.parameters())
        given = {"model": model, "optimizer": optimizer, **({} if name == "method" else {"rho": 0.5}), name: value}
        with pytest.raises((TypeError, ValueError), match=name):
            attach(**given)
        assert id(optimizer) not in attached and not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("name", [name for name in GSR_ADAMW if name == "rank" or name not in ATTACH])
def test_gsr_adamw_names_the_argument(name):
    for value in refused(name, GSR_ADAMW[name]):
        with pytest.raises((TypeError, ValueError), match=CALLED.get(name, name)):
            GSRAdamW(**{"params": nn.Sequential(nn.Linear(4, 4)), "rho": 0.5, name: value})


OTHERS = [
    (LwFOwn, "own_rows", (1.5, True, "2")),
    (LwFOwn, "seed", (None, -1, "misspelt")),
    (Replay, "buffer", (1.5, None)),
    (AdaptiveOSF, "layers", ("(", 7)),
    (partial(DataAwareGSR, 0.5), "input_scale", (None, [1.0], {"w": 1.0})),
    (PSLoRA, "lam", (None, "0.1")),
    (partial(PSLoRA, 0.1), "alpha", (None, [1.0])),
    (EBLoRA, "protected", ([torch.ones(2)], "misspelt")),
    (partial(RiemannianAdamW, []), "lr", (None, "1e-3")),
    (adaptive_shares, "importance", (None, [0.5])),
    (partial(scheduled_share, tasks=2), "task", (None, 0.5)),
    (partial(input_scales, nn.Linear(2, 2)), "batches", (None, 7)),
    (partial(layer_importance, batches=[]), "model", (None, "gpt2")),
    (partial(linalg.svd, torch.ones(2, 2)), "driver", ([], "misspelt")),
    (load_bases, "path", (None, "", 7)),
]


@pytest.mark.parametrize(("of", "name", "wrong"), OTHERS, ids=[name for _, name, _ in OTHERS])
def test_methods_and_functions_name_the_argument(of, name, wrong):
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match="bases must" if of is load_bases else name):
            of(**{name: value})


@pytest.mark.parametrize("betas", [[0.8, 0.9], UserList([0.8, 0.9]), np.array([0.8, 0.9]), torch.tensor([0.8, 0.9])])
def test_two_betas_of_any_sequence_and_two_alone(betas):
    optimizer = GSRAdamW(nn.Sequential(nn.Linear(4, 4)), rho=0.5, betas=betas)
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.8, 0.9))
    for wrong in (torch.tensor(0.8), (0.8,), (0.8, 0.9, 0.9), (0.8, None), (0.8, 1.0)):
        for of in (partial(GSRAdamW, nn.Linear(4, 4), rho=0.5), partial(RiemannianAdamW, [])):
            with pytest.raises(ValueError, match="betas must be two numbers"):
                of(betas=wrong)


def test_numbers_of_numpy_and_lists_of_a_file(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer, path = torch.optim.SGD(model.parameters()), tmp_path / "bases.safetensors"
    given = {"rank": {"0": np.int64(2), "1": np.float32(0.5)}, "heads": {"0": [np.int64(2), np.int64(1)]}}
    handle = attach(model, optimizer, rho=np.float32(0.5), bases=path, **given)
    assert [weight.rank for weight in handle.weights] == [2, 2]
    assert load_bases(path)["0.weight"].head_dim == 1


def test_what_none_means():
    # it is taken where it is the default, and nowhere else
    with pytest.raises(ValueError, match=r"targets must be .*, got None; leave it out for 'all-linear'"):
        GSRAdamW(nn.Sequential(nn.Linear(4, 4)), rho=0.5, targets=None)
