"""What lies in every export for people: its card, ``README.md``, and the licences of all that is in it."""

from collections.abc import Sequence
from typing import Final

from handdata.adapters.registry import known_cards
from handdata.jobs.exports import huggingface
from handdata.jobs.exports.documents import ExportedShard, ExportRequest, FormatName
from handdata.pipeline.report.card import dataset_card
from handdata.pipeline.report.labels import read_labels
from handdata.pipeline.storage import Dataset
from handdata.schemas import DatasetManifest
from handdata.schemas.terms import Terms, terms_of

_OPENED_BY: Final[dict[FormatName, tuple[str, str]]] = {
    "foundhand": ("sh", "handdata ingest --source foundhand10m --root ."),
    "coco": (
        "python",
        "from pycocotools.coco import COCO\n\n"
        'coco = COCO("annotations/hands_train.json")  # or val, test\n'
        "annotation = coco.loadAnns(coco.getAnnIds())[0]\n"
        'hands = annotation["righthand_kpts"], annotation["lefthand_kpts"]\n'
        "mask = coco.annToMask(annotation)  # of the hands, not of the person",
    ),
    "webdataset": (
        "python",
        "from glob import glob\n\nimport webdataset\n\n"
        'hands = webdataset.WebDataset(sorted(glob("train/*.tar")), shardshuffle=False).decode("pil")\n'
        'image, mask, row = next(iter(hands.to_tuple("jpg", "mask.png", "json")))',
    ),
    "huggingface": ("python", 'from datasets import load_dataset\n\nhands = load_dataset(".")  # or USER/NAME'),
    "fiftyone": ("sh", "python load.py    # makes a dataset of FiftyOne of all splits"),
    "rerun": ("sh", "rerun train/SOURCE/SEQUENCE/*.rrd"),
}
"""What opens an export of each format, in its folder."""


def card(request: ExportRequest, dataset: Dataset, manifest: DatasetManifest, terms: Sequence[Terms]) -> str:
    """Return the card of an export.

    Args:
        request: What was exported.
        dataset: The dataset of which it was.
        manifest: Its manifest, with the counts of what was exported.
        terms: Licences of what was exported.

    """
    language, code = _OPENED_BY[request.format]
    is_whole = request.where is None and not request.licences and request.split is None and request.format != "rerun"
    hub = request.format == "huggingface"
    return dataset_card(
        manifest,
        read_labels(dataset) if is_whole else None,
        cards=known_cards(),
        terms=terms,
        usage=f"```{language}\n{code}\n```",
        columns=None if hub or request.format == "webdataset" else "",
        hub=huggingface.hub_fields(manifest) if hub else None,
    )


def terms_of_samples(manifest: DatasetManifest, exported: Sequence[ExportedShard]) -> tuple[Terms, ...]:
    """Return the licences of what was exported: all that its samples name, whatever their source says."""
    named = {(shard.source, license_id) for shard in exported for license_id in shard.licences}
    return terms_of(manifest, known_cards(), named)
