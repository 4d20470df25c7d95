"""The licences of an export, and what they oblige to: the file that lies in each."""

import re
from typing import Final

from handdata.adapters.registry import registered_adapters
from handdata.pipeline.shards import license_ids
from handdata.schemas import DatasetManifest, SourceCard

LICENCES_FILE: Final = "LICENSES.md"

_PARTS: Final = {
    "BY": "name its authors, its licence and that it was changed",
    "NC": "no commercial use",
    "SA": "what is made of it goes on under the same licence",
    "ND": "nothing that is made of it may be passed on, which crops and annotations are",
}
"""What the parts of the names of Creative Commons licences oblige to."""


def licences_text(manifest: DatasetManifest) -> str:
    """Return what each source of exported samples obliges to, as Markdown.

    Args:
        manifest: Manifest with the counts of what was exported.

    """
    ids = license_ids(manifest)
    adapters = registered_adapters()
    lines = [
        "# Licences of this data",
        "",
        "The images and labels belong to the datasets below. Each sample keeps the licence of its source; whoever uses",
        "the data is bound by all of those that it contains.",
    ]
    for source, splits in sorted(manifest.sources.items()):
        card = adapters[source].card if source in adapters else None
        samples = sum(counts.samples for counts in splits.values())
        lines += [
            "",
            f"## {card.title if card else source}",
            "",
            f"- source `{source}`: {samples:,} samples",
            f"- licence: {manifest.licenses.get(source, 'unknown')} (`{ids[source]}`)",
            *(f"- {line}" for line in obligations(ids[source], card)),
        ]
    return "\n".join(lines) + "\n"


def obligations(license_id: str, card: SourceCard | None) -> list[str]:
    """Return what the use of a source's data obliges to, a line each.

    Args:
        license_id: SPDX id of the licence of the data, or a ``LicenseRef-``.
        card: Card of the source; None where its adapter is not installed.

    """
    parts = re.match(r"CC-((?:BY|NC|SA|ND)(?:-(?:BY|NC|SA|ND))*)-", license_id)
    lines = [f"obligation: {_PARTS[part]}" for part in parts[1].split("-")] if parts else []
    if card is None:
        return [*lines, "the adapter of this source is not installed: its terms are not known here"]
    if card.license_id != license_id:
        return [*lines, f"the data is of a user of `{card.name}`, under the licence that they named"]
    return [
        *lines,
        f"commercial use: {card.commercial_use}",
        f"redistribution: {card.redistribution}" + _PASS_ON.get(card.redistribution, ""),
        f"terms: {card.homepage}",
        f"cite: {card.citation}",
    ]


_PASS_ON: Final = {
    "no": " (who wants the data gets it from the address below)",
    "unconfirmed": " (ask the authors before you pass it on)",
}
