"""The card of a dataset: what it holds, where that is from, and what it may be used for, as Markdown with YAML.

The YAML at its top is what the Hugging Face Hub reads; the text is for people.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from handdata.pipeline.report.labels import Labels, Spread, terms_of_labels
from handdata.pipeline.settings import FLAG_THRESHOLDS
from handdata.schemas import SOURCE_CARDS, SPLITS, DatasetManifest, SourceCard
from handdata.schemas.dictionary import data_dictionary
from handdata.schemas.terms import LICENCES_FILE, Terms

_HUB_LICENCES: Final = re.compile(
    r"apache-2\.0|mit|isc|zlib|unlicense|wtfpl|bsl-1\.0|bsd-[23]-clause|mpl-2\.0|eupl-1\.2|a?gpl-3\.0|odbl|odc-by|pddl|"
    r"cc0-1\.0|cc-by(-sa)?-[34]\.0|cc-by-2\.[05]|cc-by-nc(-sa|-nd)?-[34]\.0|cc-by-nc(-sa)?-2\.0|cc-by-nd-4\.0|"
    r"cdla-permissive-[12]\.0|cdla-sharing-1\.0|c-uda"
)
"""Ids of licences that the Hugging Face Hub knows (https://huggingface.co/docs/hub/repositories-licenses)."""

_SIZES: Final = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGEST_SIZE: Final = "10M<n<100M"

FLAG_MEANINGS: Final[dict[str, str]] = {
    "blurry": "the hand's box has little detail",
    "extra_hands": "hands of other people, or more than two, are there",
    "labels_disagree": "the dataset's keypoints and MediaPipe's are far apart",
    "low_mask_coverage": "many keypoints lie outside the mask",
    "mask_spill": "a part of the mask lies away from the hands: an arm, a shirt",
    "near_duplicate": "nearly the same picture as the last kept frame of its video",
    "no_content": "the hand's box shows nothing: black, one colour, noise",
    "side_conflict": "label, track or views name different sides",
    "side_unknown": "nobody names the side of a labelled hand",
    "small_hand": "the hand has few pixels in the full image",
    "truncated": "joints lie outside the image",
    "unlabelled_hand": "a hand is visible and has no keypoints",
}
"""What each flag says of a sample."""

_MEASURE_NAMES: Final = {
    "agreement_px": "dataset and MediaPipe keypoints apart (px of the crop)",
    "mask_score": "share of keypoints inside the mask",
    "mask_spill": "share of the mask away from the hands",
    "hand_px": "size of a hand (px of the full image)",
    "sharpness": "sharpness (variance of the Laplacian)",
}

_MAKERS: Final = {
    "dataset": "the dataset's own",
    "mediapipe": "found by MediaPipe",
    "grabcut": "GrabCut, seeded by the keypoints",
    "sam_vit_h": "SAM ViT-H, prompted by the keypoints",
    "sam_vit_l": "SAM ViT-L, prompted by the keypoints",
    "sam_vit_b": "SAM ViT-B, prompted by the keypoints",
}

_PAPER: Final = SOURCE_CARDS["foundhand10m"].citation

TITLE: Final = "Hands, annotated by handdata"


def dataset_card(
    manifest: DatasetManifest,
    labels: Mapping[str, Labels] | None = None,
    *,
    cards: Mapping[str, SourceCard] = SOURCE_CARDS,
    terms: Sequence[Terms] | None = None,
    title: str = TITLE,
    usage: str = "",
    columns: str | None = None,
    hub: Mapping[str, object] | None = None,
) -> str:
    """Return the card of a dataset: YAML between two lines of dashes, then Markdown.

    Args:
        manifest: The manifest; of a part of a dataset, one with the counts of that part.
        labels: Labels by source, from ``read_labels`` or ``labels_of``; without them the card says nothing measured.
        cards: Cards of the sources by name (``adapters.registry.known_cards`` has those of other packages too).
        terms: Licences of the samples; None for those that ``labels`` and the manifest name.
        title: Its heading, and its name on the Hub.
        usage: Markdown that says how to open the files that the card goes with.
        columns: Markdown that describes their columns or fields; None describes the shards' columns.
        hub: Further fields of the YAML, such as ``configs`` and ``dataset_info``. It names ``LICENSE.md`` where a
            licence is none of the Hub's: write ``terms.licences_page`` there.

    """
    if terms is None:
        terms = terms_of_labels(manifest, labels or {}, cards)
    sections = {
        "How to open it": usage,
        "Sources": _sources(manifest, labels or {}, cards),
        "Licences, and what they ask": _licences(terms),
        "How each label was made": _makers(manifest, labels or {}),
        "Measured quality of the labels": _quality(labels or {}),
        "Flags": _flags(manifest),
        "Left out": _rejections(manifest),
        "Known faults": _faults(manifest, cards),
        "Columns": _columns() if columns is None else columns,
        "Whom to cite": "\n".join(f"- {paper}" for paper in whom_to_cite(terms)),
    }
    body = "\n\n".join(f"## {heading}\n\n{text.strip()}" for heading, text in sections.items() if text.strip())
    return (
        f"---\n{_hub_fields(manifest, terms, title, hub or {})}\n---\n\n# {title}\n\n{_summary(manifest)}\n\n{body}\n"
    )


def count_samples(manifest: DatasetManifest) -> int:
    """Return the number of samples of a dataset."""
    return sum(counts.samples for splits in manifest.sources.values() for counts in splits.values())


def licence_fields(terms: Sequence[Terms]) -> dict[str, object]:
    """Return the fields by which the Hub shows licences: its own ids, and ``other`` with a name for all else."""
    ids = sorted({of_source.license_id for of_source in terms})
    names = {license_id: hub_licence(license_id) for license_id in ids}
    others = [license_id for license_id, name in names.items() if name == "other"]
    known = sorted({name for name in names.values() if name != "other"})
    listed = [*known, *(["other"] if others or not known else [])]
    fields: dict[str, object] = {"license": listed[0] if len(listed) == 1 else listed}
    if others:
        name = others[0].lower() if len(ids) == 1 else "terms-of-each-source"
        fields |= {"license_name": name, "license_link": LICENCES_FILE}
    return fields


def hub_licence(license_id: str) -> str:
    """Return the Hub's id of a licence, ``other`` where it has none."""
    name = license_id.lower().removesuffix("-only").removesuffix("-or-later")
    if name in ("odbl-1.0", "odc-by-1.0", "pddl-1.0"):
        name = name.removesuffix("-1.0")
    return name if _HUB_LICENCES.fullmatch(name) else "other"


def _hub_fields(manifest: DatasetManifest, terms: Sequence[Terms], title: str, further: Mapping[str, object]) -> str:
    from huggingface_hub import DatasetCardData  # 0.3 s, rarely needed

    samples = count_samples(manifest)
    fields = {
        "pretty_name": title,
        **licence_fields(terms),
        "task_categories": ["keypoint-detection", "image-segmentation", "image-to-image"],
        "size_categories": [next((name for limit, name in _SIZES if samples < limit), _LARGEST_SIZE)],
        "tags": ["hands", "hand-pose", "foundhand", *sorted(manifest.sources)],
        **further,
    }
    return str(DatasetCardData(**fields).to_yaml()).strip()  # type: ignore[arg-type]


def _summary(manifest: DatasetManifest) -> str:
    counts = [of for splits in manifest.sources.values() for of in splits.values()]
    samples, records = sum(of.samples for of in counts), sum(of.records for of in counts)
    size = manifest.image_size
    unfinished = "" if manifest.complete else " **Annotation is not finished: more is to come.**"
    return (
        f"{samples:,} pictures of {size} x {size} px, each a square around the hands of one frame, from {records:,} "
        f"frames of {_list(sorted(manifest.sources))}. Each has up to 42 keypoints (rows 0 to 20 the person's right "
        f"hand, 21 to 41 the left), and most a mask of the hands.{unfinished}\n\n"
        f"Made by handdata {manifest.handdata_version} for [FoundHand](https://arxiv.org/abs/2412.02690), in format "
        f"version {manifest.format_version}."
    )


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; empty where it has no rows."""
    lines = [" | ".join(_cell(cell) for cell in row) for row in rows]
    if not lines:
        return ""
    return "\n".join(f"| {line} |" for line in (" | ".join(header), " | ".join(["---"] * len(header)), *lines))


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _sources(manifest: DatasetManifest, labels: Mapping[str, Labels], cards: Mapping[str, SourceCard]) -> str:
    rows = []
    for source, splits in sorted(manifest.sources.items()):
        card, of_source = cards.get(source), labels.get(source)
        title = card.title if card else source
        if card and card.homepage.startswith("https://"):
            title = f"[{title}]({card.homepage})"
        releases = ", ".join(sorted(of_source.releases)) if of_source else ""
        counts = [splits[split].samples if split in splits else 0 for split in SPLITS]
        rows.append([f"`{source}`", title, releases or "not told", *counts, card.labels if card else ""])
    return table(["source", "dataset", "release", *SPLITS, "what the dataset labels"], rows)


def _licences(terms: Sequence[Terms]) -> str:
    rows = [
        (
            f"`{of.source}`",
            of.licence,
            f"`{of.license_id}`",
            of.commercial_use,
            of.redistribution,
            " ".join(of.obligations),
        )
        for of in terms
    ]
    head = ["source", "licence", "id", "commercial use", "passing on", "what it asks"]
    text = "Each picture is under the licence of its source, and what is trained on it is bound by that too."
    return f"{text}\n\n{table(head, rows)}"


def _makers(manifest: DatasetManifest, labels: Mapping[str, Labels]) -> str:
    rows = []
    for source, of in sorted(labels.items()):
        masks = Counter[str]()
        for (origin, extent), count in of.masks.items():
            masks[f"{_MAKERS.get(origin, origin)} ({extent.replace('_', ', ') if extent else 'unknown'})"] += count
        masks["none"] = of.samples - of.masks.total()
        keypoints = Counter({_MAKERS.get(origin, origin): count for origin, count in of.keypoints.items()})
        rows.append(
            (
                f"`{source}`",
                _shares(keypoints, of.keypoints.total()),
                _shares(masks, of.samples),
                _share(of.with_3d, of.samples),
                _share(of.with_camera, of.samples),
            )
        )
    made = table(["source", "keypoints, of the hands", "masks, of the samples", "joints in space", "cameras"], rows)
    settings = [f"- `{name}`: {_settings(annotator)}" for name, annotator in sorted(manifest.annotator_hashes.items())]
    ways = (
        "The column `annotator_hash` names the settings and model files (SHA-256) that made a row:\n\n"
        + "\n".join(settings)
        if settings
        else ""
    )
    sampled = [source for source, of in sorted(labels.items()) if not of.is_all]
    note = f"Shares of {_list(sampled)} are of shards that were drawn at random." if sampled else ""
    return "\n\n".join(part for part in (made, note, ways) if part)


def _settings(annotator: Mapping[str, object]) -> str:
    """Return settings and model hashes of an annotator in one line."""
    parts = []
    for group in ("settings", "models"):
        found = annotator.get(group)
        for name, value in found.items() if isinstance(found, Mapping) else ():
            if value not in ({}, [], None):
                parts.append(f"{name} {value}")
    return ", ".join(parts) or "not recorded"


def _shares(counts: Counter[str], total: int) -> str:
    return ", ".join(f"{name} {_share(count, total)}" for name, count in counts.most_common() if count) or "none"


def _share(count: int, total: int) -> str:
    if not count or not total:
        return "none"
    return "all" if count == total else f"{100 * count / total:.3g}%"


def _quality(labels: Mapping[str, Labels]) -> str:
    rows = [
        (f"`{source}`", _MEASURE_NAMES[name], spread.count, *_numbers(spread))
        for source, of in sorted(labels.items())
        for name, spread in of.measures.items()
    ]
    if not rows:
        return ""
    text = "From the samples themselves: the middle value, and what 5% lie below and above."
    return f"{text}\n\n{table(['source', 'measure', 'measured', '5%', 'median', '95%'], rows)}"


def _numbers(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.low:.3g}", f"{spread.median:.3g}", f"{spread.high:.3g}"


def _flags(manifest: DatasetManifest) -> str:
    counts = sum((of.flags for splits in manifest.sources.values() for of in splits.values()), start=Counter[str]())
    samples = count_samples(manifest)
    thresholds = {str(flag): name for flag, name in FLAG_THRESHOLDS.items()}
    rows = []
    for flag, count in counts.most_common():
        threshold = thresholds.get(flag, "")
        limit = f"`{threshold}` {manifest.quality[threshold]:g}" if threshold in manifest.quality else ""
        rows.append((f"`{flag}`", count, _share(count, samples), FLAG_MEANINGS.get(flag, ""), limit))
    return table(["flag", "samples", "share", "what it says", "threshold"], rows)


def _rejections(manifest: DatasetManifest) -> str:
    rows = [
        (f"`{source}`", f"`{reason}`", count)
        for source, splits in sorted(manifest.sources.items())
        for reason, count in sum((of.rejected for of in splits.values()), start=Counter[str]()).most_common()
    ]
    return table(["source", "reason", "frames"], rows)


def _faults(manifest: DatasetManifest, cards: Mapping[str, SourceCard]) -> str:
    return "\n\n".join(
        f"`{source}`:\n\n" + "\n".join(f"- {fault}" for fault in faults)
        for source, faults in known_faults(manifest, cards).items()
    )


def known_faults(manifest: DatasetManifest, cards: Mapping[str, SourceCard]) -> dict[str, list[str]]:
    """Return what is known to be wrong with the data of each source, or to surprise; none of some sources."""
    faults = {}
    for source in sorted(manifest.sources):
        card = cards.get(source)
        lines = _sentences(card.pitfalls) if card else []
        lines += [f"When it was read: {warning}" for warning in manifest.warnings.get(source, ())]
        if lines:
            faults[source] = [" ".join(line.split()) for line in lines]
    return faults


def _sentences(text: str) -> list[str]:
    """Return the sentences of a card's text, which is broken into lines anywhere."""
    found: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if found and not found[-1].endswith("."):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return found


def _columns() -> str:
    return data_dictionary().replace("[quality.md](quality.md) lists them", "see the flags above")


def whom_to_cite(terms: Sequence[Terms]) -> list[str]:
    """Return the papers behind the sources of a dataset, and that of its way of annotation."""
    return list(dict.fromkeys((*(of_source.citation for of_source in terms if of_source.citation), _PAPER)))
