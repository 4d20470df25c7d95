"""From records to annotated shards, and changing these: ``annotate``, ``flag``, ``drop``, ``report``."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from handdata.commands.options import (
    AsJson,
    CropName,
    DatasetName,
    KeypointsName,
    MasksName,
    MaxBlur,
    MaxDisagreement,
    MaxMaskSpill,
    MaxTruncation,
    MinHandPx,
    MinMaskScore,
    MinPhashDistance,
    MinSharpness,
    Workspace,
    given_thresholds,
    load_settings,
)
from handdata.console import ProgressLine, counted, out, print_table
from handdata.schemas import UsageError

dataset_app = typer.Typer()


@dataset_app.command(epilog="Example: handdata annotate --source hagrid --masks grabcut --image-size 256")
def annotate(
    source: Annotated[
        list[str] | None,
        typer.Option("--source", "-s", metavar="NAME", help="Repeatable.", show_default="all ingested"),
    ] = None,
    workspace: Workspace = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="SAM actors, each on one GPU.")] = 0,
    cpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU actors.", show_default="all cores")] = None,
    masks: Annotated[MasksName | None, typer.Option(help="Where masks come from.", show_default="auto")] = None,
    keypoints: Annotated[KeypointsName | None, typer.Option(show_default="prefer-dataset")] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="S", help="Side of the crops, pixels.", show_default="512")
    ] = None,
    sam_checkpoint: Annotated[Path | None, typer.Option(metavar="FILE", help="A SAM vit_h, vit_l or vit_b.")] = None,
    crop: Annotated[
        CropName | None, typer.Option(help="A square for each frame, or one a run.", show_default="frame")
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N records a source.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="N records a source, spread over its sequences: a first look."),
    ] = None,
    min_hand_px: MinHandPx = None,
    max_truncation: MaxTruncation = None,
    min_sharpness: MinSharpness = None,
    max_blur: MaxBlur = None,
    min_mask_score: MinMaskScore = None,
    max_mask_spill: MaxMaskSpill = None,
    max_disagreement: MaxDisagreement = None,
    min_phash_distance: MinPhashDistance = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FLAG",
            rich_help_panel="Quality flags",
            help="Reject records with this flag instead of marking them; repeatable.",
            show_default="none",
        ),
    ] = None,
    dataset: DatasetName = "dataset",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Remove and annotate again what has other settings, models or ingested records.",
        ),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a record was rejected.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be done, in which time and size, from a small probe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Annotate ingested records: keypoints, square crops, masks, quality flags; write Parquet shards.

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.run.cluster import offer_token

    offer_token()
    from handdata.pipeline.run.annotate import annotate as run_annotate
    from handdata.pipeline.storage import Storage

    settings = load_settings(workspace=workspace)
    chosen = {
        "masks": masks.value if masks else None,
        "keypoints": keypoints.value if keypoints else None,
        "image_size": image_size,
        "crop": crop.value if crop else None,
    }
    quality: dict[str, object] = dict(
        given_thresholds(
            min_hand_px=min_hand_px,
            max_truncation=max_truncation,
            min_sharpness=min_sharpness,
            max_blur=max_blur,
            min_mask_score=min_mask_score,
            max_mask_spill=max_mask_spill,
            max_disagreement=max_disagreement,
            min_phash_distance=min_phash_distance,
        )
    )
    if reject is not None:
        quality["reject"] = reject
    overrides: dict[str, object] = {name: value for name, value in chosen.items() if value is not None}
    overrides["quality"] = {**settings.annotate.quality.model_dump(exclude_unset=True), **quality}
    annotation = load_settings(annotate={**settings.annotate.model_dump(exclude_unset=True), **overrides}).annotate
    storage = Storage(settings.workspace)
    if plan:
        from handdata.commands.estimate import show_estimate
        from handdata.pipeline.run.estimate import estimate_run

        estimate = estimate_run(
            storage,
            annotation,
            sources=source or (),
            cpus=cpus,
            gpus=gpus,
            address=address,
            weights=settings.weights,
            sam_checkpoint=sam_checkpoint,
            limit=limit,
            sample=sample,
            dataset=dataset,
        )
        show_estimate(estimate, as_json=as_json)
        return
    with ProgressLine("Annotating", None, "records") as progress:
        summary = run_annotate(
            storage,
            annotation,
            sources=source or (),
            cpus=cpus,
            gpus=gpus,
            address=address,
            weights=settings.weights,
            sam_checkpoint=sam_checkpoint,
            limit=limit,
            sample=sample,
            dataset=dataset,
            overwrite=overwrite,
            stuck_after_s=settings.stuck_after_s,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )
    where = storage.describe(f"{dataset}/data")
    held = [counts for splits in summary.manifest.sources.values() for counts in splits.values()]
    document = {
        "records": summary.records,
        "samples": summary.samples,
        "rejected": summary.rejected,
        "flags": summary.flags,
        "dataset": {
            "samples": sum(counts.samples for counts in held),
            "rejected": sum(counts.rejected.total() for counts in held),
            "bytes": sum(counts.bytes for counts in held),
            "image_size": summary.manifest.image_size,
            "complete": summary.manifest.complete,
        },
        "where": where,
    }
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        print_table(
            "Annotated" if summary.records else "Nothing to do: every record is annotated",
            {
                "samples": f"{summary.samples:,} of {summary.records:,} records",
                "rejected": counted(summary.rejected),
                "flags": counted(summary.flags),
                "dataset": f"{document['dataset']['samples']:,} samples, {document['dataset']['bytes'] / 1e6:,.1f} MB",  # type: ignore[index]
                "where": where,
            },
        )
        out.print("Next: handdata report, handdata train")
    if strict and summary.rejected:
        raise typer.Exit(1)


@dataset_app.command(epilog="Example: handdata flag --min-hand-px 64 --max-mask-spill 0.1")
def flag(
    workspace: Workspace = None,
    dataset: DatasetName = "dataset",
    min_hand_px: MinHandPx = None,
    max_truncation: MaxTruncation = None,
    min_sharpness: MinSharpness = None,
    max_blur: MaxBlur = None,
    min_mask_score: MinMaskScore = None,
    max_mask_spill: MaxMaskSpill = None,
    max_disagreement: MaxDisagreement = None,
    min_phash_distance: MinPhashDistance = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the flags of all samples for other thresholds, from stored numbers; no model runs.

    Thresholds that are not given stay as the dataset has them. Flags only: samples stay, and records that a gate
    (`annotate --reject`) refused do not come back. Interrupted, the same command continues.
    """
    from handdata.pipeline.shards.settle import flag as run_flag
    from handdata.pipeline.storage import Storage

    thresholds = given_thresholds(
        min_hand_px=min_hand_px,
        max_truncation=max_truncation,
        min_sharpness=min_sharpness,
        max_blur=max_blur,
        min_mask_score=min_mask_score,
        max_mask_spill=max_mask_spill,
        max_disagreement=max_disagreement,
        min_phash_distance=min_phash_distance,
    )
    storage = Storage(load_settings(workspace=workspace).workspace)
    with ProgressLine("Flagging", None, "units") as progress:
        summary = run_flag(storage, dataset, thresholds, on_unit=lambda done, total: progress.set(done, total=total))
    settled = summary.settled
    if as_json:
        document = {
            "changed": {name: {"before": before, "now": now} for name, (before, now) in summary.changed.items()},
            "thresholds": summary.manifest.quality,
            "units": settled.units,
            "rewritten": settled.rewritten,
            "flags_before": settled.flags_before,
            "flags": settled.flags_after,
            "where": storage.describe(dataset),
        }
        sys.stdout.write(json.dumps(document) + "\n")
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
        typer.Option("--source", "-s", metavar="NAME", help="The whole source; with ids: the source they belong to."),
    ] = None,
    subject: Annotated[list[str] | None, typer.Option(metavar="ID", help="A person; repeatable.")] = None,
    sequence: Annotated[list[str] | None, typer.Option(metavar="ID", help="A sequence_id; repeatable.")] = None,
    record: Annotated[list[str] | None, typer.Option(metavar="ID", help="A record_id; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove records for good: consent was withdrawn, a licence ended.

    They go from the ingested records, from the plans and samples of every dataset of the workspace, and from the tables
    of refused records. A tombstone in <workspace>/dropped keeps later ingest and annotate runs from bringing them back.
    The downloaded files, trained models, reports and figures are not touched. Interrupted, the same command continues.
    """
    from handdata.pipeline.records.tombstones import DropKind
    from handdata.pipeline.shards.settle import drop as run_drop
    from handdata.pipeline.storage import Storage
    from handdata.pipeline.storage.layout import tombstones_folder

    ids: dict[DropKind, list[str]] = {"subject": subject or [], "sequence": sequence or [], "record": record or []}
    given = [kind for kind, values in ids.items() if values]
    if len(given) > 1 or not (given or source):
        raise UsageError(
            "drop takes one of --subject, --sequence, --record, or --source alone", "see handdata drop --help"
        )
    kind: DropKind = given[0] if given else "source"
    storage = Storage(load_settings(workspace=workspace).workspace)
    with ProgressLine("Dropping", None, "units") as progress:
        summary = run_drop(
            storage,
            kind,
            ids.get(kind, []),
            source,
            dry_run=dry_run,
            on_unit=lambda done, total: progress.set(done, total=total),
        )
    if as_json:
        document = {
            "source": summary.source,
            "dry_run": dry_run,
            "records": summary.records,
            "ingest_rejected": summary.rejected,
            "left": summary.left,
            "datasets": {
                name: {"samples": of.samples, "rejected": of.rejected, "rewritten": of.rewritten}
                for name, of in summary.datasets.items()
            },
            "where": storage.describe(tombstones_folder(summary.source)),
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    rows: dict[str, object] = {"records": f"{summary.records:,} and {summary.rejected:,} that the ingest had refused"}
    for name, of in summary.datasets.items():
        rows[name] = f"{of.samples:,} samples and {of.rejected:,} refused records, in {of.rewritten:,} units"
    rows["left"] = f"{summary.left:,} records of {summary.source}"
    if not dry_run:
        rows["tombstone in"] = storage.describe(tombstones_folder(summary.source))
    print_table("Would drop" if dry_run else "Dropped", rows)


@dataset_app.command(epilog="Example: handdata report --out report")
def report(
    workspace: Workspace = None,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and the picture go.")] = Path(
        "report"
    ),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Show this training run's losses.")] = None,
    generated: Annotated[Path | None, typer.Option(metavar="PNG", help="Show this grid of generated hands.")] = None,
    dataset: DatasetName = "dataset",
) -> None:
    """Write one page and one contact sheet about the annotated dataset: pictures, numbers, rejections, losses."""
    from handdata.pipeline.report.page import read_metrics, write_report
    from handdata.pipeline.storage import Storage

    storage = Storage(load_settings(workspace=workspace).workspace)
    metrics = read_metrics(storage, run) if run else None
    files = write_report(storage, out_dir, dataset=dataset, metrics=metrics, generated=generated)
    print_table("Report", {"page": files.html, "contact sheet": files.png})
