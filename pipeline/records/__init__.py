"""Normalized records in a workspace: writing them, reading them back, and what was dropped for good."""
