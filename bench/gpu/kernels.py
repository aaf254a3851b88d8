"""The kernels that ``python -m bench.gpu aot`` compiles, in the forms, dtypes and sizes in which they are launched."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import triton.language as tl

from gsr_kernels.backends.dispatch import PAIRS
from gsr_kernels.backends.triton import (
    adamw_kernels,
    cublas_kernels,
    merge,
    product,
    rescale,
    sketch,
    stability,
    stages,
    step_kernels,
)
from gsr_kernels.backends.triton.configurations import BLOCK, configuration, options
from gsr_kernels.backends.triton.forms import UPDATES, Form, Update
from gsr_kernels.backends.triton.product import TYPES

UNALIGNED = ", unaligned"
# bases as attach() makes them, and the gradients of training
SHIPPED = "_product (bf16|fp32) x fp16"
# kinds of kernels, and which of each a sample has: every first, every second .. A kernel is of the first kind that fits
SHARES = {
    "convert|scale_factor": 3,
    "by cuBLAS": 7,
    "by TMA": 3,
    # a gradient off 16 bytes is rare
    f"first_product .*{UNALIGNED}": 7,
    f"_product .*{UNALIGNED}": 20,
    SHIPPED: 1,
    "_product .*AdamW": 10,
    "_product": 3,
    "stability bf16,": 2,
    "stability fp32, .*transposed": 2,
    f"fold bf16 .*{UNALIGNED}": 2,
}
# (transposed, stored): square and kept wide, kept tall, dropped wide, dropped tall
FORMS = {"inside": (False, False), "inside tall": (True, False), "wide": (False, True), "tall": (True, True)}
# of the kernels before g is rescaled: G V, Gᵀ U
FIRST = {False: "", True: ", transposed"}
POINTERS = {
    "table": "*i64", "tiles": "*i32", "finite": "*i1", "rho": "*fp32", "partials": "*fp32", "extremes": "*fp32",
    "delta": "*fp32", "scales": "*fp32", "g": "*fp32", "coefficients": "*fp32", "start": "i32", "count": "i32",
    "floor": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kernel to compile."""

    kernel: Any
    name: str
    architecture: int
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    product: bool = False
    aligned: bool = False


def step_cases(architecture: int) -> Iterator[Case]:
    """Yield the kernels of the fused step, in every form and pair of dtypes that Triton computes."""
    for gradient, stored_as in PAIRS:
        pair = f"{TYPES[gradient]} x {TYPES[stored_as]}"
        for shape, (transposed, stored) in FORMS.items():
            form = Form(gradient, stored_as, transposed, stored, even=True)
            for align in (8, 1):
                # whether its product is stored is no variant
                if stored:
                    yield _product("first_product", pair + FIRST[transposed], form, architecture, align)
                if stored and align > 1 and architecture == 90:
                    yield _product("tma", pair + FIRST[transposed], form, architecture, align)
                # the second product does not ask which way the first one was taken, unless it was stored
                for update in () if shape == "inside tall" else (None, *UPDATES[gradient]):
                    label = f"{pair} {shape}" + _adamw(update)
                    yield _product("second_product", label, replace(form, update=update), architecture, align)


def _product(name: str, label: str, form: Form, architecture: int, align: int) -> Case:
    cut = form.configuration(name, architecture, align > 1)
    constants = {"G_DTYPE": TYPES[form.gradient], "ALIGN": align, **cut.sizes}
    if name == "second_product":
        kernel, constants = step_kernels.second_product, {**constants, **form.constants_after, **form.written}
    else:
        kernel, constants = step_kernels.first_product, {**constants, **form.constants, "TMA": name == "tma"}
    named = "first_product by TMA" if name == "tma" else name
    return Case(
        kernel, f"{named} {label}" + ("" if align > 1 else UNALIGNED), architecture, POINTERS, constants, cut.options,
        product=True, aligned=align > 1,
    )  # fmt: skip


def _adamw(update: Update | None) -> str:
    if update is None:
        return ""
    kept = (update.weight, update.moment, *((update.copied,) if update.copied else ()))
    return ", AdamW " + " ".join(str(TYPES[dtype]) for dtype in kept)


def row_cases(architecture: int) -> Iterator[Case]:
    """Yield the other kernels of the step, and the stage operators."""
    for operand in (tl.float16, tl.bfloat16):
        constants = {"DTYPE": operand, "BLOCK": BLOCK}
        yield Case(step_kernels.rescale_all, f"rescale_all {operand}", architecture, POINTERS, constants,
                   options(num_warps=8))  # fmt: skip
        for form, (transposed, stored) in FORMS.items():
            shape = {"DTYPE": operand, "TRANSPOSED": transposed}
            for align in (8, 1) if stored else ():
                cut = configuration("first_product", architecture, "as stored")
                constants = {**shape, "ALIGN": align, "BM": cut.BM, "BN": cut.BN}
                label = f"fold {operand} {form}" + ("" if align > 1 else UNALIGNED)
                yield Case(step_kernels.fold, label, architecture, POINTERS, constants, options(num_warps=8),
                           aligned=align > 1)  # fmt: skip
    counted = POINTERS | {"settings": "*fp64", "scaling": "*fp32"}
    yield Case(adamw_kernels.prepare, "prepare", architecture, counted, {}, options(num_warps=1))
    yield Case(adamw_kernels.finish, "finish", architecture, counted, {}, options(num_warps=1))
    for gradient in TYPES.values():
        for align in (8, 1):
            constants = {"G_DTYPE": gradient, "ALIGN": align, "BLOCK": BLOCK}
            label = f"largest {gradient}" + ("" if align > 1 else UNALIGNED)
            yield Case(step_kernels.largest, label, architecture, POINTERS, constants, options(), aligned=align > 1)
    pointers = dict.fromkeys(("n", "s", "h", "k", "g", "out", "work", "p_c"), "*fp32")
    sizes = {"size": "i32", "k": "i32", "gap": "fp32", "rho": "fp32", "floor": "fp32"}
    stage = partial(Case, architecture=architecture, options=options())
    yield stage(stages.turn, "skew", signature=sizes | pointers, constants={"SIDE": stages.SIDE})
    yield stage(stages.middle, "recompose", signature=sizes | pointers, constants={"SIDE": stages.SIDE})
    yield stage(rescale.rescale_rows, "rescale", signature=pointers | sizes, constants={"BLOCK": BLOCK})
    for dtype in (tl.float16, tl.bfloat16, tl.float32):
        yield Case(product.multiply, f"project, recompose {dtype}", architecture,
                   pointers | dict.fromkeys(("p_a", "p_b"), f"*{dtype}"),
                   {"BM": 64, "BN": 64, "BK": 32}, options(num_warps=4, num_stages=2),
                   product=dtype != tl.float32)  # fmt: skip


def cublas_cases(architecture: int) -> Iterator[Case]:
    """Yield the kernels around the products of cuBLAS."""
    case = partial(_around_cublas, architecture)
    cut = configuration("second_product", architecture, "as stored")
    tile = {"BM": cut.BM, "BN": cut.BN}
    for gradient, stored_as in PAIRS:
        constants = {"G_DTYPE": TYPES[gradient], "DTYPE": TYPES[stored_as], "BLOCK": BLOCK}
        yield case("convert", f"{TYPES[gradient]} by cuBLAS, {TYPES[stored_as]}", constants)
    for stored_as in (tl.float16, tl.bfloat16):
        yield case("scale_factor", f"by cuBLAS, {stored_as}", {"DTYPE": stored_as, "BLOCK": BLOCK})
        for transposed, name in FIRST.items():
            constants = {"DTYPE": stored_as, "TRANSPOSED": transposed, **tile}
            yield case("reduce_product", f"by cuBLAS, {stored_as}{name}", constants, num_warps=8)
    for gradient, updates in UPDATES.items():
        for update in (None, *updates):
            form = Form(gradient, gradient, False, False, even=True, update=update)
            constants = {"G_DTYPE": TYPES[gradient], **form.written, **tile}
            yield case("write_result", f"{TYPES[gradient]} by cuBLAS" + _adamw(update), constants, num_warps=8)


def _around_cublas(architecture: int, name: str, label: str, constants: dict[str, Any], **compiler: int) -> Case:
    kernel, constants = getattr(cublas_kernels, name), constants | {"ALIGN": 8}
    return Case(kernel, f"{name} {label}", architecture, POINTERS, constants, options(**compiler), aligned=True)


def adapter_cases(architecture: int) -> Iterator[Case]:
    """Yield the kernels of the adapters' losses and merges."""
    compiler = options(num_warps=8, num_stages=2)
    for dtype, transposed in itertools.product((tl.float32, tl.bfloat16, tl.float16), (False, True)):
        factors = dict.fromkeys(("p_left", "p_right", "p_old_left", "p_old_right"), f"*{dtype}")
        shape = {"PRECISION": "tf32x3" if dtype == tl.float32 else "tf32", "ALIGN": 8, **stability.TILE}
        walk = shape | stability.tile(16, dtype == tl.float32)
        pointers = factors | {"p_alpha": "*fp32", "p_losses": "*fp32", "p_grad": "*fp32"}
        variants: dict[str, dict[str, Any]] = {"": {}}
        # what differs by its form does not by the kind of its 16 bits
        if dtype != tl.float16:
            variants |= {", sign": {"SIGN_ONLY": True}}
            variants |= {f", rank {rank}": {"RANK": rank, **stability.tile(rank, dtype == tl.float32)}
                         for rank in (64, 128)}  # fmt: skip
            variants |= {UNALIGNED: {"ALIGN": 1}}
            # without gradients D is walked as it is
            variants |= {} if transposed else {", loss alone": {"GRADIENT": False}}
        for variant, changed in variants.items():
            constants = walk | {"TRANSPOSED": transposed, "GRADIENT": True, "SIGN_ONLY": False, "RANK": 16} | changed
            label = f"stability {dtype}{variant}" + (", transposed" if transposed else "")
            # tiles of 32 rows, all that fits at rank 128, are too low for wgmma
            tall = constants["BM"] >= 64
            yield Case(stability.stability_rows, label, architecture, pointers, constants, compiler, product=tall)
        if not transposed:
            pointers = factors | {"p_counts": "*i32"}
            yield Case(stability.count_rows, f"sign_counts {dtype}", architecture, pointers, shape, compiler,
                       product=True)  # fmt: skip
            pointers = dict.fromkeys(("p_w", "p_left", "p_right"), f"*{dtype}") | {"share": "fp32"}
            yield Case(merge.merge_tiles, f"merge {dtype}", architecture, pointers, shape, compiler, product=True)


def sketch_cases(architecture: int) -> Iterator[Case]:
    """Yield the sketch of a randomized SVD; W comes in float32."""
    pointers = {"p_w": "*fp32", "p_y": "*fp32", "seed": "i64"}
    for kind, sparse in (("gaussian", False), ("sparse", True)):
        yield Case(sketch.sketch_kernel, f"sketch {kind}", architecture, pointers, {"SPARSE": sparse, **sketch.TILE},
                   sketch.OPTIONS, product=True)  # fmt: skip


def sample(found: list[Case]) -> Iterator[Case]:
    """Yield what sm_90 runs with bases in fp16 and gradients in bf16 or fp32; of what differs by types alone a part."""
    met: Counter[str] = Counter()
    for case in found:
        kind, every = next(((kind, every) for kind, every in SHARES.items() if re.search(kind, case.name)), ("", 1))
        if met[kind] % every == 0:
            yield case
        met[kind] += 1


def cases(everything: bool) -> Iterator[Case]:
    """Yield a sample of what sm_90 runs and a small one of sm_80 and sm_100.

    With ``everything`` every kernel of every architecture.
    """
    for architecture in (90, 80, 100):
        makers = step_cases, cublas_cases, row_cases, adapter_cases, sketch_cases
        found = [case for make in makers for case in make(architecture)]
        if everything:
            yield from found
        else:
            yield from sample(found) if architecture == 90 else found[::90]
