"""From records to annotated shards: ``annotate`` and ``report``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import (
    AsJson,
    CropName,
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

if TYPE_CHECKING:
    pass

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
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a record was rejected.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be done, in which time and size, from a small probe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Annotate ingested records: keypoints, square crops, masks, quality flags; write Parquet shards.

    Interrupted, the same command continues; finished, it does nothing.
    """
    from handdata.pipeline.ray_access import offer_token

    offer_token()
    from handdata.pipeline.engine import annotate as run_annotate
    from handdata.pipeline.shards import DATASET
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
        from handdata.pipeline.estimate import estimate_run

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
            stuck_after_s=settings.stuck_after_s,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )
    where = storage.describe(f"{DATASET}/data")
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


@dataset_app.command(epilog="Example: handdata report --out report")
def report(
    workspace: Workspace = None,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page and the picture go.")] = Path(
        "report"
    ),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Show this training run's losses.")] = None,
    generated: Annotated[Path | None, typer.Option(metavar="PNG", help="Show this grid of generated hands.")] = None,
) -> None:
    """Write one page and one contact sheet about the annotated dataset: pictures, numbers, rejections, losses."""
    from handdata.pipeline.report import read_metrics, write_report
    from handdata.pipeline.storage import Storage

    storage = Storage(load_settings(workspace=workspace).workspace)
    metrics = read_metrics(storage, run) if run else None
    files = write_report(storage, out_dir, metrics=metrics, generated=generated)
    print_table("Report", {"page": files.html, "contact sheet": files.png})
