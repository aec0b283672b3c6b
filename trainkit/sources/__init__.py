"""One file per kind of input: read records, turn each into a training example."""
