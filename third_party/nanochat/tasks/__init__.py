"""What models are taught and asked: sets of conversations."""
