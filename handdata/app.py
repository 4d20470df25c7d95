"""The app of the command line, which joins the commands of ``handdata.commands``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from handdata._version import __version__
from handdata.commands.ablating import ablating_app
from handdata.commands.cluster import cluster_app
from handdata.commands.dataset import dataset_app
from handdata.commands.doctor import doctor_app
from handdata.commands.evaluating import evaluating_app
from handdata.commands.export import export_app
from handdata.commands.provenance import provenance_app
from handdata.commands.sample import sample_app
from handdata.commands.sources import sources_app
from handdata.commands.training import training_app
from handdata.commands.weights import weights_app
from handdata.console import out

app = typer.Typer(
    name="handdata",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn hand datasets into annotated shards, and train the FoundHand diffusion transformer on them.",
    epilog="First look: `handdata demo`. With your own data: `handdata ingest --source hagrid --root DIR`, "
    "`handdata annotate`, `handdata train`.",
)
app.add_typer(sources_app)
app.add_typer(dataset_app)
app.add_typer(training_app)
app.add_typer(evaluating_app)
app.add_typer(export_app, name="export")
app.add_typer(ablating_app)
app.add_typer(sample_app, name="sample")
app.add_typer(provenance_app)
app.add_typer(cluster_app)
app.add_typer(doctor_app)
app.add_typer(weights_app, name="weights")


def _print_version(show: bool) -> None:
    if show:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(epilog="Example: handdata demo --out demo-output")
def demo(
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all outputs.")] = Path("demo-output"),
) -> None:
    """Run the whole pipeline on synthetic hands, from rendering to generated images, and write a page about it."""
    from handdata.jobs.demo import require_packages, run_demo

    require_packages()

    def run(command: Sequence[str]) -> None:
        if code := app(list(command), standalone_mode=False):
            raise typer.Exit(code)  # typer makes a code of an interruption

    run_demo(out_dir, run, lambda line: out.print(line))
