"""Files: bases, model checkpoints, and how a file appears whole or not at all."""
