"""LwF on text of the model's own: what a model that writes said before a task is learned beside the task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gsr_kernels.checks import check_count, check_number
from gsr_kernels.distributed.flat import is_fsdp1
from gsr_kernels.methods.base import part, wide
from gsr_kernels.methods.on_model import BoundMethod, Loss, ModelMethod

# steps for which text of the model's own is written
OWN_STEPS = 8


class LwFOwn(ModelMethod):
    """Learning without forgetting on text that the model wrote itself before the task; for transformers' decoders.

    The loss gains ``lam T² KL(p_before ‖ p)``, of softmaxes at temperature T, a mean over the tokens of a few of these
    rows. ``p_before`` is what a copy of the model from before the task says. Nothing of earlier tasks is kept. It is
    pseudorehearsal (Robins 1995) with the loss of LwF (Li and Hoiem 2016); see also arXiv 2403.01244.

        handle = attach(model, optimizer, LwFOwn())
        for task in tasks:
            train(model, optimizer, task)
            handle.finish_task()

    ``attach`` copies the model and has the copy write, and so does ``finish_task`` for the next task. The term's
    gradient is added once a step, after clipping. Processes of a default group each draw rows, and share the mean.

    Args:
        lam: how firmly the text is held, at least 0.
        temperature: T, above 0.
        own_rows: rows in each step, of those that were written for 8 steps.
        own_tokens: of such a row, at least 2.
        seed: of what is written.

    Raises ValueError where one is out of range; in ``attach`` TypeError for a model that is no decoder, or sharded.
    """

    def __init__(
        self, lam: float = 3.0, temperature: float = 2.0, own_rows: int = 4, own_tokens: int = 64, seed: int = 0
    ) -> None:
        check_number("lam", lam, 0)
        check_number("temperature", temperature, 0, above=True)
        check_count("own_rows", own_rows)
        check_count("own_tokens", own_tokens, 2)
        check_count("seed", seed, 0)
        self.lam, self.temperature, self.seed = lam, temperature, seed
        self.own_rows, self.own_tokens = own_rows, own_tokens
        self._before: Any = None
        self._written = torch.empty(0)

    def start(self, model: nn.Module) -> None:
        """Copy a model as it is and have the copy write: ``bind`` does it where nobody has."""
        self._check(model)
        self._before = copy.deepcopy(model).eval().requires_grad_(False)
        self._before.zero_grad()
        self._written = own_text(self._before, self.own_rows * OWN_STEPS, self.own_tokens, self.seed)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self._written, 0)

    def bind(self, model: nn.Module) -> BoundMethod:
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._check(model)
        if self._before is None:
            self.start(model)
        return _BoundLwFOwn(self, model)

    def loss(self, model: Any, generator: torch.Generator | None = None) -> Tensor:
        """Return the term of the model on rows that are drawn, by default by torch's own generator."""
        drawn = torch.randperm(len(self._written), generator=generator)[: self.own_rows]
        rows = self._written[drawn.to(self._written.device)].to(model.device)
        with torch.no_grad():
            before = self._before.to(model.device)(rows).logits
        # logits are of the next token
        ours, theirs = (one[:, :-1].flatten(0, 1) for one in (model(rows).logits, before))
        return self.lam * divergence(ours, theirs, self.temperature) / len(ours)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model before the task, and what it wrote."""
        if self._before is None:
            return {}
        kept = {f"before.{name}": tensor.contiguous() for name, tensor in _tensors(self._before).items()}
        return {**kept, "written": self._written}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned; ValueError for that of another model, or where there is none yet."""
        if self._before is None:
            raise ValueError("LwFOwn: load_state_dict() needs the model: attach() first, then handle.load_state_dict()")
        own, found = _tensors(self._before), part(saved, "before")
        wrong = [name for name in own | found if name not in own or name not in found]
        wrong = wrong or [name for name, tensor in own.items() if tensor.shape != found[name].shape]
        if wrong or "written" not in saved:
            raise ValueError(f"LwFOwn: the state is of another model, which differs in {(wrong or ['written'])[0]}")
        self._before.load_state_dict(found, strict=False)
        self._written = saved["written"].to(self._written.device, copy=True)

    def check_length(self, positions: int | None) -> None:
        """Raise ValueError where the rows are longer than a model has positions; None: as many as one likes."""
        if positions is not None and self.own_tokens > positions:
            raise ValueError(f"own_tokens must be at most {positions}, the model's positions, got {self.own_tokens}")

    def _check(self, model: Any) -> None:
        config = getattr(model, "config", None)
        if not callable(getattr(model, "generate", None)) or getattr(config, "is_encoder_decoder", True):
            raise TypeError(
                f"model: LwFOwn has the model go on with a text, for transformers' decoders, not for "
                f"{type(model).__name__}; give attach() the decoder itself where it is inside"
            )
        # ZeRO 3 gives its parameters an id
        sharded = any(hasattr(one, "placements") or hasattr(one, "ds_id") for one in model.parameters())
        if sharded or any(map(is_fsdp1, model.modules())):
            raise TypeError("model is sharded, and LwFOwn needs it whole on every rank: use DistributedDataParallel")
        self.check_length(getattr(model.config.get_text_config(), "max_position_embeddings", None))

    def __repr__(self) -> str:
        told = ("lam", "temperature", "own_rows", "own_tokens", "seed")
        return f"LwFOwn({', '.join(f'{name}={getattr(self, name):g}' for name in told)})"


class _BoundLwFOwn(BoundMethod):
    name = "LwFOwn"
    partly = True

    def __init__(self, method: LwFOwn, model: nn.Module) -> None:
        self._method, self._model = method, model
        self.parameters = list(model.parameters())
        self._last: Tensor | None = None

    def act(self, optimizer: Optimizer) -> None:
        present = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        with torch.enable_grad():
            loss = self._method.loss(self._model)
            moved = [parameter for parameter, _ in present]
            terms = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
        self._last, scale = loss.detach(), getattr(optimizer, "grad_scale", None)
        for (_, gradient), term in zip(present, terms):
            if dist.is_available() and dist.is_initialized():
                term = term.contiguous()
                dist.all_reduce(term)
                term /= dist.get_world_size()
            gradient.add_(term if scale is None else term * scale)

    def finish_task(self, batches: Iterable[Any] | None, loss: Loss | None) -> None:
        self._method.start(self._model)

    def scalars(self) -> dict[str, float]:
        return {} if self._last is None else {"lwf_own/loss": self._last.item()}


def divergence(logits: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Return ``T² Σ KL(p_before ‖ p)`` over rows of logits, of softmaxes at temperature T."""
    ours, theirs = (torch.log_softmax(wide(one) / temperature, -1) for one in (logits, before))
    return temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)


@torch.no_grad()
def own_text(model: Any, rows: int, tokens: int, seed: int) -> Tensor:
    """Return text of a copy of a decoder, ``[rows, tokens]``: each row begins with a token drawn by chance."""
    own = model.generation_config
    # in place of the model's own habits (a penalty for repetition, say), which are not what it learned; a copy's alone
    model.generation_config = type(own)(
        do_sample=True, top_k=0, max_new_tokens=tokens - 1, min_new_tokens=tokens - 1,
        pad_token_id=own.pad_token_id, eos_token_id=own.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = torch.randint(model.config.get_text_config().vocab_size, (rows, 1)).to(model.device)
        return model.generate(first, attention_mask=torch.ones_like(first))


def _tensors(model: Any) -> dict[str, Tensor]:
    """Return what a model's checkpoint holds, tied weights once."""
    saved = model.state_dict()
    return {name: saved[name] for name, _ in chain(model.named_parameters(), model.named_buffers()) if name in saved}
