"""EBLoRA's step against its definition with an SVD, in float64; its constraints over many steps; F's growth."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from gsr_kernels import attach
from gsr_kernels.adapters import eblora
from gsr_kernels.adapters.eblora import EBLoRA, average_gradients
from gsr_kernels.adapters.factors import find_factors
from gsr_kernels.adapters.riemannian import RiemannianAdamW
from gsr_kernels.linalg import svd
from gsr_kernels.linalg.polar import retract, tangent
from python_tests.distributed.ranks import run
from python_tests.oracle import error


def make_model(dtype=torch.float64, r=2, base=None):
    base = base or nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))
    lora = LoraConfig(r=r, lora_alpha=2 * r, target_modules=[name for name, _ in base.named_modules() if name.isdigit()
                                                             and isinstance(base[int(name)], nn.Linear)])  # fmt: skip
    return get_peft_model(base.to(dtype), lora).to(dtype)


def draw(count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, 8, generator=generator, dtype=torch.float64).to(dtype)
    return list(zip(rows, torch.randn(count, 4, 5, generator=generator, dtype=torch.float64).to(dtype)))


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def begin(method, model, batches, loss, **settings):
    """The optimizer and the handle of a task that has begun."""
    optimizer = RiemannianAdamW(find_factors(model), **settings)
    handle = attach(model, optimizer, method)
    handle.start_task(batches, loss)
    return optimizer, handle


def polar(M):
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


class Literal:
    """One module's A, Q and s, stepped as the definition says, without any batching."""

    def __init__(self, one, Q, F):
        self.one, self.Q, self.F, self.size = one, Q.clone(), F, (Q * one.B.detach()).sum() / one.rank
        self.X = one.A.detach().mT.clone()
        self.state = {name: [torch.zeros(()), torch.zeros(())] for name in "XQs"}

    def adam(self, name, g, t, lr):
        m, v = self.state[name]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        self.state[name] = [m, v]
        return -lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def step(self, t, lr, decay, scale):
        free = torch.eye(len(self.X), dtype=self.X.dtype) - self.F @ self.F.mT

        def at(X, g):
            return g - X @ (X.mT @ g + g.mT @ X) / 2

        gX, gB = self.one.A.grad.mT, self.one.B.grad
        dX = at(self.X, free @ (scale * self.adam("X", at(self.X, free @ gX), t, lr)))
        dQ = at(self.Q, scale * self.adam("Q", at(self.Q, self.size * gB), t, lr))
        ds = self.adam("s", (self.Q * gB).sum(), t, lr)
        self.X, self.Q = polar(self.X + dX), polar(self.Q + dQ)
        self.size = self.size * (1 - lr * decay) + ds


@pytest.mark.parametrize("scale", [None, 3.0])
def test_steps_are_those_of_the_definition(scale):
    model = make_model()
    factors = find_factors(model, "default")
    F = {one.name: torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q for one in factors[:2]}
    optimizer, _ = begin(EBLoRA(protected=F), model, draw(3), loss, lr=3e-3, scale=scale)
    literal = [
        Literal(one, optimizer.state[one.B]["Q"], F.get(one.name, torch.zeros(8, 0, dtype=torch.float64)))
        for one in factors
    ]
    for t, batch in enumerate(draw(5, seed=1), 1):
        optimizer.zero_grad()
        loss(model, batch).backward()
        for one in literal:
            one.step(t, 3e-3, 0.1, 2048**0.5 if scale is None else scale)
        optimizer.step()
        for one, factor in zip(literal, factors):
            assert error(factor.A.detach(), one.X.mT) < 1e-10
            assert error(factor.B.detach(), one.size * one.Q) < 1e-10


def test_constraints_hold_in_float32_over_many_steps():
    model = make_model(torch.float32)
    batches = draw(4, torch.float32)
    F = {"base_model.model.0": torch.linalg.qr(torch.randn(8, 3)).Q}
    optimizer, _ = begin(EBLoRA(protected=F), model, batches, loss, lr=1e-3)
    start = sum(loss(model, batch).item() for batch in batches)
    for _ in range(40):
        for batch in batches:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    assert sum(loss(model, batch).item() for batch in batches) < start
    for one in find_factors(model, "default"):
        eye, Q = torch.eye(one.rank), optimizer.state[one.B]["Q"]
        assert (one.A @ one.A.mT - eye).abs().max() < 1e-5 and (Q.mT @ Q - eye).abs().max() < 1e-5
        sigma = torch.linalg.svdvals(one.B @ one.A)[: one.rank]
        assert sigma.max() > 0 and sigma.min() > (1 - 1e-5) * sigma.max()
    protected = find_factors(model, "default")[0].A @ F["base_model.model.0"]
    assert protected.abs().max() < 1e-6


def test_retraction_is_the_polar_factor():
    X = torch.linalg.qr(torch.randn(3, 60, 7, dtype=torch.float64)).Q
    for size in (1e-6, 1.0, 10.0):
        D = tangent(X, size * torch.randn(3, 60, 7, dtype=torch.float64) / 60**0.5)
        assert error(tangent(X, D), D) < 1e-12
        assert error(retract(X, D), polar(X + D)) < 1e-10
        narrow = retract(X.float(), D.float())
        assert (narrow.mT @ narrow - torch.eye(7)).abs().max() < 1e-5


def test_a_task_begins_where_the_gradient_points():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    batches, F = draw(3), torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64)).Q
    factors = find_factors(model, "default")
    gradients = average_gradients(model, factors, batches, loss)
    weights = [model.base_model.model[place].base_layer.weight for place in (0, 2, 4)]
    assert not any(weight.requires_grad for weight in weights)
    for weight in weights:
        weight.requires_grad_()
    truth = torch.autograd.grad(sum(loss(model, batch) for batch in batches) / 3, weights)
    for weight in weights:
        weight.requires_grad_(False)
    optimizer, _ = begin(EBLoRA(protected={factors[0].name: F}), model, batches, loss)
    for one, G in zip(factors, truth):
        assert error(gradients[one.name], G) < 1e-10
        R = G.mT - F @ F.mT @ G.mT if one is factors[0] else G.mT
        # the r directions hold what the best ones do
        best = torch.linalg.svdvals(R)[:2].square().sum()
        assert error((one.A.detach() @ R).square().sum(), best) < 1e-10
        assert error((R @ optimizer.state[one.B]["Q"]).square().sum(), best) < 1e-10
        assert not one.B.any()
    frozen = {name for name in before if "lora" not in name}
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in frozen)


def test_a_gradient_of_few_directions_is_filled_up():
    model = make_model(r=3)
    F = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64)).Q
    zero = [(x[:1] * 0, y[:1]) for x, y in draw(1)]
    for batches in ([(x[:1], y[:1]) for x, y in draw(1)], zero):
        optimizer, _ = begin(EBLoRA(protected={"base_model.model.0": F}), model, batches, loss)
        for one in find_factors(model, "default"):
            eye, Q = torch.eye(3, dtype=torch.float64), optimizer.state[one.B]["Q"]
            assert error(one.A.detach() @ one.A.detach().mT, eye) < 1e-12 and error(Q.mT @ Q, eye) < 1e-12
        assert (find_factors(model, "default")[0].A @ F).abs().max() < 1e-12


@pytest.mark.parametrize("energy", [0.5, 0.99, 1.0])
def test_the_protected_subspace_grows_to_its_share_and_no_further(energy):
    model = make_model(r=1)
    eblora = EBLoRA(energy)
    name = "base_model.model.0"
    for task in range(2):
        batches = draw(1, seed=task)
        G = average_gradients(model, find_factors(model, "default"), batches, loss)[name]
        known = eblora.protected.get(name, G.new_zeros(8, 0))
        _, handle = begin(eblora, model, batches, loss)
        assert eblora.protected.get(name, G.new_zeros(8, 0)).shape == known.shape
        handle.finish_task()
        F = eblora.protected[name]
        assert error(F.mT @ F, torch.eye(F.shape[1], dtype=F.dtype)) < 1e-10
        held = [(part.mT @ G.mT).square().sum() / G.square().sum() for part in (F, F[:, :-1])]
        if F.shape[1] < 7:
            assert held[0] >= energy - 1e-9
        assert F.shape[1] == known.shape[1] or held[1] < energy
        assert torch.equal(F[:, : known.shape[1]], known)


@pytest.mark.parametrize("energy", [0.999, 1.0])
def test_float32_keeps_the_protected_subspace_orthonormal_over_tasks_of_nearly_the_same_inputs(energy):
    eblora, shared = EBLoRA(energy), torch.randn(20, 96)
    for _ in range(5):
        model = make_model(torch.float32, r=4, base=nn.Sequential(nn.Linear(96, 40)))
        x = torch.cat([shared + 1e-5 * torch.randn(20, 96), 1e-3 * torch.randn(3, 96)])
        _, handle = begin(eblora, model, [(x, 100 * torch.randn(23, 40))], loss)
        one = find_factors(model, "default")[0]
        F = eblora.protected.get(one.name, torch.zeros(96, 0))
        assert (one.A @ F).norm() < 5e-6
        assert (one.A @ one.A.mT - torch.eye(4)).abs().max() < 1e-5
        handle.finish_task()
        F = eblora.protected[one.name]
        assert (F.mT @ F - torch.eye(F.shape[1])).abs().max() < 2e-6
    # rounding has not been protected
    assert F.shape[1] <= 20 + 5 * 3


def test_inputs_of_the_protected_subspace_are_mapped_as_before():
    model = make_model()
    F = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q
    optimizer, _ = begin(EBLoRA(protected={"base_model.model.0": F}), model, draw(3), loss)
    layer = model.base_model.model[0]
    for batch in draw(10, seed=3):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    x = torch.randn(6, 3, dtype=torch.float64) @ F.mT
    assert error(layer(x).detach(), layer.base_layer(x).detach()) < 1e-12
    assert error(layer(x + 1).detach(), layer.base_layer(x + 1).detach()) > 1e-4


def test_a_checkpoint_resumes_bitwise_and_peft_holds_all(tmp_path):
    runs = []
    for resume in (False, True):
        torch.manual_seed(1)
        model = make_model(torch.float32)
        batches = draw(6, torch.float32)
        optimizer, _ = begin(EBLoRA(), model, batches, loss, lr=1e-3)
        for step, batch in enumerate(batches):
            if resume and step == 3:
                model.save_pretrained(str(tmp_path))
                state = optimizer.state_dict()
                torch.save(state, tmp_path / "optimizer.pt")
                model = make_model(torch.float32, base=model.unload())
                model.load_adapter(str(tmp_path), "default", is_trainable=True)
                optimizer = RiemannianAdamW(find_factors(model, "default"), lr=1e-3)
                optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        runs.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs))


def test_the_state_holds_what_is_protected_and_what_will_be():
    eblora = EBLoRA(0.9)
    for _ in range(2):
        model = make_model(r=1)
        _, handle = begin(eblora, model, draw(1), loss)
        optimizer, loaded = RiemannianAdamW(find_factors(model)), EBLoRA(0.9)
        resumed = attach(model, optimizer, loaded)
        resumed.load_state_dict(handle.state_dict())
        assert loaded.protected.keys() == eblora.protected.keys()
        # the optimizer keeps away from it at once
        assert sum(F.abs().sum() for F in optimizer._protected) == sum(
            F.abs().sum() for F in handle._optimizer._protected
        )
        for each in (handle, resumed):
            each.finish_task()
    assert loaded.protected and loaded.protected.keys() == eblora.protected.keys()
    assert all(torch.equal(F, eblora.protected[name]) for name, F in loaded.protected.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_under_activation_checkpointing(reentrant):
    model, batches = make_model(), draw(2)
    factors = find_factors(model, "default")
    truth = average_gradients(model, factors, batches, loss)

    def checkpointed(model, batch):
        y = checkpoint(model, batch[0].clone().requires_grad_(), use_reentrant=reentrant)
        return (y - batch[1]).square().mean()

    if reentrant:
        with pytest.raises(ValueError, match=r"base_model.model.0 gets no gradient: .* pass use_reentrant=False"):
            average_gradients(model, factors, batches, checkpointed)
    else:
        found = average_gradients(model, factors, batches, checkpointed)
        assert all(torch.equal(found[name], G) for name, G in truth.items())
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_task_without_a_handle_is_that_of_a_handle():
    held, bare = EBLoRA(), EBLoRA()
    models, batches = (make_model(), make_model()), draw(2)
    models[1].load_state_dict(models[0].state_dict())
    optimizer, handle = begin(held, models[0], batches, loss, lr=0.01)
    optimizers = optimizer, bare.begin(models[1], batches, loss, lr=0.01)
    for model, optimizer in zip(models, optimizers):
        loss(model, batches[0]).backward()
        optimizer.step()
    handle.finish_task()
    bare.end()
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(one, other)
    assert held.protected.keys() == bare.protected.keys() and not bare.grown
    assert all(torch.equal(F, bare.protected[name]) for name, F in held.protected.items())

    def checkpointed(model, batch):
        return checkpoint(model, batch[0].clone().requires_grad_(), use_reentrant=True).square().mean()

    with pytest.raises(ValueError, match="pass use_reentrant=False"):
        bare.begin(make_model(), batches, checkpointed)
    assert not bare.grown


def test_bad_input_is_named_and_changes_nothing():
    for energy in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="energy must be"):
            EBLoRA(energy)
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    eblora = EBLoRA()
    with pytest.raises(ValueError, match="batches is empty"):
        begin(eblora, model, [], loss)
    with pytest.raises(ValueError, match=r"gradient of base_model.model.0 holds NaN"):
        begin(eblora, model, [(torch.full((4, 8), torch.nan, dtype=torch.float64), draw(1)[0][1])], loss)
    wide = {"base_model.model.2": torch.eye(8, dtype=torch.float64)[:, :7]}
    with pytest.raises(ValueError, match=r"r = 2 does not fit into .*2, 8 x 8, beside 7 protected directions"):
        begin(EBLoRA(protected=wide), model, draw(2), loss)
    with pytest.raises(TypeError, match=r"EBLoRA steps by RiemannianAdamW\(find_factors\(model\)\), got SGD"):
        attach(model, torch.optim.SGD(model.parameters()), eblora)
    with pytest.raises(ValueError, match=r"steps factors of base_model.model.0 that are not the model's"):
        attach(make_model(), RiemannianAdamW(find_factors(model)), eblora)
    with pytest.raises(ValueError, match="no LoRA adapter"):
        begin(eblora, nn.Linear(2, 2), draw(1), loss)
    with pytest.raises(ValueError, match="lr and weight_decay"):
        begin(eblora, model, draw(2), loss, lr=-1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(TypeError, match="EBLoRA wants float32"):
        begin(eblora, make_model(torch.bfloat16), draw(2, torch.bfloat16), loss)
    with torch.no_grad():
        model.base_model.model[2].lora_B["default"].weight.fill_(1)
    with pytest.raises(ValueError, match=r"has learned already at base_model.model.2"):
        begin(eblora, model, draw(2), loss)


def test_names_that_protect_nothing_are_refused():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    F = {"module.base_model.model.0": torch.eye(8, dtype=torch.float64)[:, :3]}
    with pytest.raises(ValueError, match=r"F protects inputs of module.base_model.model.0, which is no module"):
        begin(EBLoRA(protected=F), model, draw(2), loss)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_one_adapter_an_optimizer_and_a_state_that_is_missing():
    model = make_model()
    optimizer, _ = begin(EBLoRA(), model, draw(2), loss)
    with pytest.raises(ValueError, match="an optimizer of their own"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    resumed = RiemannianAdamW(find_factors(model, "default"))
    loss(model, draw(1)[0]).backward()
    with pytest.raises(ValueError, match=r"lora_B is zero at base_model.model.0 and says no Q: load"):
        resumed.step()
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step()
    assert all(one.B.any() for one in find_factors(model, "default"))


def test_gradients_of_conv1d_are_those_of_the_linear_layer():
    conv = Conv1D(8, 8)
    linear = nn.Linear(8, 8)
    linear.weight.data, linear.bias.data = conv.weight.data.mT.clone(), conv.bias.data.clone()
    found = []
    for layer in (conv, linear):
        config = LoraConfig(r=2, target_modules=["0"], fan_in_fan_out=layer is conv)
        model = get_peft_model(nn.Sequential(layer).double(), config)
        rows = [(x, x.flip(-1)) for x, _ in draw(2)]
        found.append(average_gradients(model, find_factors(model, "default"), rows, loss)["base_model.model.0"])
    assert error(*found) < 1e-12


def test_modules_without_gradients_rest_and_the_others_keep_their_own_protected_inputs():
    model = make_model()
    factors = find_factors(model, "default")
    F = {one.name: torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q for one in factors[:2]}
    optimizer, _ = begin(EBLoRA(protected=F), model, draw(3), loss, lr=1e-2)
    rested = factors[0].A.detach().clone()
    for batch in draw(3, seed=1):
        optimizer.zero_grad()
        loss(model, batch).backward()
        factors[0].A.grad = factors[0].B.grad = None
        optimizer.step()
    assert torch.equal(factors[0].A, rested)
    assert (factors[1].A @ F[factors[1].name]).abs().max() < 1e-12 and factors[1].B.any()


def test_what_rounding_lets_into_the_protected_inputs_leaves_again():
    model = make_model()
    one = find_factors(model, "default")[0]
    F = {one.name: torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q}
    optimizer, _ = begin(EBLoRA(protected=F), model, draw(3), loss, lr=1e-3)
    with torch.no_grad():
        one.A.add_(1e-6 * F[one.name].mT[:2])
    loss(model, draw(1)[0]).backward()
    optimizer.step()
    assert (one.A @ F[one.name]).abs().max() < 1e-12


def begun(shares):
    """Start a rank's adapter; the second one's singular vectors have other signs, and it protects more."""
    torch.manual_seed(0)
    model, rank = make_model(), dist.get_rank() if dist.is_initialized() else 0
    balanced = EBLoRA(0.9 + 0.05 * rank)
    if rank:
        eblora.svd = lambda W: [sign * part for sign, part in zip((-1, 1, -1), svd(W))]
    optimizer, handle = begin(balanced, model, shares[rank], loss)
    handle.finish_task()
    factors = find_factors(model, "default")
    return [(one.A.detach(), optimizer.state[one.B]["Q"], balanced.protected[one.name]) for one in factors]


@pytest.mark.parametrize("split", [2, 3])
def test_replicas_begin_alike_with_the_gradient_of_all_their_batches(split):
    batches = draw(3)
    ranks = run(2, (begun, [batches[:split], batches[split:]]))["begun"]
    for first, second, alone in zip(*ranks, begun([batches])):
        assert all(map(torch.equal, first, second))
        assert error(first[1] @ first[0], alone[1] @ alone[0]) < 1e-9
        assert error(first[2] @ first[2].mT, alone[2] @ alone[2].mT) < 1e-9
