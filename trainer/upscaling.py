"""Super-resolution of generated images: the latent diffusion upscaler that diffusers keeps, four times as wide.

Ours, not the paper's, which draws 256 px. The upscaler (Rombach et al. 2022, High-Resolution Image Synthesis with
Latent Diffusion Models, section 4.4) knows nothing of hands: it sharpens what it is given, extra fingers included.
"""

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F

from handdata.schemas import WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.memory import memory_errors
from handdata.trainer.weights import told

STEPS: Final = 100
"""Denoising steps, as many as diffusers takes."""
_MULTIPLE: Final = 32
"""Sides that the network takes are multiples of this; others are grown, and cut again."""


class Upscaler:
    """diffusers' ``LDMSuperResolutionPipeline``."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        """Load from a folder in diffusers' layout: ``unet``, ``vqvae`` and ``scheduler``.

        Only these three kinds of parts are loaded, whatever the folder's index names.

        Raises:
            WeightsError: A part is missing, or not readable.

        """
        # Here, and by its module: it takes seconds, and diffusers hides it where transformers is missing, which it does
        # without.
        import diffusers
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import (
            LDMSuperResolutionPipeline,
        )
        from diffusers.utils import logging

        def load(name: str, part: str, **options: object) -> Any:
            kind: Any = getattr(diffusers, name)  # which carries no types
            return kind.from_pretrained(str(folder), subfolder=part, local_files_only=True, **options)

        verbosity = logging.get_verbosity()
        logging.set_verbosity(50)  # critical: it tells of each file that is a .bin
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions of its own libraries
                unet, vqvae = (
                    load(name, part, low_cpu_mem_usage=False)
                    for name, part in (("UNet2DModel", "unet"), ("VQModel", "vqvae"))
                )
                scheduler = load("DDIMScheduler", "scheduler")
        except Exception as error:  # torch's and diffusers' own, of damaged files
            raise WeightsError(
                f"cannot load the upscaler in {folder}: {told(error)}",
                "it holds the folders unet, vqvae and scheduler of diffusers' LDMSuperResolutionPipeline",
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        for part in (unet, vqvae):
            part.eval().requires_grad_(False)
        pipeline: Any = LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(device)
        self.factor: int = 2 ** (len(vqvae.config.block_out_channels) - 1)
        """How many times as wide and high images become."""

    def enlarge(self, image: ByteArray, seed: int = 0) -> ByteArray:
        """Return an image (H, W, 3) RGB as one of (factor H, factor W, 3); the same seed gives the same one."""
        height, width = image.shape[:2]
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        grown = F.pad(pixels, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="replicate")
        with memory_errors(f"enlarging an image of {width} x {height}", "enlarge on the CPU with --device cpu"):
            (enlarged,) = self._pipeline(
                grown,
                num_inference_steps=STEPS,
                eta=0.0,  # more adds noise of the global generator, which no seed of ours reaches
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
        cut = enlarged[: self.factor * height, : self.factor * width]
        return np.asarray(np.round(cut * 255).clip(0, 255), dtype=np.uint8)
