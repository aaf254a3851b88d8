"""Products against float64 however the operands lie, by each choice; the choice of a CPU, found, kept and fixed."""

import json
from pathlib import Path

import pytest
import torch

from bench.timing import peak_extra_bytes
from gsr_kernels import OSF, PSP, GSRFull, SpectralBasis, rescale_gradient
from gsr_kernels.__main__ import main
from gsr_kernels.backends.torch import products
from gsr_kernels.backends.torch.products import (
    CHOICES,
    VARIABLE,
    cpu_product,
    full_precision,
    product,
    transposed_product,
    write_product,
)
from gsr_kernels.linalg.polar import polar_factor

LINEAR = products.LINEAR


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine on which nothing was decided yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    another_process()
    yield tmp_path / "gsr_kernels" / "cpu_products.json"
    another_process()


@pytest.fixture(scope="module")
def folder_of_the_session():
    """Where decisions are kept before the fixture ``machine`` moves them."""
    return products.DECISIONS.file().parent


def test_the_users_own_cache_stays_as_it_is(folder_of_the_session):
    assert not folder_of_the_session.is_relative_to(Path.home() / ".cache")
    assert folder_of_the_session.parent.name.startswith("gsr_kernels-cache-")


def another_process():
    cpu_product.cache_clear()
    products.DECISIONS._known.clear()


@pytest.fixture(params=CHOICES)
def choice(request, monkeypatch):
    if request.param == "onednn" and LINEAR is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(70, 50, 9), (5, 64, 1), (1, 1, 1), (1, 30, 4)])
def test_it_is_the_product_however_the_operands_lie(choice, dtype, shape):
    m, n, k = shape
    A, B = torch.randn(m, n, dtype=dtype), torch.randn(n, k, dtype=dtype)
    truth = A.double() @ B.double()
    # a float32 product in bf16 or TF32 would be off by 1e-3
    bound = {torch.float32: 3e-6, torch.float64: 1e-14}[dtype] * A.norm() * B.norm()
    with full_precision(A.device):
        for left in (A, A.mT.contiguous().mT, torch.randn(m, 2 * n, dtype=dtype)[:, ::2].copy_(A)):
            for right in (B, B.mT.contiguous().mT):
                found = product(left, right)
                assert found.dtype == dtype and torch.dist(found.double(), truth) <= bound
                assert torch.equal(found, product(left, right))
                for base in (torch.randn(m, k, dtype=dtype), torch.randn(k, m, dtype=dtype).mT):
                    expected = base.double() + truth
                    write_product(left, right, base, base)
                    assert torch.dist(base.double(), expected) <= bound + 1e-6 * expected.norm()


@pytest.mark.parametrize("width", [1, 40, 200])
def test_a_sum_over_panels_of_rows_is_the_product_with_the_transposed_matrix(choice, width):
    W, Y = torch.randn(300, 70), torch.randn(300, width)
    truth = W.double().mT @ Y.double()
    for stored in (W, W.mT.contiguous().mT):
        with full_precision(W.device):
            found = transposed_product(stored, Y)
        assert torch.dist(found.double(), truth) <= 3e-7 * W.norm() * Y.norm()


def test_batches_gradients_and_what_is_empty(choice):
    A, B = torch.randn(3, 20, 10), torch.randn(3, 10, 4)
    torch.testing.assert_close(product(A, B), A @ B)
    torch.testing.assert_close(product(A, B[0]), A @ B[0])
    assert product(A[0, :, :0], B[0, :0]).eq(0).all()
    weight = torch.nn.Parameter(B[0])
    product(A[0], weight).sum().backward()
    torch.testing.assert_close(weight.grad, A[0].sum(0)[:, None].expand(10, 4))


def test_operands_with_gaps_between_rows_do_not_reach_onednn(monkeypatch):
    monkeypatch.setenv(VARIABLE, "onednn")
    asked = []
    monkeypatch.setattr(products, "LINEAR", lambda A, B, *_: asked.append((A, B)) or A @ B.mT)
    A, B = torch.randn(20, 30), torch.randn(15, 8)
    torch.testing.assert_close(product(A[:, :15], B), A[:, :15] @ B)
    torch.testing.assert_close(product(A[:, :15].contiguous(), B[:, :4]), A[:, :15] @ B[:, :4])
    assert len(asked) == 2
    assert all(left.is_contiguous() and (B.is_contiguous() or B.mT.is_contiguous()) for left, B in asked)


@pytest.mark.parametrize("shape", [(48, 48), (80, 32), (32, 80)], ids=str)
def test_every_method_is_the_same_by_each_choice(choice, shape):
    W, G = torch.randn(2, *shape)
    basis = SpectralBasis.of(W)
    # a product in 16 bits would be off by 1e-3
    halves = [SpectralBasis(basis.U.to(of), basis.S, basis.Vh.to(of)) for of in (torch.float16, torch.bfloat16)]
    for operand in (basis, SpectralBasis.of(W, 10), *halves):
        for mode in ("drop", "keep"):
            for gradient in (G, G.mT.contiguous().mT, G.bfloat16()):
                found, truth = (rescale_gradient(one, operand, 0.7, mode) for one in (gradient, gradient.double()))
                bound = 1e-5 if gradient.dtype == G.dtype else 1e-2
                assert torch.dist(found.double(), truth) <= bound * G.norm()
    wide = SpectralBasis(basis.U.double(), basis.S.double(), basis.Vh.double())
    for method in (PSP(0.4), PSP(0.4, "complement"), OSF(0.5), OSF(0.5, "complement"), GSRFull(1.0)):
        found, truth = (
            method.gradient(one, W.to(one.dtype), each, method.prepare("w", W.to(one.dtype), each))
            for one, each in ((G, basis), (G.double(), wide))
        )
        assert torch.dist(found.double(), truth) <= 1e-5 * G.norm()
    tall = W if shape[0] >= shape[1] else W.mT
    assert torch.dist(polar_factor(tall).double(), polar_factor(tall.double())) <= 1e-3


@pytest.mark.parametrize("shape", [(128, 128), (512, 64), (64, 512)], ids=str)
@pytest.mark.parametrize("mode", ["drop", "keep"])
def test_the_transform_holds_a_workspace_of_its_short_side(choice, shape, mode):
    G, basis, r = torch.randn(shape), SpectralBasis.of(torch.randn(shape)), min(shape)
    held = peak_extra_bytes(lambda: rescale_gradient(G, basis, 0.5, mode, out=G))
    # of oneDNN also a part of the product, and a transposed operand
    more = shape[0] * shape[1] * (1 + 1 / products.PART) if choice == "onednn" else 0
    assert held <= 4 * (r * r + more + 32 * r)


def timed(monkeypatch, taken):
    """Have oneDNN's product take a share of mm's time."""
    clock = iter([0, 1, 0, taken] * products.ROUNDS)
    monkeypatch.setattr(products.time, "process_time", lambda: next(clock))


@pytest.mark.parametrize(("taken", "name"), [(0.5, "onednn"), (0.9, "mm"), (1.5, "mm")])
def test_a_clearly_faster_product_is_chosen_once_a_machine(monkeypatch, machine, taken, name):
    monkeypatch.setattr(products, "LINEAR", lambda A, B, *_: A @ B.mT)
    timed(monkeypatch, taken)
    assert cpu_product()[0] == name
    ((key, kept),) = json.loads(machine.read_text()).items()
    assert kept == {"float32": name} and torch.__version__ in key and products._cpu() in key
    another_process()
    # the clock has nothing left to tell
    assert cpu_product()[0] == name


def test_a_product_that_rounds_to_bf16_is_rejected(monkeypatch):
    monkeypatch.setattr(products, "LINEAR", lambda A, B, *_: (A.bfloat16() @ B.mT.bfloat16()).float())
    timed(monkeypatch, 0.1)
    assert cpu_product()[0] == "mm"


def test_it_can_be_fixed_and_is_told(monkeypatch, choice, capsys):
    monkeypatch.setattr(products, "_probe", lambda: pytest.fail("probed"))
    assert cpu_product() == (choice, f"{VARIABLE} says so")
    assert main(["info"]) == 0 and f"float32 products on the CPU by {choice}: " in capsys.readouterr().out


def test_without_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(products, "LINEAR", None)
    assert cpu_product()[0] == "mm"
    another_process()
    monkeypatch.setenv(VARIABLE, "onednn")
    with pytest.raises(ValueError, match=f"oneDNN is not in this torch.*{VARIABLE} must be unset or one of mm, onednn"):
        cpu_product()
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match="got 'mkl'"):
        cpu_product()


def test_it_is_not_chosen_while_torch_compiles(monkeypatch):
    monkeypatch.setattr(products, "cpu_product", lambda: pytest.fail("asked"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    A = torch.randn(6, 6)
    assert torch.equal(product(A, A), A @ A)
