"""A small language model, from weights on disk to training, in nanochat's formats and numbers."""
