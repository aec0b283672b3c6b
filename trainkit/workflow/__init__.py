"""One plain function per verb; the Python API and the command line both call these."""
