"""Lightning, whose optimizers are stepped with a closure.

python examples/lightning_fit.py --folder runs/lightning
"""

import argparse

import lightning.pytorch as pl
import torch
from tiny import rows, tiny_llama

from gsr_kernels.integrations.lightning import MethodCallback

parser = argparse.ArgumentParser()
parser.add_argument("--folder", default="runs/lightning")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--resume", help="a checkpoint of an earlier run")
args = parser.parse_args()


class Module(pl.LightningModule):
    """A language model."""

    def __init__(self):
        super().__init__()
        self.model = tiny_llama()

    def training_step(self, batch):
        """The mean negative log-likelihood."""
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        """As ever."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


tokens = torch.tensor([row["input_ids"] for row in rows()])
trainer = pl.Trainer(
    max_epochs=args.epochs,
    accelerator="cpu",
    gradient_clip_val=1.0,
    log_every_n_steps=4,
    default_root_dir=args.folder,
    callbacks=[MethodCallback(rho=0.5, bases=f"{args.folder}-bases.safetensors")],
)
trainer.fit(Module(), torch.utils.data.DataLoader(tokens, batch_size=8), ckpt_path=args.resume, weights_only=True)
print({name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()})
