"""Parse words, call one workflow function, show the result: one file per command."""
