"""Source cards: who made each dataset, under which licence, and what it labels.

Facts are those of each dataset's own homepage, paper and repository; "unconfirmed" marks what none of them states.
"""

import tomllib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict


class SourceCard(BaseModel):
    """What a user needs to know about a dataset before downloading it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name in ``--source``, in the ``source`` column and in folder names."""
    title: str
    license: str
    """Licence of the data (not of its code)."""
    commercial_use: Literal["yes", "no", "unconfirmed"]
    redistribution: Literal["yes", "no", "unconfirmed"]
    homepage: str
    size: str
    """Number of images or clips, and disk space where known."""
    viewpoint: Literal["ego", "exo", "ego and exo"]
    multi_view: bool
    """Whether synchronised cameras see the same moment."""
    video: bool
    """Whether consecutive frames of one camera exist."""
    labels: str
    """What the dataset annotates."""
    citation: str
    layout: str = ""
    """What the root holds after unpacking."""
    download: str = ""
    """Steps to that layout."""
    pitfalls: str = ""
    """What has surprised users."""


def _read_cards() -> dict[str, SourceCard]:
    paths = sorted((Path(__file__).parent / "cards").glob("*.toml"))
    cards = [SourceCard.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return {card.name: card for card in cards}


SOURCE_CARDS: Final = _read_cards()
"""The cards of all built-in sources by name, from ``schemas/cards/<name>.toml``."""
