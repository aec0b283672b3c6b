"""Which examples, in what form, under which name."""
