"""Ids of licences: SPDX's own, or a ``LicenseRef-`` made of a text that SPDX does not know."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

_MOST_CHARACTERS: Final = 64
"""Longest id that is made of a text."""

_COMMERCIAL: Final = re.compile(
    r"0BSD|Apache-2\.0|BSD-[23]-Clause|BSL-1\.0|CC-BY(-SA)?-[1-4]\.[05]|CC-PDDC|CC0-1\.0|"
    r"CDLA-Permissive-[12]\.0|CDLA-Sharing-1\.0|EUPL-1\.2|ISC|MIT(-0)?|MPL-2\.0|[AL]?GPL-[23]\.[01]-(only|or-later)|"
    r"O-UDA-1\.0|ODC-By-1\.0|ODbL-1\.0|PDDL-1\.0|Unlicense|WTFPL|Zlib"
)
"""SPDX ids of licences that permit commercial use, and to change what they are of."""

_BY_STRICTNESS: Final = tuple(
    map(
        re.compile,
        (
            _COMMERCIAL.pattern,
            r"CC-BY-SA-[1-4]\.[05]|CDLA-Sharing-1\.0|EUPL-1\.2|MPL-2\.0|ODbL-1\.0|[AL]?GPL-[23]\.[01]-(only|or-later)",
            r"CC-BY-NC-[1-4]\.[05]",
            r"CC-BY-NC-SA-[1-4]\.[05]",
            r"CC-BY-NC-ND-[1-4]\.[05]",
        ),
    )
)
"""Licences that permit nearly all, ask to share alike, not to earn with it, both of these, and to change nothing. The
last that matches counts."""

_AND: Final = " AND "


@lru_cache(maxsize=1024)
def as_license_id(text: str) -> str:
    """Return the id of a licence that a text names.

        >>> as_license_id("cc by-nc 4.0"), as_license_id("Apache-2.0"), as_license_id("my own terms")
        ('CC-BY-NC-4.0', 'Apache-2.0', 'LicenseRef-my-own-terms')

    Args:
        text: SPDX id or expression in any case, the name that people use ("CC BY 4.0"), or any other text.

    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression  # 5 ms, rarely needed

    plain = " ".join(text.split())
    for spelled in (plain, plain.replace(" ", "-")):
        try:
            return str(canonicalize_license_expression(spelled))
        except InvalidLicenseExpression:
            continue
    name = re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"(?i)^licenseref-", "", plain)).strip("-")
    is_whole = plain.isascii() and name and len(name) <= _MOST_CHARACTERS
    if not is_whole:  # other texts may have the same letters, or begin alike
        name = f"{name[:_MOST_CHARACTERS]}-{hashlib.sha256(plain.encode('utf-8', 'replace')).hexdigest()[:8]}".strip(
            "-"
        )
    return f"LicenseRef-{name}"


def is_commercial_license(license_id: str) -> bool:
    """Return whether an SPDX id is that of a licence which permits commercial use; never for an expression."""
    return _COMMERCIAL.fullmatch(license_id) is not None


def parts_of_license(license_id: str) -> list[str]:
    """Return the ids of the licences that all hold where one holds: those that an expression joins by ``AND``."""
    return [license_id] if "(" in license_id else license_id.split(_AND)


def more_restrictive(license_ids: Sequence[str]) -> str:
    """Return the licence of what is made of works under some licences: the one that restricts it more.

        >>> more_restrictive(["Apache-2.0", "CC-BY-NC-4.0"]), more_restrictive(["CC-BY-NC-4.0", "LicenseRef-RHD"])
        ('CC-BY-NC-4.0', 'CC-BY-NC-4.0 AND LicenseRef-RHD')

    Args:
        license_ids: SPDX ids, or those that ``as_license_id`` makes. What SPDX does not know may ask for anything: it
            restricts more than what permits commercial use.

    Returns:
        One of them, or an expression of all that hold where none is known to be the more restrictive one.

    """
    ids = sorted({part for license_id in license_ids for part in parts_of_license(license_id)})
    binding = [one for one in ids if not any(_restricts_more(other, one) for other in ids)]
    return _AND.join(f"({one})" if len(binding) > 1 and " OR " in one else one for one in binding)


def _restricts_more(one: str, other: str) -> bool:
    first, second = _strictness(one), _strictness(other)
    if second is None:
        return False
    return is_commercial_license(other) if first is None else first > second


def _strictness(license_id: str) -> int | None:
    """Return how much a licence asks for, of ``_BY_STRICTNESS``; None where that is not known."""
    return max((rank for rank, pattern in enumerate(_BY_STRICTNESS) if pattern.fullmatch(license_id)), default=None)
