"""Source cards: who made each dataset, under which licence, and what it labels.

Facts are those of each dataset's own homepage, paper and repository; "unconfirmed" marks what none of them states.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from handdata.schemas.licences import as_license_id, is_commercial_license, parts_of_license

GENERATED: Final = "generated"
"""Source of the samples that ``sample domain-transfer`` makes of others: no dataset to ingest."""


class SourceCard(BaseModel):
    """What a user needs to know about a dataset before downloading it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name in ``--source``, in the ``source`` column and in folder names."""
    title: str
    license: str
    """Licence of the data (not of its code)."""
    license_id: str = ""
    """SPDX id of the licence, or a ``LicenseRef-``; by default the one that ``license`` names."""
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

    @model_validator(mode="before")
    @classmethod
    def _name_licence(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and not fields.get("license_id") and isinstance(fields.get("license"), str):
            return {**fields, "license_id": as_license_id(fields["license"])}
        return fields


def _read_cards() -> dict[str, SourceCard]:
    paths = sorted((Path(__file__).parent / "cards").glob("*.toml"))
    cards = [SourceCard.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return {card.name: card for card in cards}


SOURCE_CARDS: Final = _read_cards()
"""The cards of all built-in sources by name, from ``schemas/cards/<name>.toml``."""


def license_id_of(text: str) -> str:
    """Return the id of a licence: that of the card which has this text, else the one that the text names."""
    return _ids_by_text().get(text) or as_license_id(text)


@cache
def _ids_by_text() -> dict[str, str]:
    return {card.license: card.license_id for card in SOURCE_CARDS.values()}


def permits_commercial_use(license_id: str) -> bool:
    """Return whether a licence is known to permit commercial use: by its SPDX id, or by the card that has its id.

    Of licences that hold together (``AND``) each has to.
    """
    if len(parts := parts_of_license(license_id)) > 1:
        return all(map(permits_commercial_use, parts))
    cards = [card.commercial_use for card in SOURCE_CARDS.values() if card.license_id == license_id]
    return set(cards) == {"yes"} if cards else is_commercial_license(license_id)
