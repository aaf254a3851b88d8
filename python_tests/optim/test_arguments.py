"""Every argument of attach() and GSRAdamW answers what it cannot be by its name, with the optimizer as it was."""

import inspect

import pytest
import torch
from torch import nn

from gsr_kernels import GSRAdamW, attach
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


def test_what_none_means():
    # it is taken where it is the default, and nowhere else
    with pytest.raises(ValueError, match=r"targets must be .*, got None; leave it out for 'all-linear'"):
        GSRAdamW(nn.Sequential(nn.Linear(4, 4)), rho=0.5, targets=None)
