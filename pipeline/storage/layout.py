"""Where everything lies in a workspace ``W``: every path is spelled here, and nowhere else.

    W/records/source=<s>/*.parquet, _ingest.json
    W/dropped/source=<s>/*.json                                      the tombstones
    W/rejected/{ingest,annotate}/source=<s>/*.parquet
    W/dataset/plan/lease.json, source=<s>/generation-NNN.json, generation-NNN-<token>.parquet
    W/dataset/units/source=<s>/<unit>.json                           the markers
    W/dataset/data/source=<s>/split=<sp>/<unit>-<token>.parquet
    W/dataset/latents/<autoencoder>/...
    W/dataset/dataset.json                                           the manifest
    W/runs/<run>/

Names are relative to the workspace. A workspace can hold several datasets; the rejected rows of another than
``dataset`` lie in ``rejected/annotate-<name>``.
"""

from handdata.pipeline.storage.store import Storage

DATASET = "dataset"
"""Name of a workspace's dataset folder."""

MANIFEST = "dataset.json"

INGEST_SUMMARY = "_ingest.json"
"""Beside a source's records: what the ingest did, and which files it wrote; only those exist for readers. Its leading
underscore hides it from table readers."""


def records_folder(source: str) -> str:
    """Return the folder of a source's records in a workspace."""
    return f"records/source={source}"


def tombstones_folder(source: str) -> str:
    """Return the folder of a source's tombstones."""
    return f"dropped/source={source}"


def rejected_folder(stage: str, source: str) -> str:
    """Return the folder of a source's rejected rows of a stage (``ingest`` or ``annotate``)."""
    return f"rejected/{stage}/source={source}"


def annotate_rejected_folder(dataset: str, source: str) -> str:
    """Return the folder of a dataset's refused records; further datasets of a workspace have one each."""
    return rejected_folder("annotate" if dataset == DATASET else f"annotate-{dataset}", source)


def lease_file(dataset: str) -> str:
    """Return the name of a dataset's lease in the workspace."""
    return f"{dataset}/plan/lease.json"


def plan_folder(dataset: str, source: str) -> str:
    """Return the folder of a source's plan."""
    return f"{dataset}/plan/source={source}"


def markers_folder(dataset: str, source: str = "") -> str:
    """Return the folder of the markers of finished units, of one source or of all."""
    return f"{dataset}/units/source={source}" if source else f"{dataset}/units"


def marker_file(dataset: str, source: str, unit_id: str) -> str:
    """Return the name of a unit's marker."""
    return f"{markers_folder(dataset, source)}/{unit_id}.json"


def run_folder(run: str) -> str:
    """Return the folder of a run in its workspace."""
    return f"runs/{run}"


def metrics_file(run: str) -> str:
    """Return the name of a run's metrics, one row a line."""
    return f"{run_folder(run)}/metrics.jsonl"


def list_datasets(storage: Storage) -> list[str]:
    """Return the names of all datasets of a workspace, sorted."""
    return [name for name in storage.list_folders("") if storage.exists(f"{name}/plan")]
