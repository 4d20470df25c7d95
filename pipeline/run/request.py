"""What a run of ``handdata annotate`` is asked to do, where it runs, and which model files it may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handdata.pipeline.storage import Dataset


@dataclass(frozen=True, slots=True)
class AnnotateRequest:
    """Which records to annotate into which dataset.

    Args:
        dataset: The dataset that is written.
        sources: Ingested sources; all of the workspace where empty.
        limit: Take only this many records of each source.
        sample: Take this many records of each source, spread over its sequences.
        overwrite: Annotate those sources again that were annotated with other settings, models or records.
        repair: Annotate finished units again that have lost files.
        roots: Folders in which datasets lie now, by source, where that is not where they were ingested.

    """

    dataset: Dataset
    sources: tuple[str, ...] = ()
    limit: int | None = None
    sample: int | None = None
    overwrite: bool = False
    repair: bool = False
    roots: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a run computes.

    Args:
        cpus: CPU actors; by default one for each core of the machine or cluster.
        gpus: SAM actors, each with one GPU.
        address: Ray cluster address; by default a local cluster is started, or ``RAY_ADDRESS`` is used.
        stuck_after_s: Seconds without progress after which a worker is ended, and counts as crashed.

    """

    cpus: int | None = None
    gpus: int = 0
    address: str | None = None
    stuck_after_s: float = 600


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """Where model files are looked for.

    Args:
        weights: Folder of model files, searched before any download.
        sam_checkpoint: SAM's checkpoint file.

    """

    weights: Path | None = None
    sam_checkpoint: Path | None = None
