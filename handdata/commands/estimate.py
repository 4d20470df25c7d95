"""Output of ``annotate --plan``."""

from typing import TYPE_CHECKING

from handdata.console import byte_size, duration, out, print_json, print_table

if TYPE_CHECKING:
    from handdata.pipeline.run.estimate import RunEstimate


def show_estimate(estimate: "RunEstimate", *, as_json: bool) -> None:
    """Print an estimate as tables, or as one JSON object."""
    if as_json:
        print_json(_document(estimate))
        return
    print_table(
        "Plan (nothing was done)",
        [
            (name, f"{source.records_to_do:,}", f"{source.records_done:,}", f"{source.units_to_do:,}")
            for name, source in estimate.sources.items()
        ],
        ("source", "records to do", "done", "units"),
    )
    print_table("Estimate", _rows(estimate))
    to_do = estimate.records_to_do
    out.print("Next: the same command without --plan" if to_do else "Nothing to do: every record is annotated")


def _document(estimate: "RunEstimate") -> dict[str, object]:
    return {
        "records_to_do": estimate.records_to_do,
        "records_done": sum(source.records_done for source in estimate.sources.values()),
        "units_to_do": sum(source.units_to_do for source in estimate.sources.values()),
        "sources": {
            name: {
                "records_to_do": source.records_to_do,
                "records_done": source.records_done,
                "units_to_do": source.units_to_do,
                "probed": source.probe.records if source.probe else 0,
                "probe_samples": source.probe.samples if source.probe else 0,
            }
            for name, source in estimate.sources.items()
        },
        "cpu_actors": estimate.cpu_actors,
        "sam_actors": estimate.sam_actors,
        "gpus": estimate.gpus,
        "stage_ms_per_record": _stage_ms(estimate),
        "start_seconds": estimate.start_s,
        "seconds": estimate.seconds,
        "bytes": estimate.bytes,
        "models": _model_files(estimate),
        "settings": estimate.settings.model_dump(mode="json"),
    }


def _rows(estimate: "RunEstimate") -> dict[str, object]:
    to_do = estimate.records_to_do
    sam = "none"
    if estimate.sam_actors:
        sam = f"{estimate.sam_actors} on {'a GPU each' if estimate.gpus else 'the CPU'}"
    probed = sum(source.probe.records for source in estimate.sources.values() if source.probe)
    settings = estimate.settings
    rows: dict[str, object] = {
        "CPU actors": estimate.cpu_actors,
        "SAM actors": sam,
        "models": ", ".join(f"{name} ({path})" for name, path in _model_files(estimate).items()) or "none needed",
        "settings": f"keypoints {settings.keypoints}, masks {settings.masks}, crop {settings.crop}, "
        f"{settings.image_size} px",
    }
    if to_do:
        rows |= {
            "ms per record": ", ".join(f"{stage} {ms:.1f}" for stage, ms in _stage_ms(estimate).items())
            + f" (measured on {probed} records)",
            "time": f"{duration(estimate.seconds)}, the start ({duration(estimate.start_s)}) included",
            "storage": f"{byte_size(estimate.bytes)} ({byte_size(estimate.bytes / to_do)} per record)",
        }
    return rows


def _stage_ms(estimate: "RunEstimate") -> dict[str, float]:
    to_do = max(estimate.records_to_do, 1)
    return {stage: 1000 * seconds / to_do for stage, seconds in estimate.stage_seconds.items()}


def _model_files(estimate: "RunEstimate") -> dict[str, str]:
    files = {"hand_landmarker": estimate.models.hand_landmarker, estimate.models.sam_origin: estimate.models.sam}
    return {name: str(path) for name, path in files.items() if name and path}
