"""``python -m python_tests.optim.architectures``: writes which weights of transformers' models are taken, and why not.

The table is what test_architectures.py compares with. Read the difference before it is committed.
"""

import json
import re
import sys
from pathlib import Path

import torch
import transformers

from gsr_kernels.optim.targets import find_targets

TABLE = Path(__file__).with_name("architectures.json")
LAYERS = re.compile(r"(num_(hidden_)?|n_|encoder_|decoder_|num_encoder_|num_decoder_)layers?$|n_layer$|^depth$")


def smaller(config, depth=0):
    """The default configuration with two layers of each kind."""
    for name, value in list(vars(config).items()):
        if LAYERS.search(name) and isinstance(value, int) and value > 2:
            setattr(config, name, 2)
        elif isinstance(value, transformers.PretrainedConfig) and depth < 3:
            smaller(value, depth + 1)
    return config


def build(name):
    """A model class on the meta device."""
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        return architecture(smaller(architecture.config_class()))


def kinds(model):
    """The answer for each parameter, layers and experts of one kind together: {reason: [names]}, "taken" among them."""
    parameters = model.values() if isinstance(model, dict) else model.parameters()
    found = {}
    for target in find_targets(model, "all-linear", set(parameters)):
        reason = re.sub(r"tied to .*|\w+ is not linear|not linear, .*", "tied or not linear", target.reason or "taken")
        found.setdefault(reason, set()).add(re.sub(r"\.\d+(?=\.|$)", ".*", target.name))
    return {reason: sorted(names) for reason, names in sorted(found.items())}


def main():
    names = sys.argv[1:] or sorted(json.loads(TABLE.read_text()))
    table = {name: kinds(build(name)) for name in names}
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in table.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
