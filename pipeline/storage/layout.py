"""Where everything lies in a workspace ``W``: every path is spelled here, and nowhere else.

    W/records/source=<s>/*.parquet, _ingest.json
    W/dropped/source=<s>/*.json                                      the tombstones
    W/rejected/{ingest,annotate}/source=<s>/*.parquet
    W/dataset/plan/lease.json, source=<s>/generation-NNN.json, generation-NNN-<token>.parquet
    W/dataset/units/source=<s>/<unit>.json                           the markers
    W/dataset/data/source=<s>/split=<sp>/<unit>-<token>.parquet
    W/dataset/latents/<autoencoder>/...
    W/dataset/dataset.json                                           the manifest
    W/dataset/README.md, LICENSE.md, croissant.json                  the card
    W/runs/<run>/README.md, LICENSE.md                               the model card
    W/runs/<run>/settings.json, metrics.jsonl, samples/step-<step>.png, checkpoints/step-<step>/
    W/.staging-<s>/<token>/under_way                                 an ingest under way, until the next one begins

Names are relative to the workspace. A workspace can hold several datasets; the rejected rows of another than
``dataset`` lie in ``rejected/annotate-<name>``.
"""

import re
from dataclasses import dataclass
from typing import Literal

from handdata.pipeline.storage.store import Storage
from handdata.schemas import UsageError

DATASET = "dataset"
"""Name of a workspace's dataset folder."""

MANIFEST = "dataset.json"

CARD = "README.md"
"""The card of a dataset or of a training run, in its folder: the name that the Hugging Face Hub looks for."""

CROISSANT = "croissant.json"
"""A dataset's metadata for search engines and loaders."""

INGEST_SUMMARY = "_ingest.json"
"""Beside a source's records: what the ingest did, and which files it wrote; only those exist for readers. Its leading
underscore hides it from table readers."""

RECORDS = "records"
"""Folder of the records of all sources."""

TOMBSTONES = "dropped"
"""Folder of the tombstones of all sources."""

CHECKPOINTS = "checkpoints"
"""Folder of a training run's checkpoints, in the folder of the run."""

RAY_TRAIN = "ray_train"
"""Name by which Ray Train knows a run, and of the folder of its notes."""

RUNS = "runs"
"""Folder of all training runs."""

RESERVED = (RECORDS, "rejected", TOMBSTONES, RUNS)
"""Names in a workspace that no dataset can have."""


def require_dataset_name(name: str) -> None:
    """Check that a dataset can have this name.

    Raises:
        UsageError: It cannot be a folder of the workspace, or the workspace uses it for something else.

    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in RESERVED:
        raise UsageError(
            f"--dataset {name}: not a name for a folder of the workspace", "use letters, digits, dots, - and _"
        )


def list_sources(storage: Storage, folder: str) -> list[str]:
    """Return the sources that have a folder of their own (``source=<s>``) in a folder, sorted."""
    return [name.removeprefix("source=") for name in storage.list_folders(folder) if name.startswith("source=")]


def records_folder(source: str) -> str:
    """Return the folder of a source's records in a workspace."""
    return f"{RECORDS}/source={source}"


def ingest_summary_file(source: str) -> str:
    """Return the name of the summary of a source's ingest."""
    return f"{records_folder(source)}/{INGEST_SUMMARY}"


def staging_folder(source: str) -> str:
    """Return the hidden folder of what ingests of a source have not finished."""
    return f".staging-{source}"


def staging_mark(staging: str) -> str:
    """Return the name of the file that stands in the folder of an ingest until it ends or another one begins."""
    return f"{staging}/under_way"


def staged_folder(staging: str, kind: Literal["records", "rejected"]) -> str:
    """Return the folder of the records or the rejected rows of one ingest that is under way."""
    return f"{staging}/{kind}"


def tombstones_folder(source: str) -> str:
    """Return the folder of a source's tombstones."""
    return f"{TOMBSTONES}/source={source}"


def rejected_folder(stage: str, source: str) -> str:
    """Return the folder of a source's rejected rows of a stage (``ingest`` or ``annotate``)."""
    return f"rejected/{stage}/source={source}"


def run_folder(run: str) -> str:
    """Return the folder of a training run."""
    return f"{RUNS}/{run}"


def list_runs(storage: Storage) -> list[str]:
    """Return the names of a workspace's training runs, sorted."""
    return storage.list_folders(RUNS)


def metrics_file(run: str) -> str:
    """Return the name of a training run's curves."""
    return f"{run_folder(run)}/metrics.jsonl"


def run_settings_file(run: str) -> str:
    """Return the name of a training run's settings."""
    return f"{run_folder(run)}/settings.json"


def run_samples_file(run: str, step: int) -> str:
    """Return the name of the figure of samples that a training run drew at a step."""
    return f"{run_folder(run)}/samples/step-{step:08d}.png"


def tensorboard_folder(run: str) -> str:
    """Return the folder of a training run's TensorBoard files."""
    return f"{run_folder(run)}/tensorboard"


def ray_train_folder(run: str) -> str:
    """Return the folder of Ray Train's notes, which is there while a training run is under way."""
    return f"{run_folder(run)}/{RAY_TRAIN}"


def checkpoint_in_run(step: int) -> str:
    """Return the folder of the checkpoint of a step, relative to the folder of its run."""
    return f"{CHECKPOINTS}/step-{step:08d}"


def list_checkpoints(run: Storage) -> list[str]:
    """Return the folders of a run's checkpoints, complete or not, by rising step, relative to the run's folder.

    Args:
        run: Folder of the run, wherever it lies.

    """
    steps = (re.fullmatch(r"step-(\d+)", name) for name in run.list_folders(CHECKPOINTS))
    return [f"{CHECKPOINTS}/{found[0]}" for found in sorted(filter(None, steps), key=lambda found: int(found[1]))]


@dataclass(frozen=True, slots=True)
class Dataset:
    """An annotated dataset of a workspace, and where its parts lie. Cheap to pickle: it travels to Ray workers.

    Args:
        storage: The workspace.
        name: Folder of the dataset in it.

    """

    storage: Storage
    name: str = DATASET

    def path(self, name: str) -> str:
        """Return the name in the workspace of a file that is named relative to the dataset."""
        return f"{self.name}/{name}"

    def describe(self, name: str = "") -> str:
        """Return the full path or URL of the dataset, or of a file in it, for messages."""
        return self.storage.describe(self.path(name) if name else self.name)

    @property
    def manifest_file(self) -> str:
        """Name of the manifest."""
        return self.path(MANIFEST)

    @property
    def lease_file(self) -> str:
        """Name of the lease."""
        return self.path("plan/lease.json")

    @property
    def plans_folder(self) -> str:
        """Folder of the plans of all sources, and of the lease."""
        return self.path("plan")

    def plan_folder(self, source: str) -> str:
        """Return the folder of a source's plan."""
        return f"{self.plans_folder}/source={source}"

    def generation_file(self, source: str, generation: int) -> str:
        """Return the name of the list of units of a generation of a source's plan."""
        return f"{self.plan_folder(source)}/generation-{generation:03d}.json"

    def generation_records_file(self, source: str, generation: int, token: str) -> str:
        """Return the name of a file of the records of a generation; its token tells it from other writers' files."""
        return f"{self.generation_file(source, generation).removesuffix('.json')}-{token}.parquet"

    @property
    def markers_folder(self) -> str:
        """Folder of the markers of finished units of all sources."""
        return self.path("units")

    def marker_file(self, source: str, unit_id: str) -> str:
        """Return the name of a unit's marker."""
        return f"{self.markers_folder}/source={source}/{unit_id}.json"

    @property
    def data_folder(self) -> str:
        """Folder of the samples of all sources."""
        return self.path("data")

    def source_data_folder(self, source: str) -> str:
        """Return the folder of a source's samples."""
        return f"{self.data_folder}/source={source}"

    @staticmethod
    def shard_in_dataset(source: str, split: str, name: str) -> str:
        """Return the name of a file of samples, relative to the dataset, as markers hold it."""
        return f"data/source={source}/split={split}/{name}"

    def rejected_folder(self, source: str) -> str:
        """Return the folder of a source's rejected records; further datasets of a workspace have one each."""
        return rejected_folder("annotate" if self.name == DATASET else f"annotate-{self.name}", source)

    @property
    def latents_folder(self) -> str:
        """Folder of the latents of all autoencoders."""
        return self.path("latents")

    def derived_files(self, shard: str) -> list[str]:
        """Return the names of the files of latents that belong to a shard, for all autoencoders.

        Args:
            shard: Name of the shard in the workspace.

        """
        folders = self.storage.list_folders(self.latents_folder)
        return [latents_file(f"{self.latents_folder}/{folder}", shard) for folder in folders]


def latents_file(folder: str, shard: str) -> str:
    """Return the name of the latents of a shard in the folder of an autoencoder's latents.

    Args:
        folder: Folder of the latents in the workspace.
        shard: Name of the shard in the workspace.

    """
    return f"{folder}/{'/'.join(shard.split('/')[-3:])}"  # source, split and file


def latents_settings_file(folder: str) -> str:
    """Return the name of the file that says how the latents of a folder were made."""
    return f"{folder}/latents.json"


def list_datasets(storage: Storage) -> list[Dataset]:
    """Return all datasets of a workspace, sorted by name."""
    datasets = (Dataset(storage, name) for name in storage.list_folders(""))
    return [
        dataset
        for dataset in datasets
        if storage.exists(dataset.plans_folder) or storage.exists(dataset.markers_folder)  # a plan may have got lost
    ]
