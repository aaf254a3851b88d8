import copy
import gc
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from gsr_kernels import GSRAdamW, SpectralBasis, attach, load_bases, save_bases
from gsr_kernels.methods import OSF, SR, DataAwareGSR
from python_tests.optim.toy import OPTIMIZERS, assert_same_weights, make_model, take_steps


def begin(bases=None, model=None, optimizer="adamw", **settings):
    model = model or make_model()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    settings = settings or {"rho": 0.7}
    return model, optimizer, attach(model, optimizer, bases=bases, **settings)


@pytest.fixture
def decomposed(monkeypatch):
    """The shapes of the weights that are decomposed from here on."""
    shapes = []
    of = SpectralBasis.of

    def count(weight, *args, **settings):
        shapes.append(tuple(weight.shape))
        return of(weight, *args, **settings)

    monkeypatch.setattr(SpectralBasis, "of", count)
    return shapes


@pytest.fixture
def checkpoint(tmp_path):
    """What a run left after 4 steps: its bases file and its checkpoint; and the model after 3 steps more."""
    model, optimizer, _ = begin(tmp_path / "bases.safetensors")
    take_steps(model, optimizer, range(4))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    take_steps(model, optimizer, range(4, 7))
    return tmp_path, model


def test_bases_are_written_once_and_then_read(tmp_path, decomposed, monkeypatch):
    path = tmp_path / "bases.safetensors"
    begin(path)
    assert load_bases(path).keys() == {"1.weight", "3.weight", "5.weight"} and len(decomposed) == 3
    written = path.stat().st_mtime_ns

    def forbidden(*_, **__):
        raise AssertionError("a second start reads")

    for name in ("svd", "eigh", "qr", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    _, _, handle = begin(path)
    assert len(decomposed) == 3 and path.stat().st_mtime_ns == written
    assert torch.equal(handle.weights[0].basis.U, load_bases(path)["1.weight"].U)


def test_a_precision_is_kept_in_the_file_at_refresh_and_in_the_checkpoint(tmp_path, decomposed):
    def kept(handle):
        return {basis.precision for basis in handle.bases.values()}

    path = tmp_path / "bases.safetensors"
    first, optimizer, handle = begin(path, rho=0.7, precision="bf16")
    saved = copy.deepcopy(optimizer.state_dict())
    # nobody says it again
    model, optimizer, again = begin(path)
    assert kept(handle) == kept(again) == {"bf16"} and len(decomposed) == 3
    again.refresh()
    assert kept(again) == {"bf16"} and len(decomposed) == 6
    for each in (handle, again):
        take_steps((each is handle and first) or model, each._optimizer, range(2))
    assert_same_weights(first, model)
    # what is asked for counts more than the file, and a checkpoint more than both
    _, optimizer, other = begin(path, rho=0.7, precision="fp32")
    assert kept(other) == {"fp32"} and len(decomposed) == 9
    optimizer.load_state_dict(saved)
    other.refresh()
    assert kept(other) == {"bf16"}
    _, optimizer, other = begin()
    with pytest.raises(ValueError, match="bases: the checkpoint needs those of 3 weights"):
        optimizer.load_state_dict(saved)
    assert kept(other) == {"fp32"}


def test_a_precision_that_a_method_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"precision: OSF\(.* decomposes by itself"):
        begin(method=OSF(), precision="fp16")
    with pytest.raises(ValueError, match=r"precision='tf32' is not supported: .* take fp16"):
        begin(rho=0.7, precision="tf32")


def test_the_bases_of_another_model_are_refused_and_left(tmp_path, decomposed):
    path = tmp_path / "bases.safetensors"
    save_bases(path, {"other.weight": SpectralBasis.of(torch.randn(24, 12))})
    written = path.read_bytes()
    decomposed.clear()
    with pytest.raises(ValueError, match="holds none of the matched weights"):
        begin(path)
    assert path.read_bytes() == written and not decomposed


def test_a_checkpoint_is_small_and_holds_tensors_numbers_and_strings(checkpoint):
    path, _ = checkpoint
    saved = torch.load(path / "checkpoint.pt", weights_only=True)["optimizer"]
    mine = saved.pop("gsr_kernels")
    assert mine["steps"] == 4 and mine["weights"]["1.weight"]["fingerprint"].startswith("float32:24x12:")
    torch.save(mine, path / "mine.pt")
    assert (path / "mine.pt").stat().st_size < 5000
    # what is left is the bare optimizer's
    bare = make_model()
    optimizer = OPTIMIZERS["adamw"](bare.parameters())
    take_steps(bare, optimizer, range(1))
    reference = optimizer.state_dict()
    assert saved.keys() == reference.keys() and saved["param_groups"] == reference["param_groups"]
    assert all(saved["state"][i].keys() == reference["state"][i].keys() for i in reference["state"])
    optimizer.load_state_dict(torch.load(path / "checkpoint.pt", weights_only=True)["optimizer"])


@pytest.mark.parametrize("weights_first", [True, False])
def test_resume_in_any_order_decomposes_nothing(checkpoint, decomposed, weights_first):
    path, uninterrupted = checkpoint
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    model = make_model()
    if weights_first:
        model.load_state_dict(saved["model"])
    model, optimizer, handle = begin(path / "bases.safetensors", model)
    optimizer.load_state_dict(saved["optimizer"])
    if not weights_first:
        model.load_state_dict(saved["model"])
    take_steps(model, optimizer, range(4, 7))
    assert decomposed == [] and handle.state_dict()["steps"] == 7
    assert_same_weights(model, uninterrupted)


def test_bases_of_other_weights_are_decomposed_anew_and_said_so(checkpoint, decomposed):
    path, _ = checkpoint
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    model = make_model()
    model.load_state_dict(saved["model"])
    expected = {name: SpectralBasis.of(W) for name, W in model.named_parameters() if W.ndim == 2 and name != "0.weight"}
    decomposed.clear()
    # the checkpoint is not loaded: a round trip of the optimizer's own state, as accelerate makes it, settles nothing
    model, optimizer, handle = begin(path / "bases.safetensors", model)
    optimizer.load_state_dict(optimizer.state_dict())
    assert decomposed == []
    with pytest.warns(UserWarning, match=r"bases\.safetensors was taken from other weights.*for 3 of those.*anew"):
        take_steps(model, optimizer, range(1))
    assert len(decomposed) == 3
    assert all(torch.equal(handle.bases[name].S, basis.S) for name, basis in expected.items())


def test_what_matches_its_weight_is_loaded_and_the_rest_decomposed(tmp_path, decomposed):
    path = tmp_path / "bases.safetensors"
    begin(path)
    stored, before = load_bases(path), path.read_bytes()
    model = make_model()
    with torch.no_grad():
        model[3].weight[0, 0] += 1
    decomposed.clear()
    _, _, handle = begin(path, model)
    with pytest.warns(UserWarning, match=r"for 1 of those in attach\(\) \(3\.weight\)"):
        bases = handle.bases
    assert len(decomposed) == 1
    assert torch.equal(bases["1.weight"].U, stored["1.weight"].U)
    assert torch.equal(bases["3.weight"].S, SpectralBasis.of(model[3].weight).S)
    # the file is another task's: it stays as it was, and is not what a checkpoint of this one needs
    assert path.read_bytes() == before and handle.state_dict()["bases"] == ""


def test_a_checkpoint_without_its_bases_is_refused_naming_the_file(checkpoint):
    path, _ = checkpoint
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    model = make_model()
    model.load_state_dict(saved["model"])
    model, optimizer, handle = begin(None, model)
    before = handle.state_dict()
    with pytest.raises(ValueError, match=r"needs those of 3 weights.*were kept in .*bases\.safetensors"):
        optimizer.load_state_dict(saved["optimizer"])
    assert handle.state_dict() == before and not optimizer.state
    other = path / "other.safetensors"
    handle.save_bases(other)
    with pytest.raises(ValueError, match=r"bases\.safetensors; .*other\.safetensors holds none, or others"):
        handle.load_state_dict(saved["optimizer"]["gsr_kernels"], bases=other)
    handle.load_state_dict(saved["optimizer"]["gsr_kernels"], bases=path / "bases.safetensors")
    optimizer.load_state_dict(saved["optimizer"])


def test_bases_that_were_never_kept_are_asked_for():
    model, optimizer, _ = begin()
    take_steps(model, optimizer, range(2))
    saved = optimizer.state_dict()
    _, resumed, _ = begin(None, model)
    with pytest.raises(ValueError, match=r"in no file: call handle\.save_bases"):
        resumed.load_state_dict(saved)


@pytest.mark.parametrize(
    ("settings", "redone", "kept"),
    # a weight that the file lacks is added to it, nothing that is there is replaced
    [({"rank": 5}, 3, False), ({"heads": {"1": 2}}, 1, False), ({"targets": ["0.weight", "1.weight"]}, 1, True)],
    ids=str,
)
def test_another_rank_split_or_weight_is_another_basis(tmp_path, decomposed, settings, redone, kept):
    begin(tmp_path / "bases.safetensors")
    decomposed.clear()
    _, _, handle = begin(tmp_path / "bases.safetensors", rho=0.7, **settings)
    assert len(decomposed) == redone and bool(handle.state_dict()["bases"]) == kept


def test_bases_of_another_kind_do_not_serve(tmp_path, decomposed):
    path = tmp_path / "bases.safetensors"
    model = make_model()
    scales = {name: torch.rand(W.shape[1]) + 0.5 for name, W in model.named_parameters() if W.ndim == 2}
    attach(model, OPTIMIZERS["sgd"](model.parameters()), DataAwareGSR(0.7, scales), bases=path)
    decomposed.clear()
    handle = attach(model, OPTIMIZERS["sgd"](model.parameters()), rho=0.7, bases=path)
    with pytest.warns(UserWarning, match="decomposed anew"):
        assert handle.bases
    assert len(decomposed) == 3


def test_other_weights_other_settings_newer_formats(tmp_path):
    _, _, handle = begin()
    saved = handle.state_dict()
    _, _, fewer = begin(rho=0.7, targets=["1", "3"])
    with pytest.raises(ValueError, match=r"has 5\.weight beside them"):
        fewer.load_state_dict(saved)
    _, _, other = begin(rho=0.2)
    with pytest.warns(UserWarning, match=r"made with GSR\(rho=0\.7"):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match="newer"):
        handle.load_state_dict({**saved, "format_version": 2})


def test_an_optimizer_state_without_the_method_warns_once():
    model, optimizer, handle = begin()
    bare = OPTIMIZERS["adamw"](model.parameters()).state_dict()
    optimizer.load_state_dict(bare)
    with pytest.warns(UserWarning, match="holds nothing for the method"):
        take_steps(model, optimizer, range(1))
    optimizer.load_state_dict(bare)
    handle.load_state_dict(handle.state_dict())
    take_steps(model, optimizer, range(1))


@pytest.mark.parametrize(
    "method",
    [
        SR(1e-2),
        OSF(0.5),
        OSF(0.5, "complement"),
        [SR(1e-2), OSF(0.5)],
        DataAwareGSR(0.7, {"1.weight": torch.rand(12) + 0.5, "3.weight": torch.rand(24), "5.weight": torch.ones(12)}),
    ],
    ids=["sr", "osf", "osf-complement", "sr-osf", "data-aware"],
)
def test_methods_with_state_of_their_own_resume_bitwise(tmp_path, method):
    path = tmp_path / "bases.safetensors"
    model, optimizer, _ = begin(path, method=method)
    take_steps(model, optimizer, range(4))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    take_steps(model, optimizer, range(4, 7))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    resumed, optimizer, _ = begin(path, resumed, method=method)
    optimizer.load_state_dict(saved["optimizer"])
    take_steps(resumed, optimizer, range(4, 7))
    assert_same_weights(resumed, model)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}], ids=str)
@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_distributed_checkpoint_into_a_fresh_optimizer(tmp_path, options, optimizer_name):
    options = StateDictOptions(**options)
    bases = tmp_path / "bases.safetensors"
    model, optimizer, handle = begin(bases, optimizer=optimizer_name)
    take_steps(model, optimizer, range(4))

    def state(model, optimizer, handle):
        optim = get_optimizer_state_dict(model, optimizer, options=options)
        return {"model": model.state_dict(), "optim": optim, "gsr": handle}

    dcp.save(state(model, optimizer, handle), checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    take_steps(model, optimizer, range(4, 7))

    resumed = make_model()
    take_steps(resumed, OPTIMIZERS["sgd"](resumed.parameters()), range(1))
    resumed.zero_grad()
    resumed, optimizer, handle = begin(bases, resumed, optimizer=optimizer_name)
    saved = state(resumed, optimizer, handle)
    assert handle.state_dict()["steps"] == 0
    dcp.load(saved, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    set_optimizer_state_dict(resumed, optimizer, saved["optim"], options=options)
    assert handle.state_dict()["steps"] == 4
    take_steps(resumed, optimizer, range(4, 7))
    assert_same_weights(resumed, model)


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2)], ids=["float", "tensor"])
def test_the_rehearsal_of_distributed_checkpoint_changes_nothing(lr):
    model, optimizer, handle = begin(method=[SR(1.0), OSF(0.5)])
    optimizer.param_groups[0]["lr"] = lr
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(handle.state_dict())
    saved = get_optimizer_state_dict(model, optimizer)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(not entry["exp_avg"].any() for entry in saved["state"].values())
    for name, entry in handle.state_dict()["weights"].items():
        assert entry["steps"] == 0
        assert all(torch.equal(value, state["weights"][name]["state"][key]) for key, value in entry["state"].items())


def test_a_new_gsr_adamw_asked_for_its_state_takes_the_same_steps():
    weights = []
    for asked in (False, True):
        model = make_model()
        optimizer = GSRAdamW(model, rho=0.5, lr=1e-2)
        if asked:
            saved = get_optimizer_state_dict(model, optimizer)
            assert not any(entry["step"] for entry in saved["state"].values())
        take_steps(model, optimizer, range(3))
        weights.append(model)
    assert_same_weights(*weights)


def test_a_first_step_of_a_warm_up_counts():
    model, optimizer, handle = begin()
    optimizer.param_groups[0]["lr"] = 0.0
    take_steps(model, optimizer, range(1))
    assert handle.state_dict()["steps"] == 1 and handle.weights[0].steps == 1


def test_copies():
    model, optimizer, handle = begin()
    take_steps(model, optimizer, range(2))
    twin_model, twin = copy.deepcopy((model, handle))
    take_steps(model, optimizer, range(2, 5))
    take_steps(twin_model, twin._optimizer, range(2, 5))
    assert twin._optimizer is not optimizer and twin.state_dict() == handle.state_dict()
    assert_same_weights(twin_model, model)
    # another optimizer on the copied model would not have been moved by this one
    twin.remove()
    take_steps(twin_model, twin._optimizer, range(5, 6))
    assert handle.weights[0].steps == twin.weights[0].steps == 5


def test_a_handle_is_copied_after_its_model_or_not_at_all():
    model, optimizer, handle = begin()
    take_steps(model, optimizer, range(1))
    before = handle.state_dict()
    for given in (handle, [handle], (handle, model), (model[0], handle)):
        with pytest.raises(TypeError, match=r"copy\.deepcopy\(\(model, handle\)\), in this order.*: .*weight"):
            copy.deepcopy(given)
    # whatever else is copied beside them, and however
    for given in ([model, optimizer, handle], {"model": model, "handle": handle}, (list(model.parameters()), handle)):
        copy.deepcopy(given)
    assert handle.state_dict() == before


def test_a_handle_ends_with_its_optimizer():
    _, optimizer, handle = begin()
    gone = weakref.ref(handle), weakref.ref(optimizer)
    del handle, optimizer
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_a_model_s_state_gains_no_key():
    model = nn.Sequential(nn.Linear(4, 4))
    keys = list(model.state_dict())
    begin(None, model)
    assert list(model.state_dict()) == keys
