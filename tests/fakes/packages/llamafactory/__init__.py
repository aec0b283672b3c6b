"""A LLaMA-Factory that pretends, for trainkit/inside/train_together.py."""
