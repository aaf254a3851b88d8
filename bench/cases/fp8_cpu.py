"""The correction U diag(δ) Vh of the kept and square forms with operands in FP8: its error by emulation, and its cost.

Products of E4M3 operands are computed in float32 on a CPU. The kernels of the step have no such way: see
docs/performance.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from bench.models import model
from bench.run import DTYPES, RHO, Run, judged
from bench.transforms import error, orthonormal
from gsr_kernels import reference
from gsr_kernels.cli.floors import STATES, Rates, Work, adamw, transform
from gsr_kernels.reference import rescale

SHAPES = [(768, 768), (2048, 2048), (3072, 768)]
# kinds of gradients: how much of it lies along W, both of norm 1; and ρ
DRAWN = {"random, ρ = 0.01": (0.0, 0.01), "random": (0.0, RHO), **{f"W × {t}": (t, RHO) for t in (0.1, 0.3, 1.0)}}
# of the matrices of a small model after some steps, in the order of ‖δ‖ / ‖G‖
TRAINED, STEPS = {"trained, least": 0.0, "trained, median": 0.5, "trained, most": 1.0}, 40
# the end of E4M3's range; and what an error may be of that of bf16 operands
LARGEST, ALLOWED = 448.0, 2.0
# a step: out_of_span, bytes of a gradient, states, and whether AdamW stands in the epilogue
FORMS = {
    "GSRAdamW, {}, fp32 gradient and states": (4, "fp32", True),
    "GSRAdamW, {}, 16-bit gradient and states": (2, "16-bit", True),
    "attach() and AdamW, {}, 16-bit gradient and states": (2, "16-bit", False),
}


def rows(run: Run) -> Iterator[dict]:
    """Yield the cost of each step in a dry run, else the error of each way to multiply."""
    if run.dry:
        for variant, name, kernels, _ in costs():
            floor = run.rates if variant == "16-bit" else with_fp8(run.rates)
            flop, moved = sum(one.flop for one in kernels), sum(one.bytes for one in kernels)
            yield {"variant": f"{name}, {variant}", "flop": flop, "bytes": moved, "floor_ms": floor.floor(kernels)}
        return
    torch.set_num_threads(1)
    for shape in tqdm(SHAPES, "FP8", disable=None):
        U, V = (orthonormal(d, min(shape), run.device) for d in shape)
        S = torch.arange(1, min(shape) + 1) ** -0.7
        W = U * S @ V.mT
        draw = torch.randn(shape)
        for kind, (along, rho) in DRAWN.items():
            G = draw / draw.norm() + along * W / W.norm()
            yield from errors(kind, G, U, S, V.mT, rho)
    found = trained()
    for kind, quantile in TRAINED.items():
        yield from errors(kind, *found[round(quantile * (len(found) - 1))], RHO)


def correction(G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float) -> Tensor:
    """Return δ in float64."""
    g = (U.double() * (G.double() @ Vh.double().mT)).sum(0)
    return rescale(g, S.double(), rho) - g


def fp8(X: Tensor, dim: tuple[int, ...] = (0, 1)) -> Tensor:
    """Round to E4M3, under the power of two that takes the largest element along ``dim`` to the end of its range."""
    scale = torch.exp2(torch.floor(torch.log2(LARGEST / X.abs().amax(dim, keepdim=True).clamp(min=1e-30))))
    return (X * scale).to(torch.float8_e4m3fn).float() / scale


def errors(kind: str, G: Tensor, U: Tensor, S: Tensor, Vh: Tensor, rho: float) -> Iterator[dict]:
    """Yield a row for each way: the error of G' with the δ of float64, where it is float32 and where it is bf16."""
    delta = correction(G, U, S, Vh, rho)
    truth = G.double() + (U.double() * delta) @ Vh.double()
    size = delta.abs().max()
    left, right = (U * (delta / size)).float(), Vh.float()
    operands = {
        "fp16": (left.half().float(), right.half().float()),
        "bf16": (left.bfloat16().float(), right.bfloat16().float()),
        "E4M3": (fp8(left), fp8(right)),
        "E4M3, a scale a row and a column": (fp8(left, (1,)), fp8(right, (0,))),
    }
    found = {way: G + (left @ right) * size for way, (left, right) in operands.items()}
    labels = {"shape": f"{G.shape[0]}x{G.shape[1]}", "rho": rho, "out_of_span": "keep", "spectrum": kind}
    labels |= {"rank": len(S), "energy": f"{(delta.norm() / G.norm()).item():.2g}"}
    for dtype in ("fp32", "bf16"):
        wrong = {way: error(one.to(DTYPES[dtype]), truth) for way, one in found.items()}
        for way, value in wrong.items() if dtype == "fp32" else [("E4M3", wrong["E4M3"])]:
            row = {**labels, "variant": way, "dtype": dtype, "rel_error": f"{value:.1e}"}
            if way.startswith("E4M3"):
                row["verdict"] = judged(f"{value / wrong['bf16']:.1f} x bf16", value / wrong["bf16"], ALLOWED)
            yield row


def trained() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return G, U, S, Vh of the matrices of a small Llama after some steps on a text, in the order of ‖δ‖ / ‖G‖."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {**model("small", layers=2).config, "vocab_size": 256}
    net = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"}))
    optimizer, text = (
        torch.optim.AdamW(net.parameters(), 1e-3),
        torch.tensor(list(inspect.getsource(reference).encode())),
    )
    for step in range(STEPS + 1):
        batch = torch.stack([text[i : i + 128] for i in torch.randint(len(text) - 128, (16,)).tolist()])
        optimizer.zero_grad()
        net(input_ids=batch, labels=batch).loss.backward()
        if step < STEPS:
            optimizer.step()
    weights = [(W.grad, W.detach()) for name, W in net.named_parameters() if name.endswith("proj.weight")]
    bases = [(G, *torch.linalg.svd(W, full_matrices=False)) for G, W in weights]
    shares = [(correction(G, U, S, Vh, RHO).norm() / G.norm()).item() for G, U, S, Vh in bases]
    return [bases[i] for i in sorted(range(len(bases)), key=shares.__getitem__)]


def with_fp8(rates: Rates) -> Rates:
    """Return the rates of a device that multiplies twice as fast in FP8, by its datasheet."""
    return replace(rates, products={**rates.products, "fp8": 2 * rates.products["16-bit"]})


def costs() -> Iterator[tuple[str, str, list[Work], int]]:
    """Yield "16-bit" and "FP8", the step of Falcon3-1B, its kernels, and the bytes of the bases in FP8 beside it."""
    for out_of_span in ("drop", "keep"):
        for name, (gradient, states, fused) in FORMS.items():
            plain: list[Work] = []
            narrow: list[Work] = []
            beside = 0
            for d1, d2 in model("falcon3-1b").matrices:
                k, end = min(d1, d2), STATES[states] if fused else None
                *before, last = transform(d1, d2, k, out_of_span, 2, gradient, end=end)
                after = [] if fused else adamw(d1 * d2, gradient, states)
                plain += [*before, last, *after]
                if out_of_span == "keep" or d1 == d2:
                    # U diag(δ) is written in a launch of its own; a matrix instruction in FP8 wants V by columns
                    cast = Work(0, 3 * d1 * k, "fp32")
                    before, last = [*before, cast], replace(last, unit="fp8", bytes=last.bytes - k * (d1 + d2))
                    beside += k * d2
                narrow += [*before, last, *after]
            yield "16-bit", name.format(out_of_span), plain, 0
            yield "FP8", name.format(out_of_span), narrow, beside
