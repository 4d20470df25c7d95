"""Representation alignment (REPA): early tokens of the target learn what a frozen encoder sees in the clean target.

    clean image   -> resize, normalise -> frozen DINOv2 -> patch features (N, P, E)  --+
                                                                                       +--> 1 - mean cosine
    two-frame DiT -> target tokens (N, P, D) after block b -> MLP -> (N, P, E) --------+

Source: Yu et al., Representation Alignment for Generation (ICLR 2025), section 3. Only training uses it: samplers and
checkpoints know the network alone. Shapes: N pairs, P patches a frame, D hidden size, E the encoder's width.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handdata.schemas.errors import WeightsError
from handdata.trainer.model import DiT
from handdata.trainer.presets import AlignmentConfig
from handdata.trainer.weights import require_hub, told

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class ImageEncoder:
    """A frozen vision transformer that sees images as a grid of as many patches as the network does."""

    def __init__(self, config: AlignmentConfig, grid_size: int, device: str | torch.device = "cpu") -> None:
        """Load the encoder's weights from ``config.weights``, or through timm.

        Raises:
            WeightsError: The weights are missing, or of another network.

        """
        import timm  # 4 s of a core, which only runs with an encoder spend
        from huggingface_hub import try_to_load_from_cache
        from timm.models import load_checkpoint
        from timm.models.vision_transformer import checkpoint_filter_fn

        hint = f"set alignment.weights to a file of {config.encoder}'s weights, and alignment.encoder to its timm name"
        if config.weights is None and config.encoder == AlignmentConfig().encoder:
            hint = "run `handdata weights fetch dinov2`, or " + hint
        if config.weights is not None and not Path(config.weights).is_file():
            raise WeightsError(f"no weights at {config.weights}", hint)
        # The Hub is not asked for what it gave before.
        cached = try_to_load_from_cache(f"timm/{config.encoder}", "model.safetensors")
        file = config.weights or (cached if isinstance(cached, str) else None)
        if file is None:
            require_hub(f"cannot load the encoder {config.encoder}: it", hint)
        try:
            network = timm.create_model(
                config.encoder,
                pretrained=file is None,
                num_classes=0,
                dynamic_img_size=True,  # positions are resampled to the grid, as REPA does
            )
            if file is not None:  # strictly: timm's own way takes a file that holds other weights in silence
                load_checkpoint(network, file, filter_fn=checkpoint_filter_fn, weights_only=True)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise WeightsError(f"cannot load the encoder {config.encoder}: {told(error)}", hint) from error
        self._network = cast("VisionTransformer", network).to(device).eval().requires_grad_(False)
        self.features: int = self._network.embed_dim
        self._side = grid_size * self._network.patch_embed.patch_size[0]
        statistics = (cast(dict[str, Any], self._network.pretrained_cfg)[name] for name in ("mean", "std"))
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the patch features (N, P, E) of uint8 images (N, 3, S, S), row by row."""
        normalised = (images.float() / 255 - self._mean) / self._std
        # 256 px become 224 = 16 x 14, so that DINOv2's patches and the latent's cover the same squares.
        resized = F.interpolate(normalised, (self._side, self._side), mode="bicubic", align_corners=False)
        tokens: Tensor = self._network.forward_features(resized)
        return tokens[:, self._network.num_prefix_tokens :]


class AlignedDiT(nn.Module):
    """The network under training with the projection of its early tokens to an encoder's features."""

    def __init__(self, model: DiT, config: AlignmentConfig, features: int) -> None:
        super().__init__()
        self.model = model
        self._blocks = config.block
        hidden_size = model.positions.shape[-1]
        self.projection = nn.Sequential(
            nn.Linear(hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, features),
        )

    def forward(
        self, x_t: Tensor, t: Tensor, target_cond: Tensor, ref_cond: Tensor, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output, and the projected tokens of the target (N, P, E)."""
        output, tokens = self.model.forward_with_tokens(x_t, t, target_cond, ref_cond, task, self._blocks)
        return output, self.projection(tokens)


def alignment_loss(projected: Tensor, features: Tensor, known: Tensor) -> Tensor:
    """Return 1 - cosine of projected tokens and features (N, P, E), the mean over each pair's patches (N,).

    (REPA minimises the negative cosine: the same gradients.)

    Args:
        projected: Projected tokens of the target.
        features: Features of the clean target.
        known: (N, 1, S, S) 1 where the crop shows the source image. Patches are weighed by its share; a pair without
            any has zero loss.

    """
    grid = round(features.shape[1] ** 0.5)
    weight = F.interpolate(known, (grid, grid), mode="area").flatten(1)  # N, P
    distance = 1 - F.cosine_similarity(projected.float(), features.float(), dim=-1)
    return (distance * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)
