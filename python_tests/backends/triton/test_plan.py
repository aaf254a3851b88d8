import pytest
import torch

from gsr_kernels import SpectralBasis, ops
from gsr_kernels.backends.triton import plan, step_kernels
from gsr_kernels.backends.triton.configurations import configuration
from gsr_kernels.backends.triton.plan import Plan
from python_tests.oracle import by_triton

# unlike shapes, dtypes, ranks, heads in rows and columns, several matrices of one form
WEIGHTS = [
    ((24, 24), torch.float32, "drop", {}),
    ((24, 40), torch.float32, "drop", {}),
    ((40, 24), torch.float32, "drop", {}),
    ((17, 33), torch.float32, "drop", {}),
    ((24, 24), torch.float32, "keep", {"rank": 7}),
    ((16, 40), torch.bfloat16, "keep", {}),
    ((32, 24), torch.float16, "drop", {"heads": 2}),
    ((40, 32), torch.float16, "drop", {"heads": (2, 1)}),
    ((2, 24, 40), torch.float32, "drop", {}),
]
KERNELS = ["largest", "first_product", "rescale_all", "fold", "second_product"]


def model():
    bases = [SpectralBasis.of(torch.randn(shape), precision="fp16", **options) for shape, _, _, options in WEIGHTS]
    return bases, draw()


def draw():
    return [torch.randn(shape).to(dtype) for shape, dtype, _, _ in WEIGHTS]


def build(bases, rho=0.5, **settings):
    return Plan(bases, [dtype for _, dtype, _, _ in WEIGHTS], rho, [mode for _, _, mode, _ in WEIGHTS], **settings)


def apart(gradients, bases, rho=0.5):
    """Each weight in a launch of its own."""
    outs, gs = [torch.full_like(G, torch.nan) for G in gradients], []
    for G, basis, out, (_, _, mode, _) in zip(gradients, bases, outs, WEIGHTS):
        gs.append(by_triton(basis.split(G), basis, rho, mode, basis.split(out)))
    return gs, outs


def same(found, expected):
    return all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels in the order of their launches."""
    log = []

    class Logged:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            log.append(self.name)
            return self.kernel[grid]

    for name in KERNELS:
        monkeypatch.setattr(step_kernels, name, Logged(name, getattr(step_kernels, name)))
    return log


@pytest.mark.parametrize("workspace_mb", [256, 0.008])
def test_a_model_at_once_is_its_weights_one_by_one(workspace_mb, launches):
    bases, gradients = model()
    gs, outs = apart(gradients, bases)
    launches.clear()
    plan = build(bases, workspace_mb=workspace_mb)
    plan.run(gradients)
    assert same(gradients, outs) and same(plan.g, gs)
    assert all(flag.all() for flag in plan.finite)
    assert [flag.shape for flag in plan.finite] == [basis.S.shape[:-1] for basis in bases]

    groups = launches.count("first_product")
    assert launches.count("largest") == 3  # one a gradient dtype, for all groups
    assert len(launches) - 3 <= 4 * groups
    assert (groups == launches.count("second_product")) and (groups > 6 if workspace_mb < 1 else groups <= 8)


def test_one_call_is_one_plan(launches):
    bases, gradients = model()
    # what no plan takes, among the others
    bases[0], gradients[0] = SpectralBasis.of(torch.randn(24, 24), rank=7), torch.randn(24, 24)
    gs, outs = apart(gradients, bases)
    launches.clear()
    found = [torch.full_like(G, torch.nan) for G in gradients]
    gs_found = ops.rescale_gradients(gradients, bases, 0.5, [mode for _, _, mode, _ in WEIGHTS], found, "triton")
    assert same(found, outs) and same(gs_found, gs)
    assert launches.count("largest") == 3


def test_gradients_may_move_and_rho_may_change():
    bases, first = model()
    plan = build(bases)
    plan.run(first)
    for rho in (1.0, 0.0):
        gradients = draw()
        _, outs = apart(gradients, bases, rho)
        plan.set_rho(rho)
        plan.run(gradients)
        assert same(gradients, outs)


def test_unaligned_and_strided_gradients():
    bases, gradients = model()
    _, outs = apart(gradients, bases)
    plan = build(bases)
    plan.run([G.clone() for G in gradients])
    # all but 17 x 33
    assert plan._addresses.aligned.count(False) == 1
    unaligned = []
    for G in gradients:
        buffer = torch.empty(G.numel() + 1, dtype=G.dtype)
        unaligned.append(buffer[1:].view(G.shape).copy_(G))
    plan.run(unaligned)
    assert not any(plan._addresses.aligned)
    assert same(unaligned, outs)
    lying = [G.mT.contiguous().mT for G in gradients]
    plan.run(lying)
    assert same(lying, outs)


def test_rows_are_taken_where_they_lie():
    bases, gradients = model()
    _, outs = apart(gradients, bases)
    plan = build(bases)
    wide = [torch.full((*G.shape[:-1], G.shape[-1] + 8), torch.nan, dtype=G.dtype) for G in gradients]
    inside = [buffer[..., : G.shape[-1]].copy_(G) for buffer, G in zip(wide, gradients)]
    plan._addresses.set(inside)
    assert not plan._addresses._copies and plan._addresses.aligned.count(False) == 1
    plan.run(inside)
    assert same(inside, outs)
    assert all(buffer[..., -8:].isnan().all() for buffer in wide)


def test_a_stride_that_leads_nowhere_is_no_stride():
    basis, G = SpectralBasis.of(torch.randn(1, 24), precision="fp16"), torch.randn(1, 24)
    plan = Plan([basis], [torch.float32], 0.5, ["drop"])
    out = torch.empty(1, 24)
    plan.run([G], [out])
    odd = G.as_strided((1, 24), (1000003, 1))
    plan._addresses.set([odd])
    assert not plan._addresses._copies
    plan.run([odd])
    assert torch.equal(odd, out)


def test_wide_loads_only_where_everything_is_aligned(monkeypatch):
    hints = {}

    class Seen:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(step_kernels, name)

        def __getitem__(self, grid):
            def launch(*arguments, ALIGN, **constants):
                hints.setdefault(self.name, []).append(ALIGN)
                return self.kernel[grid](*arguments, ALIGN=ALIGN, **constants)

            return launch

    for name in ("largest", "first_product", "second_product"):
        monkeypatch.setattr(step_kernels, name, Seen(name))
    for shape, offset, expected in (((24, 40), 0, 8), ((24, 40), 1, 1), ((17, 33), 0, 1), ((24, 36), 0, 1)):
        hints.clear()
        basis = SpectralBasis.of(torch.randn(shape), precision="fp16")
        G = torch.randn(shape[0] * shape[1] + 1)[offset:][: shape[0] * shape[1]].view(shape)
        Plan([basis], [torch.float32], 0.5, ["drop"]).run([G])
        assert hints == {"largest": [expected], "first_product": [expected], "second_product": [expected]}


def test_other_bases_of_the_same_kinds():
    bases, gradients = model()
    plan = build(bases)
    plan.run([G.clone() for G in gradients])
    others, _ = model()
    _, outs = apart(gradients, others)
    with pytest.raises(ValueError, match="build a plan for these"):
        plan.run(gradients, bases=others[::-1])
    plan.run(gradients, bases=others)
    assert same(gradients, outs)


def test_one_bad_matrix_leaves_the_others_alone():
    bases, gradients = model()
    _, outs = apart(gradients, bases)
    gradients[8][1, 3, 3] = torch.inf
    before = gradients[8].clone()
    plan = build(bases)
    plan.run(gradients)
    assert torch.equal(gradients[8][0], outs[8][0]) and torch.equal(gradients[8][1], before[1])
    assert same(gradients[:8] + gradients[9:], outs[:8] + outs[9:])
    assert torch.equal(plan.finite[8], torch.tensor([True, False]))
    assert all(flag.all() for i, flag in enumerate(plan.finite) if i != 8)


def test_gradients_split_into_heads_beforehand():
    bases, gradients = model()
    _, outs = apart(gradients, bases)
    build(bases).run([basis.split(G) for G, basis in zip(gradients, bases)])
    assert same(gradients, outs)


def test_addresses_that_a_graph_holds_stay():
    bases, gradients = model()
    plan = build(bases)
    plan.run(gradients)
    plan._addresses.frozen = True
    plan.run(gradients)
    before = gradients[0].clone()
    with pytest.raises(ValueError, match="set_to_none=False"):
        plan.run([gradients[0], *draw()[1:]])
    assert torch.equal(gradients[0], before)


def test_a_captured_step_leaves_its_plan_in_place(monkeypatch):
    bases, gradients = model()
    plan = build(bases)
    plan.run(gradients)
    assert not plan.captured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(plan._addresses, "_device", Capturing())
    plan.run(gradients)
    assert plan.captured
    with pytest.raises(ValueError, match="set_to_none=False"):
        plan.run(draw())


class Capturing:
    """Equal to the CPU, and a GPU to who asks."""

    type = "cuda"
    __hash__ = None

    def __eq__(self, other):
        return other == torch.device("cpu")


def test_what_a_graph_cannot_hold_is_refused_before_capture():
    bases, gradients = model()
    plan = build(bases)
    lying = [G.mT.contiguous().mT for G in gradients]
    with pytest.raises(ValueError, match=r"a gradient \(24, 24\) with strides \(1, 24\) needs a copy"):
        plan.capture(lying)
    plan.run(gradients)
    plan._addresses.frozen = True
    with pytest.raises(ValueError, match="needs a copy"):
        plan.run(lying)


def test_the_first_step_is_not_captured(monkeypatch):
    monkeypatch.setattr(plan, "in_capture", lambda device: True)
    basis = SpectralBasis.of(torch.randn(24, 16), precision="fp16")
    with pytest.raises(RuntimeError, match="take one step before"):
        Plan([basis], [torch.float32], 0.5, ["drop"])


def test_warmup_touches_nothing():
    bases, gradients = model()
    plan = build(bases)
    before = [G.clone() for G in gradients]
    plan.run(gradients)
    after = [G.clone() for G in gradients]
    plan.warmup()
    assert same(gradients, after) and not same(before, after)


def test_bad_input_is_named():
    bases, gradients = model()
    with pytest.raises(ValueError, match="needs bases"):
        Plan([], [], 0.5, [])
    with pytest.raises(ValueError, match="rank 7"):
        Plan(bases[4:5], [torch.float32], 0.5, ["drop"])
    lying = SpectralBasis(bases[0].U.mT.contiguous().mT, bases[0].S, bases[0].Vh)
    with pytest.raises(ValueError, match="contiguous"):
        Plan([lying], [torch.float32], 0.5, ["drop"])
    with pytest.raises(TypeError, match="fp16, bf16 and fp32"):
        Plan(bases[:1], [torch.float64], 0.5, ["drop"])
    elsewhere = SpectralBasis(*(part.to("meta") for part in (bases[1].U, bases[1].S, bases[1].Vh)))
    with pytest.raises(ValueError, match="one device"):
        Plan([bases[0], elsewhere], [torch.float32] * 2, 0.5, ["drop"] * 2)
    for rho in (-0.1, 1.5, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="rho must be"):
            build(bases, rho)
    with pytest.raises(ValueError, match="out_of_span must be"):
        Plan(bases[:1], [torch.float32], 0.5, ["lose"])
    plan = build(bases)
    with pytest.raises(ValueError, match="rho must be"):
        plan.set_rho(2)
    assert plan.rho.item() == 0.5
    with pytest.raises(ValueError, match="9 weights, got 8"):
        plan.run(gradients[:-1])
    with pytest.raises(ValueError, match=r"built for G \(24, 24\)"):
        plan.run([gradients[0].double(), *gradients[1:]])


def test_an_old_gpu_is_named():
    with pytest.raises(ValueError, match=r"capability 8\.0 or newer, this one has 7\.5"):
        configuration("first_product", 75, "as stored")
    assert configuration("first_product", 89, "as stored") == configuration("first_product", 80, "as stored")
