"""What happened: run folders, checkpoints, progress."""
