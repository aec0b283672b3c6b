"""From agent runs to a trained model."""

__version__ = "0.4.0"
