"""Quality-regression reports."""
