from __future__ import annotations


class TrainerCallback:
    """The base of the trainer's callbacks."""
