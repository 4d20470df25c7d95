"""The command that looks over this machine: ``doctor``."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from handdata.commands.options import AsJson, Workspace
from handdata.console import escape, out, print_json

if TYPE_CHECKING:
    from handdata.jobs.doctor import Finding

doctor_app = typer.Typer()

_MARKS = {"ok": "[green]ok[/]    ", "absent": "[yellow]absent[/]", "broken": "[red]broken[/]"}


@doctor_app.command(epilog="Example: handdata doctor --workspace s3://bucket/hands")
def doctor(
    workspace: Workspace = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster address.", show_default="RAY_ADDRESS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look over this machine: Python, packages, torch, GL, models, storage, Ray; say how to mend what is broken.

    Ends with 1 where something needed is broken. What is only absent is needed by some commands alone. On an object
    store a small file is written and removed.
    """
    from handdata.jobs.doctor import Finding, Machine, examine
    from handdata.pipeline.settings import load_settings
    from handdata.schemas import UsageError

    findings: list[Finding] = []

    def add(finding: "Finding") -> None:
        findings.append(finding)
        if not as_json:
            _show(finding)

    try:
        settings = load_settings(workspace=workspace)
        machine = Machine(settings.workspace, settings.weights, address or os.environ.get("RAY_ADDRESS"))
    except UsageError as error:
        add(Finding("settings", "broken", error.message, error.hint))
        machine = Machine(workspace or "./workspace", None, address or os.environ.get("RAY_ADDRESS"))
    for finding in examine(machine):
        add(finding)
    broken = [finding.name for finding in findings if finding.state == "broken"]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "broken": broken})
    elif not broken:
        out.print("Nothing needed is broken")
    if broken:
        raise typer.Exit(1)


def _show(finding: "Finding") -> None:
    mend = f" [dim]-> {escape(finding.mend)}[/]" if finding.mend else ""
    out.print(f"{_MARKS[finding.state]} {escape(finding.name)}: {escape(finding.found)}{mend}")
