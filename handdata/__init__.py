"""Turn public hand datasets into annotated shards, and train the FoundHand diffusion transformer on them."""

from handdata._version import __version__

__all__ = ["__version__"]
