"""From agent runs to a trained model."""

__version__ = "0.2.0"
