"""The ways of tuning that the encoder study compares: a name, a method of `gsr_kernels.methods`, how it is attached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """`method` is a class of `gsr_kernels.methods` (None: plain fine-tuning) with its `arguments`.

    `attach` are further arguments of `gsr_kernels.attach`.
    """

    title: str
    method: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    attach: dict[str, Any] = field(default_factory=dict)

    def bind(self, model, optimizer):
        """Attach the method for one task, decomposing the weights as they are now; None for plain fine-tuning."""
        if self.method is None:
            return None
        import gsr_kernels
        from gsr_kernels import methods

        method = getattr(methods, self.method)(**self.arguments)
        return gsr_kernels.attach(model, optimizer, method=method, **self.attach)


MLP = r"encoder\.layer\.\d+\.(intermediate|output)\.dense"
ATTENTION = r"encoder\.layer\.\d+\.attention\..*"

CONFIGURATIONS = {
    "perft": Configuration("PerFT"),
    "seqft": Configuration("SeqFT"),
    "gsr-drop-rho0": Configuration("GSR drop, ρ 0", "GSR", {"rho": 0.0}, {"out_of_span": "drop"}),
    "gsr-drop": Configuration("GSR drop, ρ 1", "GSR", {"rho": 1.0}, {"out_of_span": "drop"}),
    "gsr-keep": Configuration("GSR keep, ρ 1", "GSR", {"rho": 1.0}, {"out_of_span": "keep"}),
    "gsr-full": Configuration("GSR-full drop, p 1", "GSRFull", {"p": 1.0}),
    "psp": Configuration("PSP minor block 0.4", "PSP", {"k": 0.4, "variant": "minor_block"}),
    "osf": Configuration("OSF, half protected", "OSF"),
    "gsr-full-p0.5": Configuration("GSR-full drop, p ½", "GSRFull", {"p": 0.5}),
    "gsr-full-p2": Configuration("GSR-full drop, p 2", "GSRFull", {"p": 2.0}),
    "gsr-full-keep": Configuration("GSR-full keep, p 1", "GSRFull", {"p": 1.0}, {"out_of_span": "keep"}),
    "gsr-full-mlp": Configuration("GSR-full drop, p 1, MLP alone", "GSRFull", {"p": 1.0}, {"targets": MLP}),
    "gsr-full-attention": Configuration(
        "GSR-full drop, p 1, attention alone", "GSRFull", {"p": 1.0}, {"targets": ATTENTION}
    ),
    "gsr-drop-mlp": Configuration("GSR drop, ρ 1, MLP alone", "GSR", {"rho": 1.0}, {"targets": MLP}),
    "gsr-keep-half": Configuration("GSR keep, ρ 1, rank ½", "GSR", {"rho": 1.0}, {"rank": 0.5}),
    "gsr-keep-quarter": Configuration("GSR keep, ρ 1, rank ¼", "GSR", {"rho": 1.0}, {"rank": 0.25}),
}
# perft tunes on each task alone
COMPARED = [name for name in CONFIGURATIONS if name != "perft"]
# the first question's methods, run by default; the others by name
FIRST = ("seqft", "gsr-drop-rho0", "gsr-drop", "gsr-keep", "gsr-full", "psp", "osf")
