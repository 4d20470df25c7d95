"""A run's curves and pictures while it trains: ``metrics.jsonl``, TensorBoard's files, Weights & Biases if in use."""

import importlib.util
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from statistics import fmean
from types import TracebackType
from typing import Any, Final, Self

from torch.utils.tensorboard import SummaryWriter

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.damage import parse_curves
from handdata.pipeline.storage.layout import metrics_file, run_folder, run_samples_file, tensorboard_folder
from handdata.pipeline.storage.store import as_storage_error
from handdata.schemas import RunError, StorageError
from handdata.schemas.arrays import ByteArray

WRITTEN_EVERY_S: Final = 10.0
MOST_SKIPPED: Final = 10
"""A run stops after so many steps in a row whose gradient is not finite."""
MOST_UNREADABLE: Final = 10
UNREADABLE_SHARE: Final = 0.001
"""A run stops where more pairs than ``MOST_UNREADABLE``, and more than this share, cannot be read."""
WATCHED_STEPS: Final = 100
"""Steps over which the loss is averaged before it is judged."""
WANDB_VARIABLES: Final = ("WANDB_API_KEY", "WANDB_MODE")
"""Weights & Biases takes part where it is installed and one of these is set: without a key it would ask for one."""


class RunHistory:
    """A run's curves and pictures, in its folder and on the dashboards in use.

    A context manager: what was added is written when it closes, and every few seconds before.
    """

    def __init__(self, storage: Storage, run: str, first_step: int, settings: Mapping[str, Any]) -> None:
        """Keep the lines of an earlier call of the run up to ``first_step``.

        Raises:
            StorageError: The file of the lines is damaged.

        """
        self._storage, self._run = storage, run
        self._name = metrics_file(run)
        self._lines: list[str] = []
        if first_step and storage.exists(self._name):
            rows = parse_curves(storage.read_bytes(self._name), storage.describe(self._name), self._name)
            self._lines = [json.dumps(row) for row in rows if row["step"] <= first_step]
        self._written_at = time.monotonic()
        self._tensorboard: SummaryWriter | None = None
        self._wandb: Any = None
        if not storage.is_local:
            return
        folder = storage.url(run_folder(run)).removeprefix("file://")
        self._tensorboard = SummaryWriter(
            storage.url(tensorboard_folder(run)).removeprefix("file://"), purge_step=first_step + 1
        )
        if importlib.util.find_spec("wandb") and any(os.environ.get(name) for name in WANDB_VARIABLES):
            import wandb

            self._wandb = wandb.init(
                project="handdata", name=run, id=run, resume="allow", dir=folder, config=dict(settings)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*(() if error is None else (StorageError,))):  # the error that ends the run counts
            self.write()
            if self._tensorboard is not None:
                with self._named_errors():
                    self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a line of scalars; those that are not finite are left out."""
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._lines.append(json.dumps({"step": step, **scalars}))
        if self._tensorboard is not None:
            with self._named_errors():
                for name, value in scalars.items():
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)
        if time.monotonic() - self._written_at > WRITTEN_EVERY_S:
            self.write()

    def add_picture(self, step: int, png: bytes, pixels: ByteArray) -> None:
        """Add a grid of samples (H, W, 3): a PNG in the run's folder, and on the dashboards."""
        self._storage.write_bytes(run_samples_file(self._run, step), png)
        if self._tensorboard is not None:
            with self._named_errors():
                self._tensorboard.add_image("samples", pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({"samples": wandb.Image(pixels)}, step=step)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name TensorBoard's folder where it cannot write."""
        try:
            yield
        except OSError as error:
            raise as_storage_error("write", self._storage.describe(tensorboard_folder(self._run)), error) from error

    def write(self) -> None:
        """Write all lines. The whole file at once: object stores cannot append."""
        self._storage.write_bytes(self._name, "".join(f"{line}\n" for line in self._lines).encode())
        self._written_at = time.monotonic()


class ReadingWatch:
    """Counts pairs that cannot be read, and stops a run that has too many of them."""

    def __init__(self, unreadable: int = 0) -> None:
        self.unreadable = unreadable

    def add(self, messages: Sequence[str], pairs: int) -> None:
        """Take what could not be read.

        Args:
            messages: A line on each pair that could not be read.
            pairs: Pairs that the run has read in all.

        Raises:
            RunError: It is more than ``MOST_UNREADABLE`` pairs, and more than ``UNREADABLE_SHARE`` of all.

        """
        self.unreadable += len(messages)
        if messages and self.unreadable > max(MOST_UNREADABLE, UNREADABLE_SHARE * pairs):
            raise RunError(
                f"{self.unreadable} of {pairs} pairs of frames could not be read, the last one of {messages[-1]}",
                "remove the damaged files: `handdata annotate --repair` does their units again, and --resume goes on",
            )


class LossWatch:
    """Stops a run that has gone wrong."""

    def __init__(self, divergence: float, earlier: Mapping[str, Any] | None = None) -> None:
        """Watch from the beginning, or go on.

        Args:
            divergence: How many times its lowest value the mean loss may reach.
            earlier: ``state`` of the watch of an earlier call of the run.

        """
        earlier = earlier or {}
        self._divergence = divergence
        self._losses: deque[float] = deque(earlier.get("losses", ()), maxlen=WATCHED_STEPS)
        self._lowest = float(earlier.get("lowest", math.inf))

    def state(self) -> dict[str, Any]:
        """Return what a later call of the run goes on with, as plain values."""
        return {"losses": list(self._losses), "lowest": self._lowest}

    def add(self, step: int, loss: float, checkpoint_url: str | None, skipped_in_a_row: int = 0) -> None:
        """Take the loss of a step.

        Args:
            step: Number of the step.
            loss: Its loss.
            checkpoint_url: Last checkpoint before it, for the message.
            skipped_in_a_row: Steps up to this one that were skipped since their loss or gradient was not finite.

        Raises:
            RunError: ``MOST_SKIPPED`` steps in a row were skipped, or the mean of the last steps is far above its
                lowest value before.

        """
        good = f"{checkpoint_url} is the last checkpoint before it" if checkpoint_url else "no checkpoint was saved yet"
        if skipped_in_a_row >= MOST_SKIPPED:
            raise RunError(
                f"the loss is {loss} at step {step}; the gradients of {skipped_in_a_row} steps in a row are not finite",
                f"{good}; --resume goes on from it: lower the learning rate, or use precision bfloat16 with --fork",
            )
        if skipped_in_a_row:
            return
        self._losses.append(loss)
        if len(self._losses) < WATCHED_STEPS:
            return
        mean = fmean(self._losses)
        self._lowest = min(self._lowest, mean)
        if mean > self._divergence * self._lowest:
            raise RunError(
                f"training diverges: the mean loss is {mean:.3g} at step {step}, it was {self._lowest:.3g}",
                f"{good}; start again with a lower learning rate (monitoring.divergence sets the limit)",
            )


class Stopwatch:
    """Pairs a second since its start, without pauses."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._began = time.perf_counter()
        self._steps = 0

    def count_step(self) -> None:
        """Count a finished step."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    @property
    def samples_per_s(self) -> float:
        """Return the mean rate so far."""
        return self._steps * self._batch_size / max(time.perf_counter() - self._began, 1e-9)
