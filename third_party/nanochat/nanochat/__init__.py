<<<<<<< HEAD
"""A small chat model from scratch."""
=======
"""A small language model, from weights on disk to training, in nanochat's formats and numbers."""
>>>>>>> nano-model
