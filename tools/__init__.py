"""The command line, reports and the training of the nano model."""
