"""Ray Job entry points and submission."""
