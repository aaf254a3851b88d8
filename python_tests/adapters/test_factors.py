"""Which modules are computed together."""

import pytest
import torch

from gsr_kernels.adapters.factors import by_shape, find_factors, same_modules, stacked
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.adapters.terms import OLoRA
from python_tests.adapters.peft_models import with_adapters


def names(groups):
    return [[row[0].name for row in group] for group in groups]


def test_modules_of_one_shape_are_together():
    groups = by_shape(same_modules(with_adapters("first", "second"), ["second", "first"]))
    assert [[name[-1] for name in group] for group in names(groups)] == [["0", "2"], ["4"]]
    assert [row[0].shape for group in groups for row in group] == [(6, 2, 6), (6, 2, 6), (3, 2, 6)]


# the meta device stands for a second GPU: nothing can be stacked over the two
@pytest.mark.parametrize("change", [{"device": "meta"}, {"dtype": torch.float32}])
def test_modules_of_one_shape_on_two_devices_or_of_two_dtypes_are_apart(change):
    model = with_adapters("first", "second")
    model.get_submodule("base_model.model.2").to(**change)
    groups = by_shape([one] for one in find_factors(model, "second"))
    assert [[name[-1] for name in group] for group in names(groups)] == [["0"], ["2"], ["4"]]
    for group in groups:
        B, A = stacked([row[0] for row in group])
        assert (B.device, A.dtype) == (group[0][0].B.device, group[0][0].A.dtype)


def test_what_acts_on_adapters_of_two_devices_keeps_them_apart():
    model = with_adapters("first", "second")
    model.get_submodule("base_model.model.2").to("meta")
    held = [(len(new), new[0].A.device, old.device) for new, (old,) in OLoRA().bind(model).modules()]
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert held == [(1, cpu, cpu), (1, meta, meta), (1, cpu, cpu)]
    optimizer = RiemannianAdamW(find_factors(model, "second"))
    assert [protected.device for protected in optimizer._protected] == [cpu, meta, cpu]
