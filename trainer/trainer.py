"""One optimisation step, and the state that a checkpoint keeps."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from handdata.schemas import RunError, WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.alignment import AlignedDiT, ImageEncoder, alignment_loss
from handdata.trainer.autoencoders import Autoencoder, load_autoencoder, require_fit
from handdata.trainer.checkpoints import (
    UNKNOWN_LICENCE,
    averaged_weights,
    by_our_names,
    first_weights,
    load_checkpoint,
    save_checkpoint,
    training_licences,
)
from handdata.trainer.conditioning import drop_conditions
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.batch import FramePair
from handdata.trainer.devices import TrainedPrecision, autocast
from handdata.trainer.diffusion import BatchNoise, Diffusion, Draws, PartNoise, draw_noise
from handdata.trainer.figures import figure
from handdata.trainer.following import ConditionFollowing, condition_following
from handdata.trainer.inputs import encode_images, pair_conditions
from handdata.trainer.memory import advice, largest_that_fits
from handdata.trainer.model import DiT
from handdata.trainer.optimisers import make_optimiser
from handdata.trainer.presets import Preset, SamplingOptions
from handdata.trainer.schedule import (
    Process,
    learning_rate_share,
    pair_generator,
    seed_of,
    spread_timesteps,
)
from handdata.trainer.tasks import Sampler, gesture_transfer
from handdata.trainer.weights import (
    at_size,
    fitting_presets,
    import_imagenet_dit,
    is_imagenet_dit,
    misfit,
    require_same_meaning,
    with_geometry,
)


class Trainer:
    """The network under training and all that changes with it, from step to step."""

    def __init__(
        self,
        preset: Preset,
        device: str,
        process: Process = Process(),
        share_done: Callable[[], float] | None = None,
    ) -> None:
        """Make the network of a preset, and what trains it.

        Args:
            preset: Settings of the run.
            device: Device to train on.
            process: One of several processes.
            share_done: Returns the share of the run that is over, for one that ends by a clock; the learning rate
                follows it. None: it follows the steps.

        """
        settings = preset.optimisation
        self.preset = preset
        self.process = process
        self.device = torch.device(device)
        self.step = 0
        self.licences: set[str] = set()
        """Ids of the licences of the data that the weights have been trained on."""
        self.skipped = 0
        """Steps that changed nothing, since their gradient was not finite."""
        self.skipped_in_a_row = 0
        self.diffusion = Diffusion(preset.diffusion).to(self.device)
        self.autoencoder: Autoencoder = load_autoencoder(preset.autoencoder, self.device)
        require_fit(preset, self.autoencoder)
        SamplingOptions().applied_to(preset)  # the samples that a run draws fail before it trains, not hours later
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = DiT(**preset.model.model_dump()).to(self.device)
            self._aligned: AlignedDiT | None = None
            if preset.alignment is not None:
                self._encoder = ImageEncoder(preset.alignment, self.model.grid_size, self.device)
                self._aligned = AlignedDiT(self.model, preset.alignment, self._encoder.features).to(self.device)
        self.model.activation_checkpointing = settings.activation_checkpointing
        trained = self._aligned or self.model
        self._distributed = DistributedDataParallel(trained) if process.count > 1 else None
        self._network: nn.Module = self._distributed or trained
        self._trained: nn.Module = trained
        self.micro_batch: int | None = settings.micro_batch_size
        """Pairs that go through the network together; None: the process's whole share."""
        if settings.compile:
            self._network.compile()
        self._trained_parameters = list(trained.parameters())
        average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)
        self._optimizer = make_optimiser(trained, settings)
        self._share_done = share_done
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._learning_rate_share)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.device.type == "cuda" and settings.precision == "float16"
        )

    @property
    def averaged_model(self) -> nn.Module:
        """The network with averaged weights, which samples are drawn from."""
        module: nn.Module = self._average.module
        return module

    def _learning_rate_share(self, step: int) -> float:
        return learning_rate_share(step, self.preset.optimisation, self._share_done() if self._share_done else None)

    def training_step(self, micro_batches: Iterable[FramePair], noise: torch.Generator | None = None) -> float:
        """Take one optimiser step on this process's share of a batch and return the whole batch's mean loss.

        The micro batches hold the pairs at the positions that ``MicroBatches`` gives, in its order. A step whose loss
        or gradient is not finite changes neither the weights nor their average, and is counted.

        Args:
            micro_batches: The pairs.
            noise: One source of the noise and the dropped conditions of all pairs, on any device. None: each pair has
                its own, on the CPU, so that the step does not depend on micro batches and processes; a fast GPU waits
                for them.

        Raises:
            RunError: The step has left weights that are not finite.

        """
        settings = self.preset.optimisation
        share = settings.batch_size // self.process.count
        first = self.step * settings.batch_size + self.process.rank * share
        timesteps = self._timesteps()[self.process.rank * share :]
        total = torch.zeros((), device=self.device)
        self._optimizer.zero_grad(set_to_none=True)
        done = 0
        for batch in micro_batches:
            count = len(batch.task)
            draws = noise or [pair_generator(settings.seed, first + done + pair) for pair in range(count)]
            with self._gradients_stay_here(done + count < share):
                losses = self.losses(self._network, batch, timesteps[done : done + count], draws, drops=True)
                self._scaler.scale(losses.sum() / share).backward()  # type: ignore[no-untyped-call]
            total += losses.detach().sum()
            done += count
        if done != share:
            raise ValueError(f"a step takes {share} pairs of each process, got {done}")
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained_parameters, settings.max_gradient_norm)
        found = torch.stack([total, norm.to(total)])
        if self.process.count > 1:
            torch.distributed.all_reduce(found)
        loss, norm_of_all = found.tolist()
        self.step += 1
        if math.isfinite(loss) and math.isfinite(norm_of_all):
            self._scaler.step(self._optimizer)
            self._require_finite_weights()
            self._average.update_parameters(self.model)
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self._scaler.update()
        with warnings.catch_warnings():  # where the first step of all is skipped
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before", UserWarning)
            self._schedule.step()
        return float(loss) / settings.batch_size

    def find_micro_batch(self, pair: FramePair) -> int:
        """Find by trying how many pairs go through the network together on this device, and keep to it.

        Nothing that a step depends on is changed.

        Args:
            pair: Any pair, as a batch of one.

        Returns:
            The number, which divides the process's share of a batch.

        Raises:
            RunError: A single pair does not fit.

        """
        settings = self.preset.optimisation
        share = settings.batch_size // self.process.count

        def attempt(count: int) -> None:
            batch = FramePair(*(field.repeat_interleave(count, 0) for field in pair))
            draws = [pair_generator(settings.seed, position) for position in range(count)]
            try:
                held = self._room_of_optimiser()
                # What is not compiled: a compiler would take minutes for each number.
                losses = self.losses(self._trained.forward, batch, torch.zeros(count).long(), draws, drops=True)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                del held, losses
            finally:
                self._optimizer.zero_grad(set_to_none=True)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

        self.micro_batch = largest_that_fits(share, attempt)
        if self.micro_batch is None:
            raise RunError("one pair and the network do not fit into the GPU's memory", advice(share, 1))
        return self.micro_batch

    def _room_of_optimiser(self) -> list[Tensor]:
        """Return as much memory as a step takes beside the network: the optimiser's, unless it has it, and DDP's."""
        copies = (0 if self._optimizer.state else 2) + (self._distributed is not None)
        return [torch.empty_like(parameter) for parameter in self._trained_parameters for _ in range(copies)]

    def _require_finite_weights(self) -> None:
        largest = nn.utils.get_total_norm(self._trained_parameters, norm_type=math.inf)
        if not math.isfinite(float(largest)):
            raise RunError(
                f"step {self.step} has left weights that are not finite",
                "--resume goes on from the last checkpoint: lower the learning rate",
            )

    def _gradients_stay_here(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Let processes add up their gradients once a step, with the last micro batch."""
        if self._distributed is None or not more_to_come:
            return nullcontext()
        local: AbstractContextManager[None] = self._distributed.no_sync()
        return local

    def _timesteps(self) -> Tensor:
        """Return the timesteps of the next step's whole batch."""
        settings, diffusion = self.preset.optimisation, self.preset.diffusion
        draws = torch.Generator().manual_seed(seed_of(settings.seed, self.step, 3))
        count, steps = settings.batch_size, self.diffusion.steps
        return spread_timesteps(count, steps, draws, diffusion.timesteps, diffusion.few_steps)

    def losses(
        self, model: Callable[..., Any], batch: FramePair, timesteps: Tensor, draws: Draws, drops: bool = False
    ) -> Tensor:
        """Return each pair's loss (N,) at its timestep, with noise (and dropped conditions) from ``draws``.

        Where ``model`` is an ``AlignedDiT``, the loss of its alignment is part of it.
        """
        batch = FramePair(*(field.to(self.device, non_blocking=True) for field in batch))
        latent = encode_images(batch.target_image, self.autoencoder, draws)
        target_cond, ref_cond, task = pair_conditions(batch, self.autoencoder, draws)
        if drops:
            target_cond, ref_cond, task = drop_conditions(target_cond, ref_cond, task, self.preset.dropout, draws)
        timesteps = timesteps.to(self.device)
        noise = draw_noise(latent.shape, self.device, draws)
        noisy = self.diffusion.add_noise(latent, noise, timesteps)
        with autocast(self.device, self.preset.optimisation.precision, on_cpu=True):
            output = model(noisy, timesteps, target_cond, ref_cond, task)
        known = batch.target_weight.float() / 255
        aligned = torch.zeros((), device=self.device)
        if self.preset.alignment is not None and isinstance(output, tuple):
            output, projected = output
            features = self._encoder(batch.target_image)
            aligned = self.preset.alignment.weight * alignment_loss(projected, features, known)
        weight = F.interpolate(known, latent.shape[-2:], mode="area")
        return self.diffusion.training_loss(output, latent, noise, timesteps, weight).total + aligned

    def validate(self, batches: list[FramePair]) -> ConditionFollowing:
        """Measure, with the averaged weights, how much the loss owes to the target's keypoints.

        Batches go through the network in micro batches; neither their size nor the number of processes is seen in the
        result, but for rounding.
        """
        settings = self.preset.optimisation
        most = self.micro_batch or max(settings.batch_size // self.process.count, 1)

        def losses(batch: FramePair, timesteps: Tensor, draws: torch.Generator) -> Tensor:
            count = len(batch.task)
            noise = BatchNoise(draws, count)
            found = []
            for first in range(0, count, most):
                part = slice(first, first + most)
                pairs = FramePair(*(field[part] for field in batch))
                of_part = draws if count <= most else PartNoise(noise, first)
                with torch.no_grad():
                    found.append(self.losses(self.averaged_model, pairs, timesteps[part], of_part))
            return torch.cat(found)

        return condition_following(losses, batches, self.diffusion.steps, few_steps=self.preset.diffusion.few_steps)

    def draw(self, references: Sequence[Frame], targets: Sequence[Frame]) -> ByteArray:
        """Draw each reference in its target's pose, with the averaged weights, as a figure (H, W, 3)."""
        network = TrainedPrecision(self.averaged_model, self.preset.optimisation)
        sampler = Sampler(network, self.autoencoder, self.preset)
        return figure(references, targets, list(gesture_transfer(sampler, references, targets)))

    def start_from(self, path: str, on_note: Callable[[str], None] | None = None) -> None:
        """Load weights to start from: published FoundHand, an ImageNet DiT, or ours, a folder of a run included.

        Weights of a network without geometry go into one with it: its embeddings stay zero, and say nothing at first.
        Those of another size of image go in with their positions resampled.

        Args:
            path: Path or URL of a file, or of a run's or checkpoint's folder.
            on_note: Called with a line on what of the file is not used, or what it does not say.

        Raises:
            UsageError: The weights fit, and mean something else: their output was another, or other heads saw them.
            WeightsError: The weights are missing, or of a network of other sizes.

        """
        stored = first_weights(path)
        if is_imagenet_dit(stored.tensors):
            state = import_imagenet_dit(stored.tensors, self.model)
        else:
            state = by_our_names(stored.tensors, path, on_note)
        state = with_geometry(at_size(state, self.preset.model, path, on_note), self.model)
        if how := misfit(self.model, state):
            fits = fitting_presets(state)
            hint = f": {' or '.join(fits)}" if fits else ""
            raise WeightsError(f"{path} does not fit this network: {how}", f"choose the preset of its size{hint}")
        require_same_meaning(stored, self.preset, path, on_note)
        self.licences.update(training_licences(averaged_weights(path), stored))
        for network in (self.model, self.averaged_model):
            network.load_state_dict(state)

    def save(self, run_url: str, watched: Mapping[str, Any] | None = None) -> str:
        """Save a checkpoint of the run and return its URL.

        Args:
            run_url: Path or URL of the run's folder.
            watched: Further plain values, which ``load`` gives back.

        Raises:
            DamagedWeightsError: The weights are not finite.

        """
        return save_checkpoint(
            run_url,
            self.step,
            self.model,
            self.averaged_model,
            self._optimizer,
            self.preset.model_dump(mode="json"),
            schedule=self._schedule,
            data_state={
                "scaler": self._scaler.state_dict(),
                "projection": self._aligned.projection.state_dict() if self._aligned else {},
                "averaged": int(self._average.n_averaged),
                "skipped": self.skipped,
                "skipped_in_a_row": self.skipped_in_a_row,
                "watched": dict(watched or {}),
            },
            licences=sorted(self.licences),
            keep_last=self.preset.monitoring.keep_last,
        )

    def load(self, checkpoint_url: str) -> dict[str, Any]:
        """Go on from a checkpoint, and return what ``save`` was given to watch; nothing in earlier versions' ones.

        The position in the data is the step times the batch size.

        Raises:
            DamagedWeightsError: The checkpoint cannot be read, or holds numbers that are not finite.
            WeightsError: It is of a network of other sizes.

        """
        resumed = load_checkpoint(
            checkpoint_url,
            self.model,
            self.averaged_model,
            self._optimizer,
            schedule=self._schedule,
        )
        if self._scaler.is_enabled() and resumed.data_state["scaler"]:  # a CPU's steps have none
            self._scaler.load_state_dict(resumed.data_state["scaler"])
        if self._aligned is not None:
            self._aligned.projection.load_state_dict(resumed.data_state["projection"])
        state = resumed.data_state
        self.step = resumed.step
        self.licences.update(resumed.licences or (UNKNOWN_LICENCE,))
        for group in self._optimizer.param_groups:  # by this run's schedule: its length may have changed
            group["lr"] = group["initial_lr"] * self._learning_rate_share(self.step)
        self.skipped, self.skipped_in_a_row = state.get("skipped", 0), state.get("skipped_in_a_row", 0)
        # Where it is 0, the next update copies the weights.
        self._average.n_averaged.fill_(state.get("averaged", resumed.step))
        watched: dict[str, Any] = state.get("watched", {})
        return watched
