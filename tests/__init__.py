"""Tests, in the folders of what they test; ``tests/fixtures`` writes datasets in their real layouts."""
