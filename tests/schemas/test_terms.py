"""What licences ask: of each source's card, and of what the user said instead."""

from handdata.schemas import SOURCE_CARDS, DatasetManifest, SplitCounts
from handdata.schemas.terms import licences_page, terms_of


def manifest_of(licences: dict[str, str]) -> DatasetManifest:
    return DatasetManifest(
        handdata_version="1",
        image_size=64,
        annotator_hashes={},
        sources={source: {"train": SplitCounts(samples=1, records=1)} for source in licences},
        licenses=licences,
        complete=True,
    )


def test_every_built_in_source_asks_for_what_its_card_says() -> None:
    licences = {name: card.license for name, card in SOURCE_CARDS.items()}
    for terms in terms_of(manifest_of(licences)):
        card = SOURCE_CARDS[terms.source]
        assert (terms.commercial_use, terms.redistribution) == (card.commercial_use, card.redistribution)
        said = " ".join(terms.obligations)
        assert ("No commercial use." in said) == (card.commercial_use == "no")
        assert ("Do not pass the images on" in said) == (card.redistribution == "no")
        assert said.count("not confirmed") == [card.commercial_use, card.redistribution].count("unconfirmed")
        assert card.citation == "none needed" or card.citation in said


def test_the_licence_that_the_user_gave_counts_instead_of_the_cards() -> None:
    own, shared, unknown = terms_of(
        manifest_of({"coco": "CC-BY-4.0", "folder": "CC BY-NC-SA 4.0", "somebodys": "ask my uncle"})
    )
    assert (own.commercial_use, own.redistribution) == ("yes", "yes")
    assert (shared.commercial_use, shared.redistribution) == ("no", "yes")
    assert any("same licence" in sentence for sentence in shared.obligations)
    assert (unknown.commercial_use, unknown.redistribution) == ("unconfirmed", "unconfirmed")
    assert unknown.title == "somebodys" and unknown.license_id == "LicenseRef-ask-my-uncle"


def test_the_page_of_licences_names_each_source_with_its_licence_and_obligations() -> None:
    terms = terms_of(manifest_of({name: card.license for name, card in SOURCE_CARDS.items()}))
    page = licences_page(terms)
    for of_source in terms:
        part = page.split(f"## {of_source.source}: ", 1)[1].split("\n## ", 1)[0]
        assert of_source.licence in part and all(sentence in part for sentence in of_source.obligations)
