"""The dataset that ``sample domain-transfer`` generates: its options, and what it shows of a run."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from handdata.commands.options import dataset_option
from handdata.console import ProgressLine, byte_size, counted, print_table, say, say_connecting, say_next
from handdata.pipeline.settings import Settings
from handdata.schemas import GENERATED, UsageError

if TYPE_CHECKING:
    from handdata.pipeline.run.annotate import RunSummary
    from handdata.pipeline.storage import Dataset
    from handdata.trainer.presets import SamplingOptions

_PANEL: Final = "A dataset instead of a figure"

AllTargets = Annotated[
    bool, typer.Option("--all", rich_help_panel=_PANEL, help="Generate an image for every target, whatever --n says.")
]
GeneratedDataset = Annotated[
    str | None,
    dataset_option(
        text="Dataset folder that the images become, with labels and masks.",
        rich_help_panel=_PANEL,
        show_default=f"{GENERATED} with --all",
    ),
]
ParentsDataset = Annotated[
    str | None,
    dataset_option(
        "--from-dataset", "Dataset folder of references and targets.", show_default="the one of the training run"
    ),
]
DrawingGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        metavar="N",
        rich_help_panel=_PANEL,
        help="Number of Ray actors that draw, each on one GPU; with 0 the CPU draws.",
        show_default="the GPUs of this machine",
    ),
]
ClusterAddress = Annotated[
    str | None, typer.Option("--address", metavar="ADDRESS", rich_help_panel=_PANEL, help="Ray cluster address.")
]
RepairGenerated = Annotated[
    bool,
    typer.Option("--repair", rich_help_panel=_PANEL, help="Generate again the finished units that have lost files."),
]


def gpus_of(gpus: int | None, device: str | None) -> int:
    """Return the number of GPUs that draw.

    Raises:
        UsageError: The device does not go with it.

    """
    if gpus is not None:
        if device is not None:
            raise UsageError("--gpus and --device say both where images are drawn", "give one of them")
        return gpus
    if device not in (None, "cpu", "cuda"):
        raise UsageError(
            f"--device {device}: a dataset is drawn by Ray, which chooses GPUs", "say how many with --gpus"
        )
    import torch

    there = torch.cuda.device_count()
    if device == "cuda" and not there:
        raise UsageError("--device cuda: this machine has no CUDA GPU", "--device cpu draws on the CPU")
    return 0 if device == "cpu" else there


def generate_dataset(
    settings: Settings,
    checkpoint: str,
    options: "SamplingOptions",
    sources: tuple[str | None, str | None],
    *,
    checkpoint_preset: str | None,
    parents: str | None,
    dataset: str,
    count: int | None,
    batch_size: int,
    gpus: int,
    address: str | None,
    repair: bool,
) -> None:
    """Generate a dataset from two sources, of references and of targets, and show what it has become.

    Raises:
        UsageError: A source is not named.

    """
    from handdata.pipeline.run.cluster import offer_token

    offer_token()
    from handdata.jobs.generate import GenerateRequest, generate
    from handdata.pipeline.run.request import Cluster
    from handdata.pipeline.storage import Dataset, Storage

    references, targets = sources
    if references is None or targets is None:
        raise UsageError("a dataset is generated from two sources", "give --reference-source and --target-source")
    storage = Storage(settings.workspace)
    request = GenerateRequest(
        Dataset(storage, dataset),
        parents,
        references,
        targets,
        checkpoint,
        checkpoint_preset,
        count,
        options,
        batch_size,
        repair,
    )
    with ProgressLine("Generating", None, "images") as progress:
        summary = generate(
            request,
            settings.annotate,
            Cluster(gpus=gpus, address=address, stuck_after_s=settings.stuck_after_s),
            on_note=say,
            on_connect=say_connecting,
            on_plan=lambda to_do, done: progress.set(0, f"({done:,} done before)" if done else "", to_do),
            on_unit=lambda marker: progress.advance(marker.records),
        )
    _show(summary, request.dataset, settings.workspace)


def _show(summary: "RunSummary", dataset: "Dataset", workspace: str) -> None:
    held = list(summary.manifest.sources.get(GENERATED, {}).values())
    samples = sum(counts.samples for counts in held)
    print_table(
        "Generated" if summary.records else "Nothing to do: every image is generated",
        {
            "samples": f"{summary.samples:,} of {summary.records:,} images",
            "rejected": counted(summary.rejected),
            "flags": counted(summary.flags),
            "dataset": f"{samples:,} samples, {byte_size(sum(counts.bytes for counts in held))}",
            "licence": summary.manifest.license_ids[GENERATED],
            "where": dataset.storage.describe(dataset.data_folder),
        },
    )
    if samples:
        say_next("report", "train", dataset=dataset.name, workspace=workspace)
