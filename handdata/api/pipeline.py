"""From a dataset to annotated shards: ``handdata.ingest`` and ``handdata.annotate``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handdata.adapters import AdapterOptions
from handdata.adapters.registry import find_adapter
from handdata.api.errors import names_arguments
from handdata.console import ProgressLine, say_connecting
from handdata.pipeline.records.ingest import ingest as ingest_records
from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.settings import KeypointsPolicy, MasksPolicy, annotation_settings, load_settings
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import DATASET, require_dataset_name
from handdata.schemas import Split, UsageError
from handdata.schemas.sample import CropMode, Flag

if TYPE_CHECKING:
    from handdata.pipeline.run.annotate import AnnotateSummary


@names_arguments
def ingest(
    source: str,
    root: str | Path | None = None,
    workspace: str | Path | None = None,
    *,
    split: Split | None = None,
    limit: int | None = None,
    stride: int = 1,
    mano_dir: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> IngestSummary:
    """Turn a downloaded dataset into normalized records; a second call replaces the source's records.

        >>> summary = handdata.ingest("synthetic", root="sources/synthetic", workspace="workspace")
        >>> summary.records, summary.splits
        (48, {'test': 8, 'train': 32, 'val': 8})

    Args:
        source: Name of the source, as ``handdata sources`` lists them.
        root: Folder of the dataset, as downloaded; by default the folder of this name in ``sources_root``.
        workspace: Folder or URL of records, datasets and runs; by default that of the settings.
        split: The only split to take.
        limit: Largest number of records.
        stride: Divisor of the frame numbers that are kept; 1 keeps all frames.
        mano_dir: Folder of your MANO_RIGHT.pkl and MANO_LEFT.pkl, for labels that need them.
        force: Whether to replace the earlier records even where a split or more than a tenth of them is missing now.
        options: Options of ``handdata.adapters.AdapterOptions``, such as ``follow_links``, or ``fps`` for ``folder``.

    Raises:
        UsageError: There is no such source, or ``root`` is not this dataset.
        RunError: The dataset gave no record, or cannot be read; the source's earlier records stay.

    """
    _require_at_least(1, limit=limit, stride=stride)
    settings = load_settings(workspace=_text(workspace), mano_dir=mano_dir)
    adapter = find_adapter(source)
    try:
        adapter_options = AdapterOptions(settings.mano_dir, **options)
    except TypeError as error:
        raise UsageError(
            f"ingest takes no such option: {error}", "handdata.adapters.AdapterOptions lists them"
        ) from None
    with ProgressLine(f"Ingesting {source}", None, "partitions") as progress:
        return ingest_records(
            adapter,
            settings.sources_root / source if root is None else Path(root),
            Storage(settings.workspace),
            split=split,
            limit=limit,
            stride=stride,
            options=adapter_options,
            force=force,
            on_progress=lambda done, total, records: progress.set(done, f"{records:,} records", total),
        )


@names_arguments
def annotate(
    workspace: str | Path | None = None,
    *,
    source: str | Sequence[str] = (),
    dataset: str = DATASET,
    masks: MasksPolicy | None = None,
    keypoints: KeypointsPolicy | None = None,
    image_size: int | None = None,
    crop: CropMode | None = None,
    reject: Sequence[Flag] | None = None,
    limit: int | None = None,
    sample: int | None = None,
    cpus: int | None = None,
    gpus: int = 0,
    address: str | None = None,
    sam_checkpoint: str | Path | None = None,
    overwrite: bool = False,
    repair: bool = False,
    roots: Mapping[str, str | Path] | None = None,
    **thresholds: float,
) -> "AnnotateSummary":
    """Annotate ingested records: keypoints, square crops, masks, quality flags; write Parquet shards.

    Interrupted, the same call continues; finished, it does nothing. It runs on Ray, which it starts on this machine and
    ends again unless there is an ``address``.

        >>> summary = handdata.annotate("workspace", masks="dataset", image_size=64)
        >>> summary.manifest.image_size, summary.manifest.complete
        (64, True)

    Args:
        workspace: Folder or URL of the records; by default that of the settings.
        source: Names of ingested sources; all by default.
        dataset: Folder of the dataset in the workspace.
        masks: Where masks come from: ``auto``, ``sam``, ``grabcut``, ``dataset`` or ``none``.
        keypoints: Where keypoints come from: ``prefer-dataset``, ``dataset`` or ``mediapipe``.
        image_size: Side of the square crops, pixels.
        crop: One square for each ``frame``, or a ``stable`` one for a run of frames.
        reject: Flags of records that are rejected instead of marked.
        limit: Number of records of each source, the first ones.
        sample: Number of records of each source, spread over its sequences.
        cpus: Number of CPU actors; all cores by default.
        gpus: Number of SAM actors, each on one GPU.
        address: Address of a Ray cluster.
        sam_checkpoint: SAM's weights.
        overwrite: Whether to remove and annotate again what has other settings, models or ingested records.
        repair: Whether to annotate again the finished units that have lost files.
        roots: Folders in which datasets lie now, by source, where that is not where they were ingested.
        thresholds: Thresholds of the quality flags, such as ``min_hand_px=64`` (``QualitySettings`` lists them).

    Raises:
        UsageError: There are no records, a setting has a wrong value, or the dataset has other settings.
        RunError: The run failed; the same call continues.

    """
    from handdata.pipeline.run.cluster import offer_token

    offer_token()  # before Ray is imported
    from handdata.pipeline.run.annotate import annotate as annotate_records
    from handdata.pipeline.run.request import AnnotateRequest, Cluster, ModelPaths

    require_dataset_name(dataset)
    _require_at_least(1, limit=limit, sample=sample, cpus=cpus)
    _require_at_least(0, gpus=gpus)
    settings = load_settings(workspace=_text(workspace))
    annotation = annotation_settings(
        settings.annotate,
        {"masks": masks, "keypoints": keypoints, "image_size": image_size, "crop": crop},
        {"reject": reject, **thresholds},
    )
    request = AnnotateRequest(
        Dataset(Storage(settings.workspace), dataset),
        (source,) if isinstance(source, str) else tuple(source),
        limit=limit,
        sample=sample,
        overwrite=overwrite,
        repair=repair,
        roots={name: Path(root) for name, root in (roots or {}).items()},
    )
    with ProgressLine("Annotating", None, "records") as progress:
        return annotate_records(
            request,
            annotation,
            ModelPaths(settings.weights, None if sam_checkpoint is None else Path(sam_checkpoint)),
            Cluster(cpus=cpus, gpus=gpus, address=address, stuck_after_s=settings.stuck_after_s),
            on_connect=say_connecting,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )


def _text(workspace: str | Path | None) -> str | None:
    return None if workspace is None else str(workspace)


def _require_at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UsageError(f"{name} is {number}, and must be at least {least}")
