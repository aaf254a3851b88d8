"""Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gsr_kernels.optim import Handle, ModelHandle, attach
from gsr_kernels.optim.model_handle import model_methods


class MethodCallback(Callback):
    """Attaches any method to the module's optimizer when fitting begins, before a checkpoint is loaded, and logs.

        Trainer(callbacks=[MethodCallback(rho=0.5)])

    Give ``bases=FILE`` to resume from a checkpoint. Every ``log_every_n_steps`` the logger has ``handle.scalars()``: of
    GSR gsr/outside_span, gsr/on_diagonal, gsr/norm_ratio and gsr/skipped_nonfinite. ``handle`` is the handle while and
    after fitting.

    Args:
        method: as for ``attach``.
        settings: as for ``attach``; ``record_every`` is the Trainer's ``log_every_n_steps`` by default.

    Raises TypeError and ValueError as ``attach`` does, and ValueError for a module with several optimizers.
    """

    def __init__(self, method: Any = None, **settings: Any) -> None:
        self.method, self.settings = method, settings
        self.handle: Handle | ModelHandle | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the optimizers are there, their states are not loaded yet."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"MethodCallback supports one optimizer, configure_optimizers returned {len(trainer.optimizers)}: call "
                "gsr_kernels.attach() there on those that it is for"
            )
        if self.handle is not None:
            self.handle.remove()
        measured = {} if model_methods(self.method) else {"record_every": _interval(trainer)}
        self.handle = attach(pl_module, trainer.optimizers[0], self.method, **{**measured, **self.settings})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log."""
        if self.handle is not None and trainer.global_step % _interval(trainer) == 0:
            pl_module.log_dict(self.handle.scalars())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a model that outlives the fit back as it was."""
        if isinstance(self.handle, ModelHandle):
            self.handle.remove()


def _interval(trainer: Trainer) -> int:
    return trainer.log_every_n_steps  # type: ignore[attr-defined]
