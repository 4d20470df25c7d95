"""A procedural hand, rendered on the CPU, with exact labels."""
