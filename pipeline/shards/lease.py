"""Who may commit to a dataset: the run that started last.

A driver that is killed may leave workers behind that still compute, on a cluster that outlives it. Each run therefore
writes its id into the dataset's lease when it starts, and whoever is about to commit reads it again: a run whose lease
was taken over adds nothing more.
"""

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass

from handdata.pipeline.storage import Dataset
from handdata.schemas import LeaseLostError


@dataclass(frozen=True, slots=True)
class _Holder:
    """What the file of a lease holds: the run that has it, and where that runs."""

    run_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one run to change a dataset. Travels to the run's workers.

    Args:
        dataset: The dataset.
        run_id: Identity of the run.

    """

    dataset: Dataset
    run_id: str

    def check(self) -> None:
        """Return if no other run has started on the dataset.

        Raises:
            LeaseLostError: Another has, or the dataset was removed.
            StorageError: The file of the lease is damaged.

        """
        storage, name = self.dataset.storage, self.dataset.lease_file
        holder = storage.read_document(name, _Holder) if storage.exists(name) else None
        if holder is None or holder.run_id != self.run_id:
            by = f"by {holder.by}" if holder else "by its removal"
            raise LeaseLostError(
                f"{self.dataset.describe()} was taken over {by}; this run adds nothing more",
                "run one command at a time on a dataset",
            )


def take_lease(dataset: Dataset) -> Lease:
    """Take a dataset over from whichever run had it; that run's workers stop before they commit."""
    run_id = uuid.uuid4().hex
    holder = _Holder(run_id, f"process {os.getpid()} on {socket.gethostname()}")
    dataset.storage.write_bytes(dataset.lease_file, json.dumps(asdict(holder)).encode())
    return Lease(dataset, run_id)
