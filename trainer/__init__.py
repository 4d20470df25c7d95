"""Pairs of frames, the two-frame diffusion transformer, its training and its samplers."""
