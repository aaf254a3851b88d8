"""Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from gsr_kernels.optim import Handle, ModelHandle, attach
from gsr_kernels.optim.model_handle import model_methods
from gsr_kernels.optim.state import KEY


class MethodCallback(Callback):
    """Attaches any method to the module's optimizer when fitting begins, before a checkpoint is loaded, and logs.

        Trainer(callbacks=[MethodCallback(rho=0.5)])

    Give ``bases=PATH`` to resume from a checkpoint. Every ``log_every_n_steps`` the logger has ``handle.scalars()``.
    ``handle`` is the handle while and after fitting.

    Args:
        method: as for ``attach``.
        settings: as for ``attach``; ``record_every`` is the Trainer's ``log_every_n_steps`` by default, 0 where weights
            are sharded (ModelParallelStrategy).

    Raises TypeError and ValueError as ``attach`` does, and ValueError for a module with several optimizers.
    """

    def __init__(self, method: Any = None, **settings: Any) -> None:
        self.method, self.settings = method, settings
        self.handle: Handle | ModelHandle | None = None
        self._sharded = False
        self._loaded: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the optimizers are there, their states are not loaded yet."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"MethodCallback supports one optimizer, configure_optimizers returned {len(trainer.optimizers)}: call "
                "gsr_kernels.attach() there on those that it is for"
            )
        if self.handle is not None:
            self.handle.remove()
        self._sharded = any(hasattr(parameter, "placements") for parameter in pl_module.parameters())
        measured = {"record_every": 0 if self._sharded else trainer.log_every_n_steps}  # type: ignore[attr-defined]
        settings = self.settings if model_methods(self.method) else {**measured, **self.settings}
        self.handle = attach(pl_module, trainer.optimizers[0], self.method, **settings)
        self._resume()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.handle is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log_dict(self.handle.scalars())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a model that outlives the fit back as it was; warn where no step was taken."""
        if isinstance(self.handle, ModelHandle):
            self.handle.remove()
        elif self.handle is not None and not any(weight.steps for weight in self.handle.weights):
            self.handle.doctor()

    def state_dict(self) -> dict[str, Any]:
        """Return the handle's state where ModelParallelStrategy drops it from the sharded optimizer's."""
        return {KEY: self.handle.state_dict()} if self._sharded and isinstance(self.handle, Handle) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up ``state_dict()``, now or as soon as there is a handle."""
        self._loaded = state_dict.get(KEY)
        self._resume()

    def _resume(self) -> None:
        if self._loaded is not None and isinstance(self.handle, Handle):
            self.handle.load_state_dict(self._loaded)
            self._loaded = None
