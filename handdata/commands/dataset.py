"""Commands that write, change and show an annotated dataset: ``annotate``, ``flag``, ``drop``, ``report``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import (
    QUALITY_PANEL,
    AsJson,
    DatasetName,
    MaxBlur,
    MaxDisagreement,
    MaxMaskSpill,
    MaxTruncation,
    MinContrast,
    MinHandPx,
    MinMaskScore,
    MinPhashDistance,
    MinSharpness,
    Strict,
    Workspace,
    given_thresholds,
    setting_option,
)
from handdata.console import ProgressLine, byte_size, counted, print_json, print_table, say_connecting, say_next
from handdata.pipeline.settings import (
    AnnotateSettings,
    KeypointsPolicy,
    MasksPolicy,
    QualitySettings,
    annotation_settings,
    load_settings,
)
from handdata.schemas import UsageError
from handdata.schemas.sample import CropMode

if TYPE_CHECKING:
    from handdata.pipeline.records.tombstones import DropKind
    from handdata.pipeline.run.annotate import AnnotateSummary
    from handdata.pipeline.shards.settle import DropSummary, FlagSummary

dataset_app = typer.Typer()


@dataset_app.command(epilog="Example: handdata annotate --source hagrid --masks grabcut --image-size 256")
def annotate(
    source: Annotated[
        list[str] | None,
        typer.Option("--source", "-s", metavar="NAME", help="Repeatable source name.", show_default="all ingested"),
    ] = None,
    workspace: Workspace = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="Number of SAM actors, each on one GPU.")] = 0,
    cpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of CPU actors.", show_default="all cores")
    ] = None,
    masks: Annotated[
        MasksPolicy | None, setting_option(AnnotateSettings, "masks", help="Where masks come from.")
    ] = None,
    keypoints: Annotated[
        KeypointsPolicy | None, setting_option(AnnotateSettings, "keypoints", help="Where keypoints come from.")
    ] = None,
    image_size: Annotated[
        int | None,
        setting_option(AnnotateSettings, "image_size", metavar="PIXELS", help="Side of the square crops."),
    ] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SAM weights: vit_h, vit_l or vit_b.")
    ] = None,
    crop: Annotated[
        CropMode | None,
        setting_option(
            AnnotateSettings, "crop", help="One square for each frame, or a stable one for a run of frames."
        ),
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster address.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of records of each source, the first ones.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Number of records of each source, spread over its sequences: a first look."
        ),
    ] = None,
    min_hand_px: MinHandPx = None,
    max_truncation: MaxTruncation = None,
    min_sharpness: MinSharpness = None,
    max_blur: MaxBlur = None,
    min_contrast: MinContrast = None,
    min_mask_score: MinMaskScore = None,
    max_mask_spill: MaxMaskSpill = None,
    max_disagreement: MaxDisagreement = None,
    min_phash_distance: MinPhashDistance = None,
    reject: Annotated[
        list[str] | None,  # typer takes no list of a Literal; QualitySettings checks the flags
        setting_option(
            QualitySettings,
            "reject",
            metavar="FLAG",
            rich_help_panel=QUALITY_PANEL,
            help="Repeatable flag; records that get it are rejected instead of marked.",
        ),
    ] = None,
    dataset: DatasetName = "dataset",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Remove and annotate again what has other settings, models or ingested records."
        ),
    ] = False,
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=DIR",
            help="Repeatable folder in which the dataset of a source lies now.",
            show_default="where it was ingested",
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Annotate again the finished units that have lost files.")
    ] = False,
    strict: Strict = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print what would be done, with time and size from a small probe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Annotate ingested records: keypoints, square crops, masks, quality flags; write Parquet shards.

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.run.cluster import offer_token

    offer_token()
    from handdata.pipeline.run.annotate import annotate as run_annotate
    from handdata.pipeline.run.request import AnnotateRequest, Cluster, ModelPaths
    from handdata.pipeline.storage import Dataset, Storage

    settings = load_settings(workspace=workspace)
    thresholds = given_thresholds(
        min_hand_px=min_hand_px,
        max_truncation=max_truncation,
        min_sharpness=min_sharpness,
        max_blur=max_blur,
        min_contrast=min_contrast,
        min_mask_score=min_mask_score,
        max_mask_spill=max_mask_spill,
        max_disagreement=max_disagreement,
        min_phash_distance=min_phash_distance,
    )
    annotation = annotation_settings(
        settings.annotate,
        {"masks": masks, "keypoints": keypoints, "image_size": image_size, "crop": crop},
        {"reject": reject, **thresholds},
    )
    storage = Storage(settings.workspace)
    request = AnnotateRequest(
        Dataset(storage, dataset),
        tuple(source or ()),
        limit=limit,
        sample=sample,
        overwrite=overwrite,
        repair=repair,
        roots=_roots(root or []),
    )
    models = ModelPaths(settings.weights, sam_checkpoint)
    cluster = Cluster(cpus=cpus, gpus=gpus, address=address, stuck_after_s=settings.stuck_after_s)
    if plan:
        from handdata.commands.estimate import show_estimate
        from handdata.pipeline.run.estimate import estimate_run

        estimate = estimate_run(request, annotation, models, cluster, on_connect=say_connecting)
        show_estimate(estimate, as_json=as_json)
        return
    with ProgressLine("Annotating", None, "records") as progress:
        summary = run_annotate(
            request,
            annotation,
            models,
            cluster,
            on_connect=say_connecting,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )
    where = storage.describe(request.dataset.data_folder)
    _show_annotated(summary, where, dataset, workspace, as_json=as_json)
    if strict and summary.rejected:
        raise typer.Exit(1)


def _roots(given: list[str]) -> dict[str, Path]:
    """Return the folders of ``--root SOURCE=DIR`` by source.

    Raises:
        UsageError: One is not of this form, or a source is named twice.

    """
    roots: dict[str, Path] = {}
    for text in given:
        source, equals, folder = text.partition("=")
        if not (source and equals and folder):
            raise UsageError(f"--root {text} names no source and folder", "write --root SOURCE=DIR")
        if source in roots:
            raise UsageError(f"--root names {source} twice", "give one folder")
        roots[source] = Path(folder).expanduser()  # no shell expands ~ there
    return roots


def _show_annotated(
    summary: "AnnotateSummary", where: str, dataset: str, workspace: str | None, *, as_json: bool
) -> None:
    held = [counts for splits in summary.manifest.sources.values() for counts in splits.values()]
    samples, size = sum(counts.samples for counts in held), sum(counts.bytes for counts in held)
    if as_json:
        document = {
            "records": summary.records,
            "samples": summary.samples,
            "rejected": summary.rejected,
            "flags": summary.flags,
            "dataset": {
                "samples": samples,
                "rejected": sum(counts.rejected.total() for counts in held),
                "bytes": size,
                "image_size": summary.manifest.image_size,
                "complete": summary.manifest.complete,
            },
            "where": where,
            "warnings": list(summary.warnings),
        }
        print_json(document)
        return
    warnings = {"warnings": "\n".join(summary.warnings)} if summary.warnings else {}
    print_table(
        "Annotated" if summary.records else "Nothing to do: every record is annotated",
        {
            "samples": f"{summary.samples:,} of {summary.records:,} records",
            "rejected": counted(summary.rejected),
            "flags": counted(summary.flags),
            "dataset": f"{samples:,} samples, {byte_size(size)}",
            "where": where,
            **warnings,
        },
    )
    if samples:
        chosen = None if dataset == "dataset" else dataset
        say_next("report", "train", dataset=chosen, workspace=workspace)


@dataset_app.command(epilog="Example: handdata flag --min-hand-px 64 --max-mask-spill 0.1")
def flag(
    workspace: Workspace = None,
    dataset: DatasetName = "dataset",
    min_hand_px: MinHandPx = None,
    max_truncation: MaxTruncation = None,
    min_sharpness: MinSharpness = None,
    max_blur: MaxBlur = None,
    min_contrast: MinContrast = None,
    min_mask_score: MinMaskScore = None,
    max_mask_spill: MaxMaskSpill = None,
    max_disagreement: MaxDisagreement = None,
    min_phash_distance: MinPhashDistance = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the flags of all samples for other thresholds, from stored numbers; no model runs.

    Thresholds that are not given stay as the dataset has them. Only flags change: samples stay, and records that
    `annotate --reject` rejected do not come back. Interrupted, the same command continues.
    """
    from handdata.pipeline.shards.lost import lost_error
    from handdata.pipeline.shards.settle import flag as run_flag
    from handdata.pipeline.storage import Dataset, Storage

    thresholds = given_thresholds(
        min_hand_px=min_hand_px,
        max_truncation=max_truncation,
        min_sharpness=min_sharpness,
        max_blur=max_blur,
        min_contrast=min_contrast,
        min_mask_score=min_mask_score,
        max_mask_spill=max_mask_spill,
        max_disagreement=max_disagreement,
        min_phash_distance=min_phash_distance,
    )
    storage = Storage(load_settings(workspace=workspace).workspace)
    with ProgressLine("Flagging", None, "units") as progress:
        summary = run_flag(Dataset(storage, dataset), thresholds, on_unit=progress.count)
    _show_flagged(summary, storage.describe(dataset), as_json=as_json)
    if summary.settled.lost:
        raise lost_error(Dataset(storage, dataset), summary.settled.lost)


def _show_flagged(summary: "FlagSummary", where: str, *, as_json: bool) -> None:
    settled = summary.settled
    if as_json:
        document = {
            "changed": {name: {"before": before, "now": now} for name, (before, now) in summary.changed.items()},
            "thresholds": summary.manifest.quality,
            "units": settled.units,
            "rewritten": settled.rewritten,
            "flags_before": settled.flags_before,
            "flags": settled.flags_after,
            "lost": [unit.marker.unit_id for unit in settled.lost],
            "where": where,
        }
        print_json(document)
        return
    names = sorted(settled.flags_before.keys() | settled.flags_after.keys())
    rows: dict[str, object] = {
        name: f"{'unset' if before is None else f'{before:g}'} -> {now:g}"
        for name, (before, now) in summary.changed.items()
    }
    rows |= {name: f"{settled.flags_before[name]:,} -> {settled.flags_after[name]:,} samples" for name in names}
    rows["units rewritten"] = f"{settled.rewritten:,} of {settled.units:,} judged again"
    print_table("Flagged" if settled.units else "Nothing to do: the flags follow these thresholds", rows)


@dataset_app.command(epilog="Example: handdata drop --source arctic --subject s05 --dry-run")
def drop(
    workspace: Workspace = None,
    source: Annotated[
        str | None,
        typer.Option("--source", "-s", metavar="NAME", help="Source to drop whole, or the source of the given ids."),
    ] = None,
    subject: Annotated[list[str] | None, typer.Option(metavar="ID", help="Repeatable id of a person.")] = None,
    sequence: Annotated[list[str] | None, typer.Option(metavar="ID", help="Repeatable sequence_id.")] = None,
    record: Annotated[list[str] | None, typer.Option(metavar="ID", help="Repeatable record_id.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove records for good: consent was withdrawn, a licence ended.

    They go from the ingested records, from the plans and samples of every dataset of the workspace, and from the tables
    of rejected records. A tombstone in <workspace>/dropped keeps later ingest and annotate runs from bringing them
    back. An id that no record has, or had before it was dropped, is an error. Downloaded files, trained models, reports
    and figures are not touched. Interrupted, the same command continues.
    """
    from handdata.pipeline.shards.lost import lost_error
    from handdata.pipeline.shards.settle import drop as run_drop
    from handdata.pipeline.storage import Dataset, Storage
    from handdata.pipeline.storage.layout import tombstones_folder

    kind, ids = _what_to_drop({"subject": subject or [], "sequence": sequence or [], "record": record or []}, source)
    storage = Storage(load_settings(workspace=workspace).workspace)
    with ProgressLine("Dropping", None, "units") as progress:
        summary = run_drop(
            storage,
            kind,
            ids,
            source,
            dry_run=dry_run,
            on_unit=progress.count,
        )
    where = storage.describe(tombstones_folder(summary.source))
    _show_dropped(summary, where, dry_run=dry_run, as_json=as_json)
    if summary.lost:
        name, lost = next(iter(summary.lost.items()))
        raise lost_error(Dataset(storage, name), lost)


def _what_to_drop(ids: "dict[DropKind, list[str]]", source: str | None) -> "tuple[DropKind, list[str]]":
    """Return the one kind of ids that was given, and the ids; the kind "source" has none.

    Raises:
        UsageError: Nothing was given, or several kinds of ids.

    """
    given = [kind for kind, values in ids.items() if values]
    if len(given) > 1 or not (given or source):
        raise UsageError(
            "drop takes one of --subject, --sequence, --record, or --source alone", "see handdata drop --help"
        )
    return (given[0], ids[given[0]]) if given else ("source", [])


def _show_dropped(summary: "DropSummary", where: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        document = {
            "source": summary.source,
            "dry_run": dry_run,
            "dropped_before": summary.dropped_before,
            "records": summary.records,
            "ingest_rejected": summary.rejected,
            "left": summary.left,
            "datasets": {
                name: {
                    "samples": dropped.samples,
                    "rejected": dropped.rejected,
                    "rewritten": dropped.rewritten,
                    "lost": [unit.marker.unit_id for unit in summary.lost.get(name, ())],
                }
                for name, dropped in summary.datasets.items()
            },
            "where": where,
        }
        print_json(document)
        return
    rows: dict[str, object] = {"records": f"{summary.records:,} and {summary.rejected:,} that ingest had rejected"}
    for name, dropped in summary.datasets.items():
        rows[name] = (
            f"{dropped.samples:,} samples and {dropped.rejected:,} rejected records, in {dropped.rewritten:,} units"
        )
    rows["left"] = f"{summary.left:,} records of {summary.source}"
    if not dry_run:
        rows["tombstone in"] = where
    title = "Would drop" if dry_run else "Dropped"
    if summary.dropped_before:
        title = "Dropped before: what it left" if dry_run else "Dropped before: what it left is removed"
    print_table(title, rows)


@dataset_app.command(epilog="Example: handdata report --out report")
def report(
    workspace: Workspace = None,
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the page and the contact sheet.")
    ] = Path("report"),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Training run whose losses are shown.")] = None,
    generated: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Figure of generated hands to show on the page.")
    ] = None,
    dataset: DatasetName = "dataset",
) -> None:
    """Write one page and one contact sheet about the annotated dataset: images, numbers, rejections, losses."""
    from handdata.pipeline.report.page import read_metrics, write_report
    from handdata.pipeline.storage import Dataset, Storage

    storage = Storage(load_settings(workspace=workspace).workspace)
    metrics = read_metrics(storage, run) if run else None
    files = write_report(Dataset(storage, dataset), out_dir, metrics=metrics, generated=generated)
    print_table("Report", {"page": files.html, "contact sheet": files.png})
