"""Autoencoders: images to latents and back, behind one small interface.

Images are (N, 3, H, W) in [-1, 1]; latents (N, C, H / factor, W / factor), already scaled to about unit variance as the
network sees them, so that nobody else multiplies by a scale. H and W are multiples of the factor.
"""

import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from handdata.schemas.errors import UsageError, WeightsError
from handdata.trainer.diffusion import Draws, draw_noise
from handdata.trainer.presets import AutoencoderConfig, Preset
from handdata.trainer.weights import read_weights, require_hub, told

STABLE_DIFFUSION_VAE: Final = "stabilityai/sd-vae-ft-mse"
"""Hugging Face name of the VAE that DiT and FoundHand were trained with, used where no weights are given."""


@dataclass(frozen=True)
class Posterior:
    """An encoder's answer: a Gaussian over scaled latents (N, C, h, w), or a point where ``log_variance`` is None."""

    mean: Tensor
    log_variance: Tensor | None = None

    def sample(self, draws: Draws | None = None) -> Tensor:
        """Draw latents (N, C, h, w); the published training and sampling use draws, not the mean."""
        if self.log_variance is None:
            return self.mean
        noise = draw_noise(self.mean.shape, self.mean.device, draws).to(self.mean.dtype)
        return self.mean + (0.5 * self.log_variance).exp() * noise


class Autoencoder(Protocol):
    """What the trainer and the samplers ask of an autoencoder. Frozen: both ways run without gradients."""

    latent_channels: int
    factor: int
    """Image pixels a latent pixel, each way."""
    scale: float
    """Scaled latent = scale x the autoencoder's own."""

    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior over scaled latents of images in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images, clamped to [-1, 1], of scaled latents."""
        ...


class PixelAutoencoder:
    """The identity: diffusion in pixel space, for small images on a CPU."""

    latent_channels = 3
    factor = 1
    scale = 1.0

    def encode(self, images: Tensor) -> Posterior:
        """Return the images as latents."""
        return Posterior(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents as images."""
        return latents.clamp(-1, 1)


class StableDiffusionVAE:
    """Stable Diffusion's variational autoencoder, as published: scale 0.18215, latents drawn from the posterior."""

    scale = 0.18215

    def __init__(self, weights: str = STABLE_DIFFUSION_VAE, device: str | torch.device = "cpu") -> None:
        """Load from a folder in diffusers' layout or a Hugging Face name.

        Raises:
            WeightsError: The weights cannot be loaded.

        """
        from diffusers import AutoencoderKL  # here: its modules take two seconds, and few presets need them

        def load(here: bool) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions of its own libraries
                # The last option is the default where accelerate is not installed, and then diffusers says so.
                return AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
                    weights, use_safetensors=True, local_files_only=here, low_cpu_mem_usage=False
                )

        hint = "set autoencoder.weights to a folder with config.json and diffusion_pytorch_model.safetensors"
        if weights == STABLE_DIFFUSION_VAE:
            hint = f"run `handdata weights fetch sd_vae`, or {hint}"
        try:
            try:
                vae = load(here=True)  # the Hub is not asked for what it gave before
            except OSError:
                if Path(weights).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
                    raise
                require_hub(f"cannot load the autoencoder {weights}: it", hint)
                vae = load(here=False)
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot load the autoencoder {weights}: {told(error)}", hint) from error
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.latent_channels = int(vae.config.latent_channels)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior, both moments scaled."""
        posterior = self.vae.encode(images).latent_dist
        return Posterior(posterior.mean * self.scale, posterior.logvar + 2 * math.log(self.scale))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the decoder's images."""
        images: Tensor = self.vae.decode(latents / self.scale).sample
        return images.clamp(-1, 1)


class TAEF2:
    """The tiny autoencoder for FLUX.2's latents (madebyollin/taesd, MIT): 32 channels, factor 8, no posterior variance.

    Two small convolutional networks of 64 channels, 2.7 MB of weights, that run on a CPU.
    """

    latent_channels = 32
    factor = 8
    scale = 1.27
    """Ours: one over the latents' standard deviation, 0.78 over ten hand photographs at 256 px."""

    def __init__(self, weights: str, device: str | torch.device = "cpu") -> None:
        """Load ``taef2_encoder.pth`` and ``taef2_decoder.pth`` from a folder or URL.

        Raises:
            WeightsError: A file is missing, or holds other weights.

        """
        self.encoder = _load_taef2(_taef2_encoder(), f"{weights}/taef2_encoder.pth").to(device)
        self.decoder = _load_taef2(_taef2_decoder(), f"{weights}/taef2_decoder.pth").to(device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Posterior:
        """Return the latents, as a posterior without variance."""
        return Posterior(self.encoder((images + 1) / 2) * self.scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the decoder's images."""
        images: Tensor = self.decoder(latents / self.scale) * 2 - 1
        return images.clamp(-1, 1)


def load_autoencoder(config: AutoencoderConfig, device: str | torch.device = "cpu") -> Autoencoder:
    """Return the autoencoder that a configuration names, with its weights.

    Raises:
        WeightsError: The weights are missing or cannot be loaded.

    """
    if config.kind == "pixel":
        return PixelAutoencoder()
    if config.kind == "sd-vae":
        return StableDiffusionVAE(config.weights or STABLE_DIFFUSION_VAE, device)
    if config.weights is None:
        raise WeightsError(
            "the autoencoder taef2 needs its weights",
            "set autoencoder.weights to a folder with taef2_encoder.pth and taef2_decoder.pth of madebyollin/taesd",
        )
    return TAEF2(config.weights, device)


def require_fit(preset: Preset, autoencoder: Autoencoder) -> None:
    """Check that the network takes the latents that an autoencoder makes of a preset's images.

    Raises:
        UsageError: It does not.

    """
    model, factor = preset.model, autoencoder.factor
    if preset.image_size != model.input_size * factor:
        raise UsageError(
            f"image_size {preset.image_size} does not fit model.input_size {model.input_size}: a latent pixel of the "
            f"autoencoder {preset.autoencoder.kind} is {factor} image pixels wide",
            f"set image_size to {model.input_size * factor}, or model.input_size to {preset.image_size // factor}",
        )
    if model.latent_channels != autoencoder.latent_channels:
        raise UsageError(
            f"model.latent_channels {model.latent_channels} does not fit the autoencoder {preset.autoencoder.kind}, "
            f"which has {autoencoder.latent_channels}",
            f"set model.latent_channels to {autoencoder.latent_channels}",
        )


# Layers sit where the published state dicts number them.
_TAEF2_WIDTH: Final = 64


class _ResidualBlock(nn.Module):
    """Three convolutions beside a skip; at the smallest resolution a normalised bottleneck ("pool") comes before."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        width, wide = _TAEF2_WIDTH, 4 * _TAEF2_WIDTH
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, width, 1, bias=False),
            )
            if normalised
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class _SoftClamp(nn.Module):
    """Keeps latents within +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _taef2_encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, _TAEF2_WIDTH), _ResidualBlock(normalised=False)]
    for halving in range(3):
        layers.append(_conv(_TAEF2_WIDTH, _TAEF2_WIDTH, stride=2, bias=False))
        layers.extend(_residual_blocks(3, normalised=halving == 2))
    return nn.Sequential(*layers, _conv(_TAEF2_WIDTH, TAEF2.latent_channels))


def _taef2_decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), _conv(TAEF2.latent_channels, _TAEF2_WIDTH), nn.ReLU()]
    for doubling in range(3):
        layers.extend(_residual_blocks(3, normalised=doubling == 0))
        layers.append(nn.Upsample(scale_factor=2))
        layers.append(_conv(_TAEF2_WIDTH, _TAEF2_WIDTH, bias=False))
    return nn.Sequential(*layers, _ResidualBlock(normalised=False), _conv(_TAEF2_WIDTH, 3))


def _residual_blocks(count: int, normalised: bool) -> Iterable[nn.Module]:
    return (_ResidualBlock(normalised) for _ in range(count))


def _conv(channels_in: int, channels_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, stride=stride, bias=bias)


def _load_taef2(network: nn.Sequential, path: str) -> nn.Sequential:
    try:
        network.load_state_dict(read_weights(path))
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold the weights of TAEF2: {told(error)}") from error
    return network.eval().requires_grad_(False)
