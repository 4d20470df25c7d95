"""Ids of licences: SPDX's own, or a ``LicenseRef-`` made of a text that SPDX does not know."""

import hashlib
import re
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
