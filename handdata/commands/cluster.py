"""On a cluster: ``submit`` a command as a job, and ``status`` of a dataset from any machine."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from handdata.commands.options import AsJson, Workspace, load_settings
from handdata.console import counted, duration, err, out, print_table
from handdata.schemas import UsageError

cluster_app = typer.Typer()


class JobCommand(StrEnum):
    """Commands that run as jobs."""

    ingest = "ingest"
    annotate = "annotate"
    train = "train"


@cluster_app.command(
    epilog="Example: handdata submit annotate --address http://HEAD:8265 -- --workspace s3://bucket/hands --gpus 8"
)
def submit(
    command: Annotated[JobCommand, typer.Argument(help="What to run on the cluster.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Its options, after a double dash.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The head's dashboard.", show_default="RAY_ADDRESS, or this machine's cluster"
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log until the job ends.")] = True,
) -> None:
    """Run a command as a job of a Ray cluster, with this installation's code; exit as it exits.

    A token is taken from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. --no-wait prints the job's id.
    """
    line, gpus = _on_the_cluster(command.value, arguments or [])
    from handdata.jobs.submit import Cluster

    cluster = Cluster(address)
    job_id = cluster.submit(line, gpus)
    if not wait:
        out.print(job_id)
        return
    try:
        err.print(f"submitted {job_id} to {cluster.address}")
        code = cluster.follow(job_id, _write, err.print)
    except KeyboardInterrupt:
        err.print(cluster.how_to_go_on(job_id))
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _on_the_cluster(command: str, arguments: list[str]) -> tuple[list[str], int]:
    """Return a command line as the cluster should run it, and the GPUs that the command itself needs.

    Raises:
        UsageError: a path leads to this machine only.

    """
    from handdata.cli import app

    group: Any = typer.main.get_command(app)
    with group.commands[command].make_context(command, list(arguments)) as context:  # wrong options end here
        given: dict[str, Any] = context.params
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
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Folder of the dataset in the workspace.")] = "dataset",
    as_json: AsJson = False,
) -> None:
    """Show how far a dataset is: rows, refusals, flags, rate, time left. Works from any machine, without Ray."""
    from handdata.pipeline.shards.progress import dataset_progress
    from handdata.pipeline.storage import Storage

    storage = Storage(load_settings(workspace=workspace).workspace)
    progress = dataset_progress(storage, dataset)
    total = progress.total
    planned = total.records + progress.records_to_do
    if as_json:
        document = {
            "records": planned,
            "done": total.records,
            "samples": total.samples,
            "rejected": total.rejected,
            "flags": total.flags,
            "bytes": total.bytes,
            "complete": not progress.records_to_do,
            "records_per_s": progress.records_per_s,
            "seconds_left": progress.seconds_left,
            "last_unit_age_s": progress.last_unit_age_s,
            "sources": [
                {
                    "source": source,
                    "split": split,
                    "records": split_progress.planned_records,
                    "units": split_progress.planned_units,
                    "done": split_progress.done.model_dump(),
                }
                for (source, split), split_progress in progress.splits.items()
            ],
            "where": storage.describe(dataset),
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    print_table(
        f"Dataset {storage.describe(dataset)}",
        [
            (
                source,
                split,
                f"{part.done.records:,} of {part.planned_records:,}",
                f"{part.done.samples:,}",
                counted(part.done.rejected),
                f"{part.done.bytes / 1e6:,.1f}",
            )
            for (source, split), part in progress.splits.items()
        ],
        ("source", "split", "records done", "samples", "rejected", "MB"),
    )
    summary = {
        "records": f"{total.records:,} of {planned:,} ({total.records / max(planned, 1):.1%})",
        "rejected": counted(total.rejected),
        "flags": counted(total.flags),
        "size": f"{total.bytes / 1e9:,.2f} GB",
    }
    if progress.records_to_do:
        if progress.last_unit_age_s is not None:
            summary["last unit"] = f"{duration(progress.last_unit_age_s)} ago"
        if progress.records_per_s and progress.seconds_left is not None:
            summary["rate"] = f"{progress.records_per_s:,.1f} records/s while it ran"
            summary["time left"] = duration(progress.seconds_left)
    print_table("In all" if progress.records_to_do else "Complete", summary)
