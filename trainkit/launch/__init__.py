"""A command in, an exit code out."""
