"""Settings of each part of the trainer, and the table of presets.

One frozen pydantic model a part; unknown keys are errors. This module imports no torch, so that the command line can
show and check settings at once. What a run was trained with is embedded in its checkpoints as ``Preset.model_dump()``.
"""

import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from handdata.schemas import UsageError, known_names

AutoencoderKind = Literal["pixel", "sd-vae", "taef2"]
SamplerName = Literal["ddpm", "ddim", "dpm++", "unipc"]
PairTask = Literal["pose", "view", "video"]
"""What lies between the frames of a scored pair: another moment of the video, another camera, or a run of frames."""
Probability = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """Base of all settings: frozen; unknown keys, and numbers that are not finite, are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AutoencoderConfig(Config):
    """Which autoencoder turns images into latents."""

    kind: AutoencoderKind = "sd-vae"
    weights: str | None = None
    """Folder, URL or Hugging Face name of the weights; None: the autoencoder's own default."""

    def changed(self, kind: AutoencoderKind | None, weights: str | None) -> "AutoencoderConfig":
        """Return these settings with another kind or other weights, where given."""
        kept = self.weights if kind in (None, self.kind) else None
        return AutoencoderConfig(kind=kind or self.kind, weights=weights or kept)


class GeometryConfig(Config):
    """What the network computes of hands without learning it, inside its forward pass; by default nothing, as
    published. ``docs/results/geometry.md`` has what each is worth."""

    limbs: bool = False
    """Show target and reference maps of their limbs: five fingers and the palm of each hand, a channel each."""
    reference_at_target: bool = False
    """Show the reference where the target is drawn: its patches are added to the target's tokens, with those of the
    reference carried to the target's pose (unless ``residual = "reference"``). Otherwise attention has to find them."""
    residual: Literal["none", "reference", "carried"] = "none"
    """What the predicted clean latent is a difference from: nothing (published), the reference as it is (for
    comparison), or the reference carried to the target's pose, bone by bone, its old hand painted out."""
    head: Literal["linear", "conv"] = "linear"
    """What turns tokens into pixels: one linear layer (published), or a small convolutional part behind it, which lets
    patches be large (DiP, arXiv 2511.18822)."""

    @property
    def carries(self) -> bool:
        """Whether the reference is carried to the target's pose."""
        return self.residual == "carried" or (self.reference_at_target and self.residual == "none")


class ConditionsConfig(Config):
    """What the network is shown of hands, for comparisons (``handdata ablate``); by default all, as published."""

    keypoints: Literal["heatmaps", "sum", "skeleton"] = "heatmaps"
    """A heatmap for each of the 42 keypoints (published); the sum of these in one channel, which tells no joint from
    another; or their bones drawn in colours, three channels. The other channels are zero, so that sizes stay."""
    reference_mask: bool = True
    """Whether it sees the reference's hand mask."""


class ModelConfig(Config):
    """Sizes of the two-frame diffusion transformer, as ``DiT`` takes them."""

    input_size: int = Field(gt=0)
    """Height and width of the latent."""
    patch_size: int = Field(default=2, gt=0)
    latent_channels: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    depth: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    learn_sigma: bool = True
    qk_norm: bool = False
    """Layer norm on each head's queries and keys, against attention logits that grow without bound in long runs and low
    precision (Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters, section 2). Published
    weights, made without it, do not fit."""
    geometry: GeometryConfig = GeometryConfig()
    conditions: ConditionsConfig = ConditionsConfig()

    @model_validator(mode="after")
    def _geometry_reads_heatmaps(self) -> Self:
        if self.conditions.keypoints != "heatmaps" and (self.geometry.limbs or self.geometry.carries):
            raise ValueError(f"conditions.keypoints {self.conditions.keypoints}: geometry would show the joints anyway")
        return self

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.input_size % self.patch_size:
            raise ValueError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (two axes of sine and cosine)")
        return self


class DiffusionConfig(Config):
    """The noise schedule: betas linear from start to end (DDPM, section 4)."""

    train_steps: int = Field(default=1000, gt=1)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    prediction: Literal["noise", "clean", "velocity"] = "noise"
    """What the network's output stands for, and what its loss compares: the noise (published), the clean latent, or
    the velocity, which lies between them: signal x noise - noise level x clean latent.
    The clean latent counts strong noise, where conditions matter, most, and small networks draw it without speckles
    (Li and He 2025, Back to Basics: Let Denoising Generative Models Denoise). The velocity is well defined at every
    noise level (Salimans and Ho 2022, Progressive Distillation, section 4)."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Weigh the squared error as if signal-to-noise ratios above this were this: steps of little noise no longer
    outvote the others (Hang et al. 2023, Min-SNR Weighting, section 3.4; 5 there). None: no weights, as published."""
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    """How training draws timesteps: all alike (published), or mostly the middle ones, where the share of the 1000 steps
    is the sigmoid of a standard normal number (Esser et al. 2024, Scaling Rectified Flow Transformers, section 3.1)."""
    few_steps: int | None = Field(default=None, gt=0)
    """Train only at the timesteps that a sampler of so many steps visits, 1 to 4 for small networks: all of their
    training then serves them. Sampling takes as many steps, or a divisor of them. None: all timesteps, as published."""
    loss: Literal["squared", "l1+gradient", "l1+gradient+detail"] = "squared"
    """What the loss makes of an error: its square (published), or, of a predicted clean latent, its size plus that of
    its differences between neighbouring pixels. Squares reward the mean of what may be there, which is blurred. With
    detail, also how far the amount of detail is off in windows of 8 pixels: blur costs, wherever an edge is."""

    @model_validator(mode="after")
    def _loss_is_of_clean_latents(self) -> Self:
        if self.loss != "squared" and (self.prediction != "clean" or self.min_snr_gamma is not None):
            raise ValueError(f"loss {self.loss} needs prediction clean, and knows no min_snr_gamma")
        return self


class DropoutConfig(Config):
    """How often training drops each condition, so that guidance has a null to compare with."""

    reference: Probability = 0.1
    """All reference tokens: latent, heatmaps and mask."""
    target_keypoints: Probability = 0.1
    """The target's 42 heatmaps."""
    reference_mask: Probability = 0.1
    """The reference's hand mask alone."""
    both: Probability = 0.1
    """Reference, target keypoints and task together: the null condition of guidance."""


class OptimisationConfig(Config):
    """Optimiser, batch and length of a training run."""

    optimiser: Literal["adamw", "muon"] = "adamw"
    """AdamW (published), or Muon for the matrices of the blocks beside AdamW for all else: orthogonal steps (Jordan et
    al. 2024), as long as AdamW's would be (Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2)."""
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    """Pairs an optimiser step, over all processes."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Pairs that go through the network together on one device; gradients add up over the process's share of the batch.
    None: on a GPU as many as fit, found by trying; on a CPU the whole share at once. Any value gives the same step."""
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "cosine"] = "none"
    """How the learning rate falls from the end of the warm-up to the run's last step, to a twentieth."""
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations: less memory, a third more
    work."""
    compile: bool = False
    """Compile the network with ``torch.compile``: minutes at the start, faster steps. CPUs need a C++ compiler."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's memory of squared gradients. A run of some hundred steps needs a shorter one: the first gradients are
    large, and would hold the steps down for its whole length."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the first weights, the order of pairs, noise and dropout."""


class AlignmentConfig(Config):
    """Representation alignment: an early block's tokens are drawn towards a frozen encoder's features of the clean
    target (Yu et al. 2025, Representation Alignment for Generation: REPA)."""

    encoder: str = "vit_base_patch14_dinov2.lvd142m"
    """A vision transformer of timm; the default is DINOv2's ViT-B, which REPA uses."""
    weights: str | None = None
    """A local file of its weights (.pth or .safetensors); None: timm downloads them."""
    block: int = Field(default=8, gt=0)
    """The tokens after so many blocks are aligned."""
    weight: float = Field(default=0.5, gt=0)
    """Weight of the alignment beside the denoising loss."""
    hidden_size: int = Field(default=2048, gt=0)
    """Width of the projection from tokens to features, an MLP of three layers."""


class MonitoringConfig(Config):
    """What a run saves and shows of itself, and when it stops."""

    checkpoint_every: int = Field(default=1000, gt=0)
    """Steps between checkpoints; the last step always saves one."""
    keep_last: int = Field(default=3, gt=0)
    """Checkpoints kept, besides the one of the lowest validation loss."""
    validate_every: int = Field(default=1000, gt=0)
    """Steps between validations, where there is a ``val`` split; the last step always validates."""
    pictures_every: int = Field(default=5000, gt=0)
    """Steps between grids of samples; the last step always draws one."""
    pictures: int = Field(default=4, gt=0)
    """Validation pairs in a grid."""
    divergence: float = Field(default=5.0, gt=1)
    """A run stops where its mean loss over 100 steps is this many times the lowest such mean before."""


class SamplingConfig(Config):
    """How samples are drawn."""

    scheduler: SamplerName = "ddpm"
    """The published sampler, or one that needs fewer steps: ``docs/results/sampling.md`` compares them."""
    steps: int = Field(default=250, gt=0)
    guidance_scale: float = Field(default=2.5, ge=0)
    """Scale of reference and pose together, as published."""
    pose_guidance: float | None = Field(default=None, ge=0)
    """Scale of what the pose adds to the reference; None: the guidance scale."""
    appearance_guidance: float | None = Field(default=None, ge=0)
    """Scale of what the reference alone adds to nothing; None: the guidance scale."""
    guided_channels: int | None = Field(default=None, gt=0)
    """Guide the first so many latent channels; None: all (the published sampler: 3)."""
    clip_x0: float | None = Field(default=None, gt=0)
    """Keep each step's estimate of the clean latent within +- this value; 1 for pixels, None for latents."""


BATCH_SIZE: Final = 16
"""Number of images that tasks draw at once where nothing else is said."""


_SCALES: Final = ("guidance_scale", "pose_guidance", "appearance_guidance")
GUIDANCE: Final = (*_SCALES, "guided_channels")
"""Fields of ``SamplingOptions`` that are of guidance."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What a caller chooses for one call of a task.

    Args:
        steps: Number of denoising steps; None takes the preset's.
        guidance_scale: Scale of classifier-free guidance; None takes the preset's, those of pose and appearance
            included.
        seed: Seed of all that is random: the same seed gives the same images.
        sampler: Name of the sampler; None takes the preset's.
        pose_guidance: Scale of the pose alone; None takes the guidance scale, if it is given, or the preset's.
        appearance_guidance: Scale of the reference alone; None as before.
        guided_channels: Number of first latent channels that guidance acts on; None takes the preset's.

    """

    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    sampler: SamplerName | None = None
    pose_guidance: float | None = None
    appearance_guidance: float | None = None
    guided_channels: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("steps", 1, 2**31), ("seed", 0, 2**63), ("guided_channels", 1, 2**31)):
            number = getattr(self, name)
            if number is None:
                continue
            is_whole = isinstance(number, Integral) and not isinstance(number, bool)
            if not is_whole or not least <= int(number) < most:
                raise UsageError(f"{_flag(name)} is {number!r}, and should be a whole number from {least} on")
            object.__setattr__(self, name, int(number))  # arrays give their own kind of numbers
        for name in _SCALES:
            scale: object = getattr(self, name)  # notebooks give anything
            if scale is not None and (isinstance(scale, bool) or not isinstance(scale, Real) or scale < 0):
                raise UsageError(f"{_flag(name)} is {scale!r}, and should be a number from 0 on")
        if self.sampler is not None and self.sampler not in get_args(SamplerName):
            raise UsageError(
                f"--sampler is {self.sampler!r}, and no such sampler is known",
                known_names(str(self.sampler), get_args(SamplerName)),
            )

    def applied_to(self, preset: "Preset") -> SamplingConfig:
        """Return a preset's settings of sampling with these in their place, where they are given.

        Raises:
            UsageError: There are more denoising steps than the noise schedule has, or more guided channels than the
                latent; the network was trained to be sampled otherwise; or a scale is not finite.

        """
        changes = {
            "scheduler": self.sampler,
            "steps": self.steps,
            "guided_channels": self.guided_channels,
            **{name: getattr(self, name) for name in _SCALES},
        }
        kept = preset.sampling
        if self.guidance_scale is not None:  # of pose and appearance alike, unless they are given too
            kept = kept.model_copy(update={"pose_guidance": None, "appearance_guidance": None})
        chosen = kept.model_copy(update={name: value for name, value in changes.items() if value is not None})
        if chosen.steps > preset.diffusion.train_steps:
            raise UsageError(
                f"{chosen.steps} denoising steps are more than the noise schedule has, {preset.diffusion.train_steps}",
                f"choose --steps, or sampling.steps, from 1 to {preset.diffusion.train_steps}",
            )
        few = preset.diffusion.few_steps
        if few and few % chosen.steps:
            raise UsageError(
                f"the network was trained to be sampled in {few} denoising steps, not in {chosen.steps}",
                f"choose --steps, or sampling.steps, such that it divides {few}",
            )
        if few and chosen.steps > 1 and chosen.scheduler != "ddim":  # in a single step all samplers are one
            raise UsageError(
                f"the network was trained at the timesteps that ddim visits, not at those of {chosen.scheduler}",
                "choose --sampler, or sampling.scheduler, ddim",
            )
        for name in _SCALES:
            if not math.isfinite(getattr(chosen, name) or 0):
                raise UsageError(f"{_flag(name)} {getattr(chosen, name)} is no finite number")
        if (chosen.guided_channels or 0) > preset.model.latent_channels:
            raise UsageError(
                f"sampling.guided_channels {chosen.guided_channels} are more channels than the latent has, "
                f"{preset.model.latent_channels}"
            )
        return chosen


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class DataConfig(Config):
    """Which rows of the dataset a run trains on, and in what form."""

    dataset: str = "dataset"
    """Folder of the dataset in the workspace."""
    where: str | None = None
    """An SQL expression over the columns of a sample: ``sharpness > 50 AND NOT array_contains(flags, 'blurry')``."""
    licences: tuple[str, ...] = ()
    """Only rows under these licences, by their ids or names; none named: all."""
    unlabelled_hands: bool = False
    """Also take rows flagged ``unlabelled_hand``. They show a hand without keypoints: training on them teaches to draw
    hands that nobody asked for."""
    no_content: bool = False
    """Also take rows flagged ``no_content``: black frames, noise, one colour."""
    side_unknown: bool = False
    """Also take rows flagged ``side_unknown``: a hand in the rows of the right one that may be a left one."""
    latents: bool = False
    """Read the latents that ``handdata encode`` stored instead of images. Random changes are then those of the stored
    variants."""


class SourceConfig(Config):
    """How one source is mixed with the others."""

    weight: float = Field(default=1.0, ge=0)
    """Multiplies the source's share; 0 leaves it out."""
    video: float | None = Field(default=None, ge=0)
    """Replaces the weight of the kind of pair for this source, as do the next two."""
    view: float | None = Field(default=None, ge=0)
    still: float | None = Field(default=None, ge=0)


class PairConfig(Config):
    """Which references targets are paired with: weights of the kinds of pairs, among those that a row has."""

    video: float = Field(default=0.6, ge=0)
    """Another moment of the same video."""
    view: float = Field(default=0.2, ge=0)
    """The same moment, seen by another camera."""
    still: float = Field(default=0.2, ge=0)
    """No reference. Rows without other moments and views are always stills (and not used at weight 0)."""
    max_gap_s: float = Field(default=5.0, gt=0)
    """Largest time between the frames of a video pair, seconds."""
    max_gap_frames: int = Field(default=150, gt=0)
    """The same, in frame numbers, for videos without time stamps."""
    gap: Literal["uniform", "log-uniform", "exponential"] = "uniform"
    """How the time between the frames is drawn, up to the largest and among the frames that the video has: every time
    alike; every order of magnitude alike (many small motions); falling off exponentially."""
    mean_gap: float = Field(default=0.2, gt=0)
    """Mean of the exponential distribution, as a share of the largest gap."""
    temperature: float = Field(default=1.0, gt=0)
    """A source of n pairs has a share of n^(1 / temperature): 1 is by size, more brings small sources forward."""
    sources: dict[str, SourceConfig] = {}
    """Settings of single sources, by name."""


class AugmentationConfig(Config):
    """Random changes of the images, drawn for each pair."""

    max_gamma: float = Field(default=1.5, ge=1)
    """Gamma is drawn between one over this and this, evenly on a logarithmic scale; 1: none."""
    flip: Probability = 0.5
    """Mirror both frames, left and right hand exchanged."""
    hand_swap: Probability = 0.1
    """Mirror the reference alone, left and right hand exchanged: appearance is carried from one hand to the other."""
    smallest_crop: float = Field(default=0.85, gt=0, le=1)
    """Crops keep between this and all of the image's side."""


class Fork(Config):
    """Another run's checkpoint that a run with other settings began at."""

    run: str
    step: int
    settings: dict[str, Any]
    """Settings of the other run."""


class Preset(Config):
    """All settings of a training run."""

    image_size: int = Field(gt=0)
    """Height and width of training images, pixels."""
    autoencoder: AutoencoderConfig
    model: ModelConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    alignment: AlignmentConfig | None = None
    """None: no alignment."""
    dropout: DropoutConfig = DropoutConfig()
    data: DataConfig = DataConfig()
    pairs: PairConfig = PairConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimisation: OptimisationConfig
    monitoring: MonitoringConfig = MonitoringConfig()
    sampling: SamplingConfig = SamplingConfig()
    init: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """File of the weights that the run started from; None: none."""
    forked_from: tuple[Fork, ...] = Field(default=(), exclude_if=lambda value: not value)
    """What the run was forked from, the first first: what it was trained on before is in these settings."""

    @model_validator(mode="after")
    def _alignment_is_possible(self) -> Self:
        if self.alignment is not None and self.alignment.block > self.model.depth:
            raise ValueError(
                f"alignment.block {self.alignment.block} is beyond the network's {self.model.depth} blocks"
            )
        if self.alignment is not None and self.data.latents:
            raise ValueError("alignment needs images, and data.latents reads stored latents instead")
        return self

    @model_validator(mode="after")
    def _residual_is_of_clean_latents(self) -> Self:
        if self.model.geometry.residual != "none" and self.diffusion.prediction != "clean":
            raise ValueError(f"model.geometry.residual {self.model.geometry.residual} needs diffusion.prediction clean")
        return self

    def trained_for(self, steps: int | None = None, init: str | None = None) -> Self:
        """Return these settings with a number of steps, which a decay follows, and first weights, where given."""
        optimisation = self.optimisation.model_copy(update={"steps": steps or self.optimisation.steps})
        return self.model_copy(update={"optimisation": optimisation, "init": init or self.init})

    def choosing_rows(self, where: str | None = None, licences: Sequence[str] = (), dataset: str | None = None) -> Self:
        """Return these settings with a condition on the rows, a set of licences and a dataset, where they are given."""
        given = {"where": where, "dataset": dataset}
        changes: dict[str, object] = {name: value for name, value in given.items() if value}
        if licences:
            changes["licences"] = tuple(name.strip() for name in licences)
        return self.model_copy(update={"data": self.data.model_copy(update=changes)})


def _foundhand(hidden_size: int, depth: int, num_heads: int, image_size: int = 256) -> Preset:
    """Return the published setting (8 GPUs x 50 pairs, 256 px, Stable Diffusion's latents) at one size of network."""
    return Preset(
        image_size=image_size,
        autoencoder=AutoencoderConfig(kind="sd-vae"),
        model=ModelConfig(
            input_size=image_size // 8,
            latent_channels=4,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            patch_size=2,
        ),
        optimisation=OptimisationConfig(steps=320_000, batch_size=400, learning_rate=1e-5, precision="float16"),
    )


_WITHIN_MINUTES: Final = OptimisationConfig(
    steps=1000,
    batch_size=16,
    learning_rate=3e-3,
    warmup_steps=20,
    decay="cosine",
    weight_decay=0.01,
    adam_beta2=0.95,
    ema_decay=0.98,
)
"""How small networks learn within minutes on two CPU cores."""


def _carried(size: int, optimisation: OptimisationConfig, monitoring: MonitoringConfig | None = None) -> Preset:
    """Return a preset that draws the reference carried to the target's pose anew, in one step, ``size`` pixels wide."""
    return Preset(
        image_size=size,
        autoencoder=AutoencoderConfig(kind="pixel"),
        model=ModelConfig(
            input_size=size,
            patch_size=8,
            latent_channels=3,
            hidden_size=128,
            depth=4,
            num_heads=4,
            learn_sigma=False,
            geometry=GeometryConfig(limbs=True, reference_at_target=True, residual="carried", head="conv"),
        ),
        diffusion=DiffusionConfig(prediction="clean", few_steps=1, loss="l1+gradient"),
        dropout=DropoutConfig(reference=0.05, target_keypoints=0.05, reference_mask=0.05, both=0.0),
        pairs=PairConfig(video=1.0, view=0.0, still=0.0, max_gap_s=1.2),
        augmentation=AugmentationConfig(max_gamma=1.2, hand_swap=0.0, smallest_crop=1.0),
        optimisation=optimisation,
        monitoring=monitoring or MonitoringConfig(),
        sampling=SamplingConfig(scheduler="ddim", steps=1, guidance_scale=1.0, clip_x0=1.0),
    )


PRESETS: Final[dict[str, Preset]] = {
    # Pixels instead of latents: learns hands within minutes on two CPU cores.
    "tiny": Preset(
        image_size=32,
        autoencoder=AutoencoderConfig(kind="pixel"),
        model=ModelConfig(
            input_size=32,
            patch_size=4,
            latent_channels=3,
            hidden_size=128,
            depth=4,
            num_heads=4,
            learn_sigma=False,  # the fast samplers do not use it
        ),
        # Comparing noise, a small network spends its few hundred steps on copying its input, in which conditions play
        # no part: after 400 steps the loss with permuted keypoints was 2% higher, against 17% comparing clean images.
        diffusion=DiffusionConfig(prediction="clean"),
        dropout=DropoutConfig(reference=0.05, target_keypoints=0.05, reference_mask=0.05, both=0.05),
        pairs=PairConfig(video=0.8, view=0.1, still=0.1),
        augmentation=AugmentationConfig(max_gamma=1.2, hand_swap=0.0, smallest_crop=0.95),
        optimisation=_WITHIN_MINUTES,
        sampling=SamplingConfig(scheduler="ddim", steps=25, guidance_scale=1.5, clip_x0=1.0),
    ),
    # 64 px in about an hour on one CPU core, without geometry: kept to compare with.
    "pixel-64": Preset(
        image_size=64,
        autoencoder=AutoencoderConfig(kind="pixel"),
        model=ModelConfig(
            input_size=64,
            patch_size=8,
            latent_channels=3,
            hidden_size=256,
            depth=6,
            num_heads=4,
            learn_sigma=False,
        ),
        diffusion=DiffusionConfig(prediction="clean"),
        dropout=DropoutConfig(reference=0.05, target_keypoints=0.05, reference_mask=0.05, both=0.05),
        pairs=PairConfig(video=0.95, view=0.0, still=0.05, max_gap_s=1.2),
        # No crops: in a stable crop the background stands still, and is there to be copied.
        augmentation=AugmentationConfig(max_gamma=1.2, hand_swap=0.0, smallest_crop=1.0),
        optimisation=OptimisationConfig(
            steps=6000,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=100,
            decay="cosine",
            weight_decay=0.01,
            adam_beta2=0.95,
            ema_decay=0.995,
            precision="bfloat16",
        ),
        monitoring=MonitoringConfig(checkpoint_every=250, validate_every=200, pictures_every=500),
        sampling=SamplingConfig(scheduler="ddim", steps=10, guidance_scale=1.0, clip_x0=1.0),
    ),
    # 64 px in a minute or two of two CPU cores: the demo. The geometry draws hands that follow the keypoints; the
    # network mends what it leaves: holes, the forearm, what was behind the old hand.
    "carried-64": _carried(64, _WITHIN_MINUTES.model_copy(update={"steps": 500, "batch_size": 4})),
    # The same at 128 px in about an hour of two CPU cores: `make learn`.
    "carried-128": _carried(
        128,
        _WITHIN_MINUTES.model_copy(
            update={"steps": 5000, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 100, "ema_decay": 0.995}
        ),
        MonitoringConfig(checkpoint_every=250, validate_every=250, pictures_every=1000),
    ),
    # Sizes S, B, L and XL of DiT (Peebles and Xie 2023, table 1), with patch 2.
    "foundhand-s": _foundhand(hidden_size=384, depth=12, num_heads=6),
    "foundhand-b": _foundhand(hidden_size=768, depth=12, num_heads=12),
    "foundhand-l": _foundhand(hidden_size=1024, depth=24, num_heads=16),
    "foundhand-xl": _foundhand(hidden_size=1152, depth=28, num_heads=16),
    # Ours, not the paper's: latents of 64 x 64. It takes the weights of 256 px, with their positions resampled.
    "foundhand-xl-512": _foundhand(hidden_size=1152, depth=28, num_heads=16, image_size=512),
}
"""Presets by the name that ``handdata train --preset`` takes."""

PURPOSES: Final[dict[str, str]] = {
    "tiny": "first look: a CPU learns hands of 32 px within minutes",
    "pixel-64": "64 px in about an hour of one CPU core, without geometry",
    "carried-64": "64 px in a minute or two of two CPU cores: the demo",
    "carried-128": "128 px in about an hour of two CPU cores: the built-in network",
    "foundhand-s": "the published setting with a network of 33 M parameters",
    "foundhand-b": "the published setting with a network of 131 M parameters",
    "foundhand-l": "the published setting with a network of 459 M parameters",
    "foundhand-xl": "the published setting: FoundHand, 676 M parameters",
    "foundhand-xl-512": "ours: that network at 512 px, from weights of 256 px",
}
"""What each preset is for."""
_PRESET: Final = "preset"
"""Name of the line of a file of settings that says which preset it changes."""


def default_preset(on_gpu: bool) -> str:
    """Return the name of the preset that trains where none is named: the published one on a GPU, else the smallest."""
    return "foundhand-xl" if on_gpu else "tiny"


def as_toml(name: str) -> str:
    """Return a preset of the table as a file of settings like those that ``train --config`` takes.

    It names the preset, because what is None there can only be a comment.
    """
    document = {_PRESET: name} | load_preset(name).model_dump(mode="json")
    return "\n".join(_toml_lines(document, "")).strip() + "\n"


def _toml_lines(settings: Mapping[str, Any], section: str) -> Iterator[str]:
    for name, value in settings.items():
        if value is None:
            yield f"# {name} is not set"
        elif not isinstance(value, dict):
            yield f"{name} = {json.dumps(value)}"
    for name, value in settings.items():
        if isinstance(value, dict):
            path = f"{section}{name}"
            yield from ("", f"[{path}]", *_toml_lines(value, f"{path}."))


def load_preset(name: str | None, changes: Path | None = None, otherwise: Callable[[], str] = lambda: "tiny") -> Preset:
    """Return a preset of the table, with the settings that a TOML file changes.

    The file nests like ``Preset``: ``[optimisation]`` with ``learning_rate = 1e-4``, and so on. ``preset = "tiny"``
    above them says which preset it changes.

    Args:
        name: Name of the preset; None takes what the file names.
        changes: File of settings.
        otherwise: Called for the name where neither says it.

    Raises:
        UsageError: No preset has this name, or the file does not parse, changes another preset, or names an unknown or
            wrong setting.

    """
    document = {} if changes is None else _read_toml(changes)
    changed = document.pop(_PRESET, None)
    name = name or changed or otherwise()
    if not isinstance(name, str) or name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", known_names(str(name), PRESETS))
    if changed not in (None, name):
        raise UsageError(
            f"{changes} has the settings of the preset {changed}, not of {name}",
            f"say --preset {changed}, or remove its line `{_PRESET} = ...`: what is not set there is then {name}'s",
        )
    if changes is None:
        return PRESETS[name]
    try:
        return Preset.model_validate(merged(PRESETS[name].model_dump(), document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{changes}, setting {where}: {first['msg']}", f"`handdata presets {name}` shows all settings"
        ) from None


def read_changes(file: Path) -> dict[str, Any]:
    """Return the settings that a TOML file holds, nested like ``Preset``, whichever preset it changes.

    Raises:
        UsageError: It cannot be read, or is not TOML.

    """
    return {name: value for name, value in _read_toml(file).items() if name != _PRESET}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8, as TOML is: {error.reason} at byte {error.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}") from None


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others in their place."""
    result = dict(settings)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
