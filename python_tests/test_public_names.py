"""The names of the package: all there, each loaded when it is wanted."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gsr_kernels
from gsr_kernels import GSR, attach
from gsr_kernels.__main__ import main


def loaded(code):
    """Return which of the heavy packages a fresh interpreter has after running ``code``."""
    heavy = "{'torch', 'triton', 'transformers', 'peft', 'matplotlib'}"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*{heavy}.intersection(sys.modules))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(run.stdout.splitlines()[-1].split())


def test_nothing_heavy_is_loaded_before_it_is_wanted():
    assert loaded("import gsr_kernels; dir(gsr_kernels)") == set()
    assert loaded("from gsr_kernels import GSR, GSRAdamW, attach, load_bases, rescale_gradient") == {"torch"}
    for flag in ("--help", "--version"):
        assert loaded(f"from gsr_kernels.__main__ import main\ntry: main([{flag!r}])\nexcept SystemExit: pass") == set()


def test_every_name_is_there_for_people_and_for_type_checkers():
    for name in gsr_kernels.__all__:
        assert getattr(gsr_kernels, name).__name__ == name and name in dir(gsr_kernels)
    tree = ast.parse(Path(gsr_kernels.__file__).read_text())
    typed = [one for node in tree.body if isinstance(node, ast.If) for one in node.body]
    assert {alias.name for node in typed for alias in node.names} == set(gsr_kernels.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'gsr'"):
        gsr_kernels.gsr  # noqa: B018
    assert pickle.loads(pickle.dumps(GSR(0.5))) == GSR(0.5)


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"gsr-kernels {gsr_kernels.__version__}\n"


@pytest.mark.parametrize("command", ["continual", "continual methods"])
def test_without_the_packages_of_an_extra_a_command_says_how_to_get_them(command):
    hidden = "import sys; sys.modules['peft'] = None"
    code = f"{hidden}\nfrom gsr_kernels.__main__ import main\nsys.exit(main({command.split()}))"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    expected = (
        f"gsr-kernels: error: {command} needs the package peft: pip install '.[runner]' in a checkout of gsr-kernels"
    )
    assert (run.returncode, run.stderr.strip()) == (2, expected)


def test_attach_tells_the_two_kinds_of_methods_apart():
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="rank is not a setting of EWC"):
        attach(model, optimizer, gsr_kernels.EWC(1.0), rank=2)
    with pytest.raises(TypeError, match="EWC, GSR act on single weights and on whole models"):
        attach(model, optimizer, [gsr_kernels.EWC(1.0), GSR(0.5)])
    assert not optimizer._optimizer_step_pre_hooks
    handle = attach(model, optimizer, gsr_kernels.EWC(1.0))
    assert repr(handle) == "ModelHandle(EWC(lam=1))"


def test_what_methods_remember_of_tasks_goes_into_a_checkpoint():
    model = torch.nn.Linear(3, 3)
    handles = [attach(model, torch.optim.SGD(model.parameters()), gsr_kernels.EWC(1.0)) for _ in range(2)]
    handles[0].finish_task([torch.ones(2, 3)], lambda model, x: model(x).square().mean())
    saved = handles[0].state_dict()
    handles[1].load_state_dict(saved)
    again = handles[1].state_dict()
    assert saved.keys() == again.keys() and len(saved) == 4
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())
