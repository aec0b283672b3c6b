"""Programs that run inside the trainer's environment, as child processes: the only files that import torch."""
