"""All adapters: the built-in ones, and those that installed packages add.

A package adds a source with an entry point in the group ``handdata.adapters``::

    [project.entry-points."handdata.adapters"]
    mysource = "my_package.adapter:MySourceAdapter"
"""

import warnings
from importlib.metadata import entry_points

from handdata.adapters.arctic import ArcticAdapter
from handdata.adapters.assemblyhands import AssemblyHandsAdapter
from handdata.adapters.base import Adapter
from handdata.adapters.coco import CocoAdapter
from handdata.adapters.dart import DartAdapter
from handdata.adapters.dexycb import DexYCBAdapter
from handdata.adapters.ego4d import Ego4dAdapter
from handdata.adapters.folder import FolderAdapter
from handdata.adapters.foundhand10m import FoundHand10MAdapter
from handdata.adapters.hagrid import HagridAdapter
from handdata.adapters.hoi4d import Hoi4dAdapter
from handdata.adapters.interhand26m import InterHand26MAdapter
from handdata.adapters.reinterhand import ReInterHandAdapter
from handdata.adapters.renderih import RenderIHAdapter
from handdata.adapters.rhd import RhdAdapter
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.adapters.visor import VisorAdapter
from handdata.adapters.wlasl import WlaslAdapter
from handdata.schemas import GENERATED, SOURCE_CARDS, SourceCard, UnknownSourceError, known_names

BUILT_IN: dict[str, type[Adapter]] = {
    "arctic": ArcticAdapter,
    "assemblyhands": AssemblyHandsAdapter,
    "coco": CocoAdapter,
    "dart": DartAdapter,
    "dexycb": DexYCBAdapter,
    "ego4d": Ego4dAdapter,
    "folder": FolderAdapter,
    "foundhand10m": FoundHand10MAdapter,
    "hagrid": HagridAdapter,
    "hoi4d": Hoi4dAdapter,
    "interhand26m": InterHand26MAdapter,
    "reinterhand": ReInterHandAdapter,
    "renderih": RenderIHAdapter,
    "rhd": RhdAdapter,
    "synthetic": SyntheticAdapter,
    "visor": VisorAdapter,
    "wlasl": WlaslAdapter,
}


def registered_adapters() -> dict[str, type[Adapter]]:
    """Return all adapters by source name. A third-party adapter that fails to import is omitted with a warning."""
    adapters = dict(BUILT_IN)
    for entry_point in entry_points(group="handdata.adapters"):
        if entry_point.name in BUILT_IN:
            warnings.warn(f"{entry_point.value} cannot replace the built-in source {entry_point.name}", stacklevel=2)
            continue
        try:
            adapters[entry_point.name] = entry_point.load()
        except Exception as error:  # any fault of a foreign package must not stop the other sources
            warnings.warn(f"the adapter {entry_point.value} cannot be loaded: {error}", stacklevel=2)
    return dict(sorted(adapters.items()))


def known_cards() -> dict[str, SourceCard]:
    """Return the cards of all sources by name, those of other packages among them."""
    return SOURCE_CARDS | {source: adapter.card for source, adapter in registered_adapters().items()}


def takes_option(source: str, name: str) -> bool:
    """Return whether a source has an option of its own."""
    return name in getattr(registered_adapters().get(source), "own_options", ())


def find_adapter(source: str) -> type[Adapter]:
    """Return the adapter of a source.

    Raises:
        UnknownSourceError: No adapter has this name; the hint suggests close names.

    """
    adapters = registered_adapters()
    if source not in adapters:
        if source == GENERATED:
            raise UnknownSourceError(
                f"{GENERATED} is no dataset to read: its samples are made of others",
                "`handdata sample domain-transfer --all` writes them into a dataset that train reads",
            )
        raise UnknownSourceError(f"unknown source {source!r}", known_names(source, adapters))
    return adapters[source]
