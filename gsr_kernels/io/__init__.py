"""Files: bases, saved models, and how a file appears whole or not at all."""
