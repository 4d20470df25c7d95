"""What the network receives: latents and conditions of a batch of pairs."""

import torch
from torch import Tensor

from handdata.trainer.autoencoders import Autoencoder, Posterior
from handdata.trainer.conditioning import inside_image, reference_condition, target_condition, to_latent_pixels
from handdata.trainer.data.batch import FramePair
from handdata.trainer.diffusion import Draws


def encode_images(images: Tensor, autoencoder: Autoencoder, draws: Draws | None = None) -> Tensor:
    """Return latents (N, C, H, W), drawn from the posterior, of uint8 images (N, 3, S, S) or of stored moments."""
    if images.dtype == torch.uint8:
        return autoencoder.encode(images.float() / 127.5 - 1).sample(draws)
    mean, *log_variance = images.float().unbind(1)
    return Posterior(mean, *log_variance).sample(draws)


def pair_conditions(
    batch: FramePair, autoencoder: Autoencoder, draws: Draws | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the network receives of a batch: target condition, reference condition and task.

    See ``handdata.trainer.conditioning``. A dropped reference is all zeros.
    """
    latent = encode_images(batch.reference_image, autoencoder, draws)
    latent_size = (latent.shape[-2], latent.shape[-1])
    height, width = (side * autoencoder.factor for side in latent_size)

    def joints(keypoints: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        scaled = to_latent_pixels(keypoints, (height, width), latent_size)
        return scaled, valid & inside_image(keypoints, (height, width))

    target_cond = target_condition(*joints(batch.target_keypoints, batch.target_valid), latent_size)
    mask = (batch.reference_mask > 127).to(latent.dtype)
    ref_cond = reference_condition(latent, *joints(batch.reference_keypoints, batch.reference_valid), mask)
    return target_cond, ref_cond.masked_fill(batch.reference_dropped.view(-1, 1, 1, 1), 0), batch.task
