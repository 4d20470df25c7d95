"""Python for scripts and notebooks: thin modules over what the commands call, named by ``import handdata``."""

REPAIR_GUIDANCE = 3.0
"""Guidance scale of repairs, as published: more than for other tasks, since the network is given nothing of the hands
but keypoints."""
