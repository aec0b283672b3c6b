"""What will run, on what."""
