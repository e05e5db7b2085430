"""Quality-regression reports: the same prompts and seeds through a reference and its candidates, measured and gated."""
