"""One optimisation step, and the state that a checkpoint keeps."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from handdata.schemas import WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.alignment import AlignedDiT, ImageEncoder, alignment_loss
from handdata.trainer.autoencoders import Autoencoder, load_autoencoder
from handdata.trainer.checkpoints import load_checkpoint, save_checkpoint
from handdata.trainer.conditioning import drop_conditions
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.batch import FramePair
from handdata.trainer.diffusion import Diffusion, Draws, draw_noise
from handdata.trainer.figures import figure
from handdata.trainer.following import ConditionFollowing, condition_following
from handdata.trainer.inputs import encode_images, pair_conditions
from handdata.trainer.model import DiT
from handdata.trainer.presets import Preset
from handdata.trainer.schedule import (
    Process,
    learning_rate_share,
    pair_generator,
    seed_of,
    spread_timesteps,
)
from handdata.trainer.tasks import Sampler, gesture_transfer
from handdata.trainer.weights import import_foundhand, import_imagenet_dit, read_weights


class Trainer:
    """The network under training and all that changes with it, from step to step."""

    def __init__(self, preset: Preset, device: str, process: Process = Process()) -> None:
        settings = preset.optimisation
        self.preset = preset
        self.process = process
        self.device = torch.device(device)
        self.step = 0
        self.diffusion = Diffusion(preset.diffusion).to(self.device)
        self.autoencoder: Autoencoder = load_autoencoder(preset.autoencoder, self.device)
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
        if settings.compile:
            self._network.compile()
        self._trained_parameters = list(trained.parameters())
        average = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self.model, multi_avg_fn=average)
        self._optimizer = torch.optim.AdamW(
            self._trained_parameters,
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_share(step, settings)
        )
        self._precision = getattr(torch, settings.precision)
        # On a CPU bfloat16 pays, two to three times where it has matrix units for it; float16 does not.
        self._autocasts = self._precision == torch.bfloat16 or (
            self._precision == torch.float16 and self.device.type == "cuda"
        )
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self._autocasts and self._precision == torch.float16
        )

    @property
    def averaged_model(self) -> nn.Module:
        """The network with averaged weights, which samples are drawn from."""
        module: nn.Module = self._average.module
        return module

    def training_step(self, micro_batches: Iterable[FramePair]) -> float:
        """Take one optimiser step on this process's share of a batch and return the whole batch's mean loss.

        The micro batches hold the pairs at the positions that ``MicroBatches`` gives, in its order.
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
            draws = [pair_generator(settings.seed, first + done + pair) for pair in range(count)]
            with self._gradients_stay_here(done + count < share):
                losses = self.losses(self._network, batch, timesteps[done : done + count], draws, drops=True)
                self._scaler.scale(losses.sum() / share).backward()  # type: ignore[no-untyped-call]
            total += losses.detach().sum()
            done += count
        if done != share:
            raise ValueError(f"a step takes {share} pairs of each process, got {done}")
        if self.process.count > 1:
            torch.distributed.all_reduce(total)
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._trained_parameters, settings.max_gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.update_parameters(self.model)
        self.step += 1
        return float(total) / settings.batch_size

    def _gradients_stay_here(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Let processes add up their gradients once a step, with the last micro batch."""
        if self._distributed is None or not more_to_come:
            return nullcontext()
        local: AbstractContextManager[None] = self._distributed.no_sync()
        return local

    def _timesteps(self) -> Tensor:
        """Return the timesteps of the next step's whole batch."""
        settings = self.preset.optimisation
        draws = torch.Generator().manual_seed(seed_of(settings.seed, self.step, 3))
        return spread_timesteps(settings.batch_size, self.diffusion.steps, draws, self.preset.diffusion.timesteps)

    def losses(
        self, model: nn.Module, batch: FramePair, timesteps: Tensor, draws: Draws, drops: bool = False
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
        with torch.autocast(self.device.type, self._precision, enabled=self._autocasts):
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
        """Measure, with the averaged weights, how much the loss owes to the target's keypoints."""

        def losses(batch: FramePair, timesteps: Tensor, draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                return self.losses(self.averaged_model, batch, timesteps, draws)

        return condition_following(losses, batches, self.diffusion.steps)

    def draw(self, references: Sequence[Frame], targets: Sequence[Frame]) -> ByteArray:
        """Draw each reference in its target's pose, with the averaged weights, as a figure (H, W, 3)."""
        sampler = Sampler(self.averaged_model, self.autoencoder, self.preset)
        return figure(references, targets, list(gesture_transfer(sampler, references, targets)))

    def start_from(self, path: str) -> None:
        """Load weights to start from: published FoundHand, an ImageNet DiT, or ours.

        Raises:
            WeightsError: The weights are missing, or of a network of other sizes.

        """
        state = read_weights(path)
        if "x_embedder.proj.weight" in state:
            state = import_imagenet_dit(state, self.model)
        elif "feature_aligned_embedder.proj.weight" in state:
            state = import_foundhand(state)
        for network in (self.model, self.averaged_model):
            try:
                network.load_state_dict(state)
            except RuntimeError as error:
                raise WeightsError(
                    f"{path} does not fit this network: {error}", "choose the preset of its size"
                ) from None

    def save(self, run_url: str, validation: ConditionFollowing | None = None) -> str:
        """Save a checkpoint of the run, as good as its validation found it, and return its URL."""
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
            },
            keep_last=self.preset.monitoring.keep_last,
            validation_loss=None if validation is None else validation.true_loss,
        )

    def load(self, checkpoint_url: str) -> None:
        """Go on from a checkpoint. The position in the data is the step times the batch size."""
        resumed = load_checkpoint(
            checkpoint_url,
            self.model,
            self.averaged_model,
            self._optimizer,
            schedule=self._schedule,
        )
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(resumed.data_state["scaler"])
        if self._aligned is not None:
            self._aligned.projection.load_state_dict(resumed.data_state["projection"])
        self.step = resumed.step
        self._average.n_averaged.fill_(resumed.step)  # else the next update would copy the weights instead
