"""What the licence of a source asks of whoever uses or passes on its images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from handdata.schemas.manifest import DatasetManifest
from handdata.schemas.sources import SOURCE_CARDS, SourceCard, license_id_of, permits_commercial_use

Answer = Literal["yes", "no", "unconfirmed"]

LICENCES_FILE: Final = "LICENSE.md"
"""Name of the file of licences that goes with copies of a dataset: the one that the Hugging Face Hub looks for."""

_SHARE_ALIKE: Final = ("-SA-", "ODbL", "CDLA-Sharing")
_NO_CITATION: Final = "none needed"


@dataclass(frozen=True, slots=True)
class Terms:
    """The licence of one source of a dataset.

    Args:
        source: Name of the source.
        title: Name of the dataset, as its authors write it.
        licence: Licence of the data, as its card or the user says it.
        license_id: SPDX id of the licence, or a ``LicenseRef-``.
        commercial_use: Whether it permits commercial use.
        redistribution: Whether the images may be passed on.
        homepage: Where the dataset and its licence are published; empty where nowhere.
        citation: Whom to cite; empty where nobody asks for it.

    """

    source: str
    title: str
    licence: str
    license_id: str
    commercial_use: Answer
    redistribution: Answer
    homepage: str = ""
    citation: str = ""

    @property
    def obligations(self) -> tuple[str, ...]:
        """What to do and not to do, one sentence each; none where nothing is asked."""
        found = []
        if self.commercial_use == "no":
            found.append("No commercial use.")
        elif self.commercial_use == "unconfirmed":
            found.append("Whether commercial use is permitted is not confirmed: ask before.")
        if self.redistribution == "no":
            found.append("Do not pass the images on, nor crops of them.")
        elif self.redistribution == "unconfirmed":
            found.append("Whether the images may be passed on is not confirmed: ask before you publish them.")
        if any(mark in f"{self.license_id}-" for mark in _SHARE_ALIKE) or " BY-SA" in self.licence:
            found.append("Pass on what you make of it under the same licence alone.")
        if "-ND-" in self.license_id:
            found.append("Do not pass on what you make of it.")
        if self.citation:
            found.append(f"Name the authors: {self.citation}.")
        return tuple(found)


def terms_of(
    manifest: DatasetManifest,
    cards: Mapping[str, SourceCard] = SOURCE_CARDS,
    named: Iterable[tuple[str, str]] | None = None,
) -> tuple[Terms, ...]:
    """Return the licences of a dataset, sorted by source.

    Where the user gave another licence than the source's card, that one counts, and of what it permits only what its
    id says.

    Args:
        manifest: The manifest.
        cards: Cards of the sources by name; a source without one has what the manifest says.
        named: Sources and ids of licences that samples name: some were annotated while their source had another one.
            None for those that the manifest names.

    """
    of_manifest = {
        source: manifest.license_ids.get(source) or license_id_of(manifest.licenses.get(source, ""))
        for source in manifest.sources
    }
    found = []
    for source, license_id in sorted({*(of_manifest.items() if named is None else named)}):
        card = cards.get(source)
        licence = manifest.licenses.get(source, "") if license_id == of_manifest.get(source) else ""
        if card is not None and license_id == card.license_id:
            commercial, redistribution = card.commercial_use, card.redistribution
        else:
            commercial, redistribution = _permissions_of(license_id)
        cited = card.citation if card is not None and card.citation != _NO_CITATION else ""
        found.append(
            Terms(
                source,
                card.title if card else source,
                licence or license_id,
                license_id,
                commercial,
                redistribution,
                card.homepage if card and card.homepage.startswith("https://") else "",
                cited,
            )
        )
    return tuple(found)


def _permissions_of(license_id: str) -> tuple[Answer, Answer]:
    """Return whether an id of a licence permits commercial use, and passing on."""
    if permits_commercial_use(license_id):
        return "yes", "yes"
    if license_id.startswith("CC-BY-NC"):
        return "no", "yes"
    if license_id.startswith("CC-BY-ND"):
        return "yes", "yes"
    return "unconfirmed", "unconfirmed"


def licences_page(terms: Iterable[Terms]) -> str:
    """Return the file of licences that goes with every copy of a dataset, in Markdown."""
    lines = [
        "# Licences",
        "",
        "Each image is under the licence of its source. What is trained on it is bound by it too.",
    ]
    for of_source in terms:
        lines += ["", f"## {of_source.source}: {of_source.title}", "", f"- Licence: {of_source.licence}"]
        if of_source.license_id != of_source.licence:
            lines.append(f"- Id of the licence: {of_source.license_id}")
        if of_source.homepage:
            lines.append(f"- Published at: {of_source.homepage}")
        lines += [f"- {obligation}" for obligation in of_source.obligations]
    return "\n".join(lines) + "\n"
