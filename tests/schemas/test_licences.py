"""Every licence has an id, and an id says whether commercial use is permitted."""

import re

import pytest

from handdata.schemas import SOURCE_CARDS, SourceCard, license_id_of, permits_commercial_use
from handdata.schemas.licences import more_restrictive


@pytest.mark.parametrize(
    ("text", "license_id"),
    [
        ("CC-BY-4.0", "CC-BY-4.0"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC BY-NC 4.0", "CC-BY-NC-4.0"),
        (" Apache  2.0 ", "Apache-2.0"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("LicenseRef-own", "LicenseRef-own"),
        ("my own terms", "LicenseRef-my-own-terms"),
        ("HaGRID public licence (a rework of CC BY-SA 4.0)", "LicenseRef-HaGRID"),
        ("research use only", "LicenseRef-RHD"),
    ],
)
def test_a_text_has_the_id_that_people_know(text: str, license_id: str) -> None:
    assert license_id_of(text) == license_id
    assert license_id_of(license_id) == license_id


@pytest.mark.parametrize(
    "text", ["", "licença", "許諾", "a/b, c", "x" * 300, "LicenseRef-", "LicenseRef-a b", "\ud800"]
)
def test_any_text_has_an_id_of_its_own(text: str) -> None:
    made = license_id_of(text)
    assert re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", made) and len(made) < 90
    assert made == license_id_of(text) != license_id_of(f"{text}y")
    assert license_id_of(made) == made


def test_texts_that_differ_in_letters_beyond_ascii_have_ids_that_differ() -> None:
    assert len(set(map(license_id_of, ("許可 own", "禁止 own", "own")))) == 3


def test_cards_have_ids_and_foreign_cards_get_one() -> None:
    assert all(license_id_of(card.license_id) == card.license_id for card in SOURCE_CARDS.values())
    fields = SOURCE_CARDS["rhd"].model_dump(exclude={"license_id"})
    assert SourceCard.model_validate(fields | {"license": "CC BY 4.0"}).license_id == "CC-BY-4.0"


def test_only_what_is_known_to_permit_commercial_use_does() -> None:
    permitted = {"CC-BY-4.0", "CC0-1.0", "MIT", "Apache-2.0", "LicenseRef-HaGRID", "CC-BY-SA-4.0"}
    refused = {"CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "LicenseRef-own", "LicenseRef-RHD", "LicenseRef-x"}
    assert {
        name for name in permitted | refused | {"MIT AND CC-BY-NC-4.0"} if permits_commercial_use(name)
    } == permitted
    for card in SOURCE_CARDS.values():
        assert permits_commercial_use(card.license_id) == (card.commercial_use == "yes"), card.name


@pytest.mark.parametrize(
    ("licences", "binding"),
    [
        (["Apache-2.0"], "Apache-2.0"),
        (["Apache-2.0", "Apache-2.0"], "Apache-2.0"),
        (["Apache-2.0", "CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        (["CC-BY-SA-4.0", "CC-BY-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-NC-SA-4.0", "CC-BY-NC-4.0", "MIT"], "CC-BY-NC-SA-4.0"),
        (["LicenseRef-own", "MIT"], "LicenseRef-own"),
        (["CC-BY-4.0", "Apache-2.0"], "Apache-2.0 AND CC-BY-4.0"),
        (["LicenseRef-RHD", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 AND LicenseRef-RHD"),
        (["CC-BY-NC-4.0 AND LicenseRef-RHD", "LicenseRef-RHD", "MIT"], "CC-BY-NC-4.0 AND LicenseRef-RHD"),
        (["LicenseRef-own OR MIT", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 AND (LicenseRef-own OR MIT)"),
    ],
)
def test_what_is_made_of_works_has_the_more_restrictive_licence(licences: list[str], binding: str) -> None:
    assert more_restrictive(licences) == more_restrictive(licences[::-1]) == binding
    assert license_id_of(binding) == binding


def test_licences_that_hold_together_permit_what_each_of_them_permits() -> None:
    assert permits_commercial_use("Apache-2.0 AND CC-BY-4.0")
    assert not permits_commercial_use("Apache-2.0 AND CC-BY-NC-4.0")
    assert not permits_commercial_use("CC-BY-NC-4.0 AND (Apache-2.0 OR MIT)")
