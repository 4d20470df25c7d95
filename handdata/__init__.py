"""Turn public hand datasets into annotated shards, and train the FoundHand diffusion transformer on them.

The names below are for scripts and notebooks; docs/python.md shows them at work. Each is imported when it is first
used: to import ``handdata`` takes no time, and only what needs Ray, MediaPipe or torch loads it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from handdata._version import __version__

if TYPE_CHECKING:
    from handdata.api.datasets import HandDataset, HandSample, open_dataset
    from handdata.api.models import HandModel, load_model
    from handdata.api.photos import Hand, annotate_image
    from handdata.api.pipeline import annotate, ingest
    from handdata.schemas import HandDataError

__all__ = [
    "Hand",
    "HandDataError",
    "HandDataset",
    "HandModel",
    "HandSample",
    "__version__",
    "annotate",
    "annotate_image",
    "ingest",
    "load_model",
    "open_dataset",
]

_MODULES = {
    "handdata.api.datasets": ("HandDataset", "HandSample", "open_dataset"),
    "handdata.api.models": ("HandModel", "load_model"),
    "handdata.api.photos": ("Hand", "annotate_image"),
    "handdata.api.pipeline": ("annotate", "ingest"),
    "handdata.schemas": ("HandDataError",),
}
"""Modules with the names that each gives."""


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(module), name))
    raise AttributeError(f"module 'handdata' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
