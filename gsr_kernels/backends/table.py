"""Register the functions of every backend. Triton and the extension are imported when one of theirs is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, update_wrapper
from typing import Any

Function = Callable[..., Any]


def function(op: str, backend: str) -> Function:
    """Return the function ``op`` of a backend, or raise ValueError where it has none."""
    found = _functions(backend).get(op)
    if found is None:
        raise ValueError(f"backend={backend!r} has no {op}: backend='auto' takes one that has")
    return found


@cache
def _functions(backend: str) -> dict[str, Function]:
    registered = {"torch": _torch, "triton": _triton, "cuda": _cuda}
    registered |= {backend: partial(_by_plan, backend) for backend in ("cublas", "tma", "cutlass")}
    return {one.__name__: one for one in registered[backend]()}


def _torch() -> tuple[Function, ...]:
    from gsr_kernels.backends.torch.merge import merge
    from gsr_kernels.backends.torch.rescale_gradient import rescale_gradients
    from gsr_kernels.backends.torch.sketch import sketch
    from gsr_kernels.backends.torch.stability import sign_counts, stability
    from gsr_kernels.backends.torch.stages import project, recompose, rescale, skew, small_svd

    stages = project, skew, rescale, recompose
    return rescale_gradients, *stages, sketch, small_svd, stability, sign_counts, merge


def _triton() -> tuple[Function, ...]:
    from gsr_kernels.backends.triton.merge import merge
    from gsr_kernels.backends.triton.rescale import rescale
    from gsr_kernels.backends.triton.rescale_gradient import rescale_gradients
    from gsr_kernels.backends.triton.sketch import sketch
    from gsr_kernels.backends.triton.stability import sign_counts, stability
    from gsr_kernels.backends.triton.stages import project, recompose, skew

    stages = project, skew, rescale, recompose
    return rescale_gradients, *stages, sketch, stability, sign_counts, merge


def _by_plan(backend: str) -> tuple[Function, ...]:
    from gsr_kernels.backends.triton.plan_cache import plan_class
    from gsr_kernels.backends.triton.rescale_gradient import rescale_gradients

    # under the name by which it is found
    return (update_wrapper(partial(rescale_gradients, kind=plan_class(backend)), rescale_gradients),)


def _cuda() -> tuple[Function, ...]:
    from gsr_kernels.backends.cuda import small_svd

    return (small_svd,)
