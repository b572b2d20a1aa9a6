"""A small chat model from scratch."""
