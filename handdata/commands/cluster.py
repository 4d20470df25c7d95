"""Commands for a cluster: ``submit`` runs a command as a job, ``status`` shows a dataset from any machine."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from handdata.commands.options import AsJson, DatasetName, Workspace
from handdata.console import byte_size, counted, duration, err, out, print_json, print_table, say_connecting
from handdata.pipeline.settings import load_settings
from handdata.schemas import UsageError

if TYPE_CHECKING:
    from handdata.pipeline.shards.progress import DatasetProgress
    from handdata.pipeline.storage import Dataset

cluster_app = typer.Typer()


JobCommand = Literal["ingest", "annotate", "train"]
"""Commands that run as jobs."""


@cluster_app.command(
    epilog="Example: handdata submit annotate --address http://HEAD:8265 -- --workspace s3://bucket/hands --gpus 8"
)
def submit(
    context: typer.Context,
    command: Annotated[JobCommand, typer.Argument(help="Command to run on the cluster.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Options of that command, after a double dash.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Address of the Ray dashboard.",
            show_default="RAY_ADDRESS, or this machine's cluster",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show the log until the job ends, or print the job's id and exit.")
    ] = True,
) -> None:
    """Run a command as a job of a Ray cluster, with this installation's code; exit with the command's exit code.

    The token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """
    line, gpus = _job_line(context.find_root().command, command, arguments or [])
    from handdata.jobs.submit import Cluster

    cluster = Cluster(address, say_connecting)
    job_id = cluster.submit(line, gpus)
    if not wait:
        out.print(job_id)
        return
    try:
        err.print(f"submitted {job_id} to {cluster.address}")
        code = cluster.follow(job_id, _write, err.print)
    except KeyboardInterrupt:
        err.print(cluster.how_to_go_on(job_id))
        raise
    raise typer.Exit(code)


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _job_line(handdata: Any, command: JobCommand, arguments: list[str]) -> tuple[list[str], int]:
    """Return a command line as the cluster should run it, and the GPUs that the command itself needs.

    Args:
        handdata: Group of all commands, which parses the arguments.
        command: Command that runs as a job.
        arguments: Options of the command.

    Raises:
        UsageError: A path leads to this machine only.

    """
    with handdata.commands[command].make_context(command, list(arguments)) as parsed:  # exits on a wrong option
        given: dict[str, Any] = parsed.params
    for name, value in given.items():
        if isinstance(value, Path) and not value.is_absolute():
            raise UsageError(
                f"--{name.replace('_', '-')} {value} is relative to a folder of this machine",
                "give a path that the cluster's nodes see",
            )
    workspace = given["workspace"] or load_settings().workspace
    if "://" not in workspace and not Path(workspace).is_absolute():
        raise UsageError(
            f"the workspace {workspace} is relative to a folder of this machine",
            "give -- --workspace an URL (s3://bucket/folder), or the absolute path of a folder that all nodes share",
        )
    line = [command, *arguments]
    if not given["workspace"]:
        line += ["--workspace", workspace]
    if command == "annotate" and not given["address"]:
        line += ["--address", "auto"]
    return line, (given["gpus"] or 0) if command == "train" else 0


@cluster_app.command(epilog="Example: handdata status --workspace s3://bucket/hands")
def status(
    workspace: Workspace = None,
    dataset: DatasetName = "dataset",
    as_json: AsJson = False,
) -> None:
    """Show how far a dataset is: rows, rejections, flags, rate, time left. Works from any machine, without Ray."""
    from handdata.pipeline.shards.progress import dataset_progress
    from handdata.pipeline.storage import Dataset, Storage

    storage = Storage(load_settings(workspace=workspace).workspace)
    opened = Dataset(storage, dataset)
    progress = dataset_progress(opened)
    if as_json:
        print_json(_status_document(progress, opened.describe()))
    else:
        _print_status(progress, opened)


def _status_document(progress: "DatasetProgress", where: str) -> dict[str, object]:
    total = progress.total
    return {
        "records": total.records + progress.records_to_do,
        "done": total.records,
        "samples": total.samples,
        "rejected": total.rejected,
        "flags": total.flags,
        "bytes": total.bytes,
        "complete": not progress.records_to_do,
        "lost": {unit.marker.unit_id: unit.why for unit in progress.lost},
        "records_per_s": progress.records_per_s,
        "seconds_left": progress.seconds_left,
        "last_unit_age_s": progress.last_unit_age_s,
        "sources": [
            {
                "source": source,
                "split": split,
                "records": part.planned_records,
                "units": part.planned_units,
                "done": part.done.model_dump(),
            }
            for (source, split), part in progress.splits.items()
        ],
        "where": where,
    }


def _print_status(progress: "DatasetProgress", dataset: "Dataset") -> None:
    print_table(
        f"Dataset {dataset.describe()}",
        [
            (
                source,
                split,
                f"{part.done.records:,} of {part.planned_records:,}",
                f"{part.done.samples:,}",
                counted(part.done.rejected),
                byte_size(part.done.bytes),
            )
            for (source, split), part in progress.splits.items()
        ],
        ("source", "split", "records done", "samples", "rejected", "size"),
    )
    total = progress.total
    planned = total.records + progress.records_to_do
    summary = {
        "records": f"{total.records:,} of {planned:,} ({total.records / max(planned, 1):.1%})",
        "rejected": counted(total.rejected),
        "flags": counted(total.flags),
        "size": byte_size(total.bytes),
    }
    if progress.records_to_do:
        if progress.last_unit_age_s is not None:
            summary["last unit"] = f"{duration(progress.last_unit_age_s)} ago"
        if progress.records_per_s and progress.seconds_left is not None:
            summary["rate"] = f"{progress.records_per_s:,.1f} records/s while it ran"
            summary["time left"] = duration(progress.seconds_left)
    if progress.lost:
        from handdata.pipeline.shards.lost import describe_lost, how_to_repair

        summary["lost files"] = f"{describe_lost(progress.lost)}; {how_to_repair(dataset, progress.lost)}"
    print_table("Total" if progress.records_to_do else "Complete", summary)
