"""handdata: public hand datasets to annotated shards, and the FoundHand diffusion transformer trained on them."""

from handdata._version import __version__

__all__ = ["__version__"]
