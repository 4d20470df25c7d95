"""The two-frame diffusion transformer of FoundHand: a DiT that attends jointly over a target and a reference frame.

    noisy target latent + target condition   reference condition           t   task   class
                   |                                |                       |    |     | (null entry)
                   +-------- one patch embedder ----+                       +----+-----+
                   |         + learned positions    |                            | c
                   +--------------- concatenate ----+                            |
                                        |                                        |
                            depth x adaLN-Zero block  <--------------------------+
                                        |                                        |
                           target half, final layer   <--------------------------+
                                        |
                           predicted noise (and variance)

Sources: Chen et al., FoundHand (CVPR 2025), section 4; Peebles and Xie, DiT (ICCV 2023), section 3, for the block and
its initialisation. Shapes: N pairs, C latent channels, H = W latent pixels, P patches a frame, T = 2P tokens, D hidden
size.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from handdata.schemas import KEYPOINT_COUNT
from handdata.trainer.conditioning import CONDITION_CHANNELS, HEATMAP_PEAK, Task
from handdata.trainer.geometry.carrying import carry
from handdata.trainer.geometry.limbs import LIMBS, bone_distances, draw_bones, limb_distances, limb_maps
from handdata.trainer.geometry.poses import bones_of, read_pose
from handdata.trainer.presets import ConditionsConfig, GeometryConfig

IMAGENET_CLASSES: Final = 1000
TIMESTEP_FREQUENCIES: Final = 256
MLP_RATIO: Final = 4
HEAD_CHANNELS: Final = 16
HEAD_LAYERS: Final = 2
HEATMAP_GAIN: Final = 8 * math.pi
"""How much larger the heatmaps' first weights in the patch embedder are; 4 pi would be one over a heatmap's energy.

Measured with the preset tiny (400 steps): the loss with permuted keypoints was 7% higher at 4 pi, 17% at 8 pi; at 16 pi
the keypoints drown the noisy image, and the hand stays speckled."""


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    (timm has it, but to import timm costs each process seconds of a core.)
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., O) of inputs (..., I)."""
        outputs: Tensor = self.fc2(self.activation(self.fc1(x)))
        return outputs


class PatchEmbedding(nn.Module):
    """Embeds the patches of images (N, C, H, W) as tokens (N, P, D), row by row."""

    def __init__(self, patch_size: int, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of images."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class TimestepEmbedding(nn.Module):
    """Embeds timesteps (N,) as (N, D): 256 cosines and sines of falling frequency, then an MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = Mlp(TIMESTEP_FREQUENCIES, hidden_size, hidden_size, nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (N, D) of timesteps (N,)."""
        half = TIMESTEP_FREQUENCIES // 2
        frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000) / half))
        angles = t.float().unsqueeze(-1) * frequencies  # N, 128
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedding: Tensor = self.mlp(features.to(self.mlp.fc1.weight.dtype))
        return embedding


class Attention(nn.Module):
    """Multi-head attention of the first ``queries`` tokens of (N, T, D) over all T tokens, as (N, queries, D)."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.query_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.projection = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        """Return what the first ``queries`` tokens gather from all."""
        if queries == x.shape[1]:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            hidden_size = x.shape[-1]
            q = F.linear(x[:, :queries], self.qkv.weight[:hidden_size], self.qkv.bias[:hidden_size])
            k, v = F.linear(x, self.qkv.weight[hidden_size:], self.qkv.bias[hidden_size:]).chunk(2, dim=-1)
        q, k, v = self.query_norm(self._split(q)), self.key_norm(self._split(k)), self._split(v)
        heads = attend(q, k, v)
        attended: Tensor = self.projection(heads.transpose(1, 2).flatten(2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # N, heads, T, D / heads


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what queries (N, heads, queries, D / heads) gather from keys and values (N, heads, T, D / heads).

    PyTorch's fused attention, but for bfloat16 on a CPU, where it takes twice as long as two products and a softmax
    (2.14, forward and backward).
    """
    if v.device.type != "cpu" or v.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    attended: Tensor = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return attended


class Block(nn.Module):
    """A transformer block whose layer norms are shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(hidden_size, num_heads, qk_norm)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, MLP_RATIO * hidden_size, hidden_size, nn.GELU(approximate="tanh"))
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)

    def forward(self, x: Tensor, c: Tensor, kept: int) -> Tensor:
        """Return the first ``kept`` tokens of (N, T, D) after the block; ``c`` (N, D) is the activated condition."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)  # N, 1, D
        attended = self.attention(modulate(self.norm1(x), shift1, scale1), kept)
        x = torch.addcmul(x[:, :kept], gate1, attended)
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """Turns tokens (N, P, D) into patches of the output (N, P, patch pixels x channels)."""

    def __init__(self, hidden_size: int, patch_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear = nn.Linear(hidden_size, patch_outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the patches of (N, P, D); ``c`` (N, D) is the activated condition."""
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        patches: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return patches


class DetailHead(nn.Module):
    """Draws the output from features of the patches and what is known of each pixel: a few convolutions.

    (The idea of DiP, arXiv 2511.18822: large patches for a cheap transformer, details by a small convolutional part.)
    Before each activation the condition scales and shifts the channels.
    """

    def __init__(self, inputs: int, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        widths = [inputs] + [HEAD_CHANNELS] * HEAD_LAYERS
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.modulation = nn.Linear(hidden_size, 2 * HEAD_CHANNELS * HEAD_LAYERS)
        self.out = nn.Conv2d(HEAD_CHANNELS, out_channels, 3, padding=1)

    def forward(self, pixels: Tensor, c: Tensor) -> Tensor:
        """Return the output of (N, inputs, H, W); ``c`` (N, D) is the activated condition."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        modulation = self.modulation(c).view(-1, HEAD_LAYERS, 2, HEAD_CHANNELS, 1, 1)
        for index, convolution in enumerate(self.convolutions):
            shift, scale = modulation[:, index].unbind(1)
            drawn = F.silu(torch.addcmul(shift, convolution(x), 1 + scale))
            x = x + drawn if index else drawn
        output: Tensor = self.out(x)
        return output


class Geometry(NamedTuple):
    """What the network computes of its conditions without learning; None what its settings do without."""

    target_limbs: Tensor | None
    """(N, 12, H, W)."""
    reference_limbs: Tensor | None
    """(N, 12, H, W)."""
    at_target: Tensor | None
    """(N, C + 1, H, W) the reference and its mask; with what is carried (N, 2C + 2, H, W)."""
    base: Tensor | None
    """(N, C, H, W) what the clean latent is predicted as a difference from."""
    coverage: Tensor | None
    """(N, 1, H, W) how far the base shows a carried hand."""


class DiT(nn.Module):
    """Predicts the noise in a target latent from a reference frame, target keypoints and task.

    ``learn_sigma`` adds C output channels for the learned variance (see ``handdata.trainer.diffusion``). ``qk_norm``
    normalises queries and keys, which the published network does not (see ``ModelConfig``). ``geometry`` are its
    settings, as ``GeometryConfig`` or as plain values, and ``conditions``, as ``ConditionsConfig``, what it is shown of
    hands; None: the published network.
    """

    activation_checkpointing = False
    """Keep only each block's input for the backward pass, and compute the block again there: less memory, a third more
    work, the same loss and gradients."""

    def __init__(
        self,
        input_size: int,
        patch_size: int,
        latent_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        learn_sigma: bool = True,
        qk_norm: bool = False,
        geometry: GeometryConfig | Mapping[str, Any] | None = None,
        conditions: ConditionsConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.conditions = ConditionsConfig.model_validate(conditions or {})
        self.geometry = GeometryConfig.model_validate(geometry or {})
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.grid_size = input_size // patch_size
        self.patches = self.grid_size**2
        self.out_channels = latent_channels * (2 if learn_sigma else 1)

        self.patch_embedding = PatchEmbedding(patch_size, latent_channels + CONDITION_CHANNELS, hidden_size)
        self.positions = nn.Parameter(torch.empty(1, 2 * self.patches, hidden_size))
        self.timestep_embedding = TimestepEmbedding(hidden_size)
        self.task_embedding = nn.Embedding(len(Task), hidden_size)
        # Only its last, null entry is used. Kept so that the weights of an ImageNet DiT and the published ones load.
        self.class_embedding = nn.Embedding(IMAGENET_CLASSES + 1, hidden_size)
        self.blocks = nn.ModuleList([Block(hidden_size, num_heads, qk_norm) for _ in range(depth)])
        self.drawn_channels = self.out_channels if self.geometry.head == "linear" else HEAD_CHANNELS
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.drawn_channels)

        self.limb_embedding = PatchEmbedding(patch_size, LIMBS, hidden_size) if self.geometry.limbs else None
        self.reference_embedding: PatchEmbedding | None = None
        if self.geometry.reference_at_target:
            at_target = (latent_channels + 1) * (2 if self.geometry.carries else 1)
            self.reference_embedding = PatchEmbedding(patch_size, at_target, hidden_size)
        self.detail_head: DetailHead | None = None
        if self.geometry.head == "conv":  # it sees the noisy latent, and the base with its coverage
            base = {"none": 0, "reference": latent_channels, "carried": latent_channels + 1}[self.geometry.residual]
            self.detail_head = DetailHead(HEAD_CHANNELS + latent_channels + base, hidden_size, self.out_channels)
        self._initialise()

    def forward(self, x_t: Tensor, t: Tensor, target_cond: Tensor, ref_cond: Tensor, task: Tensor) -> Tensor:
        """Predict the noise, and with ``learn_sigma`` the variance, as (N, C or 2C, H, W).

        ``x_t`` (N, C, H, W) noisy target latent, ``t`` (N,) its timestep in 0..999, ``target_cond`` (N, 43, H, W),
        ``ref_cond`` (N, C + 43, H, W), ``task`` (N,): see ``handdata.trainer.conditioning``.
        """
        return self.forward_with_tokens(x_t, t, target_cond, ref_cond, task, len(self.blocks))[0]

    def forward_with_tokens(
        self, x_t: Tensor, t: Tensor, target_cond: Tensor, ref_cond: Tensor, task: Tensor, blocks: int
    ) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` returns, and the target's tokens (N, P, D) after the first ``blocks`` blocks."""
        if not self.conditions.reference_mask:
            ref_cond = torch.cat([ref_cond[:, :-1], torch.zeros_like(ref_cond[:, -1:])], dim=1)
        geometry = self._geometry(target_cond, ref_cond, x_t.dtype)
        target_cond, ref_cond = self.shown(target_cond), self.shown(ref_cond)
        target = self.patch_embedding(torch.cat([x_t, target_cond.to(x_t.dtype)], dim=1))  # N, P, D
        reference = self.patch_embedding(ref_cond.to(x_t.dtype))  # N, P, D
        if self.limb_embedding is not None:
            target = target + self.limb_embedding(geometry.target_limbs)
            reference = reference + self.limb_embedding(geometry.reference_limbs)
        if self.reference_embedding is not None:
            target = target + self.reference_embedding(geometry.at_target)
        x = torch.cat([target, reference], dim=1) + self.positions  # N, 2P, D

        null_class = self.class_embedding.weight[IMAGENET_CLASSES]
        c = F.silu(self.timestep_embedding(t) + self.task_embedding(task) + null_class)  # N, D

        for index, block in enumerate(self.blocks):
            # Nothing reads the reference tokens after the last block: it makes the target's only.
            kept = self.patches if index == len(self.blocks) - 1 else 2 * self.patches
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, kept, use_reentrant=False)
            else:
                x = block(x, c, kept)
            if index == blocks - 1:
                tokens = x[:, : self.patches]
        output = self._unpatchify(self.final_layer(x, c))
        if self.detail_head is not None:
            known = (part.to(x_t.dtype) for part in (geometry.base, geometry.coverage) if part is not None)
            output = self.detail_head(torch.cat([output, x_t, *known], dim=1), c)
        if geometry.base is not None:
            channels = self.latent_channels
            output = torch.cat([output[:, :channels].float() + geometry.base, output[:, channels:]], dim=1)
        return output, tokens

    @torch.no_grad()
    def shown(self, cond: Tensor) -> Tensor:
        """Return a condition (N, ... + 43, H, W) with its 42 heatmaps as ``conditions`` has them.

        Another picture of the keypoints lies in the first of these channels, as bright as a heatmap; the others are
        zero.
        """
        if self.conditions.keypoints == "heatmaps":
            return cond
        heatmaps = cond[:, -CONDITION_CHANNELS:-1]
        if self.conditions.keypoints == "sum":
            drawn = heatmaps.sum(1, keepdim=True)
        else:
            size = (cond.shape[-2], cond.shape[-1])
            drawn = draw_bones(bones_of(read_pose(heatmaps)), size) * HEATMAP_PEAK
        others = torch.zeros_like(heatmaps[:, drawn.shape[1] :])
        return torch.cat([cond[:, :-CONDITION_CHANNELS], drawn.to(cond.dtype), others, cond[:, -1:]], dim=1)

    @torch.no_grad()
    def _geometry(self, target_cond: Tensor, ref_cond: Tensor, dtype: torch.dtype) -> Geometry:
        """Compute in float32 what the settings ask for from the conditions, for a network that works in ``dtype``."""
        settings, channels = self.geometry, self.latent_channels
        if not (settings.limbs or settings.reference_at_target or settings.residual != "none"):
            return Geometry(None, None, None, None, None)
        with torch.autocast(ref_cond.device.type, enabled=False):
            target_cond, ref_cond = target_cond.float(), ref_cond.float()
            reference, mask = ref_cond[:, :channels], ref_cond[:, -1:]
            poses = read_pose(target_cond[:, :KEYPOINT_COUNT]), read_pose(ref_cond[:, channels:-1])
            at_target, base, coverage = [reference, mask], reference, None
            if settings.carries:
                carried = carry(reference, mask, *poses)
                distances = [carried.target_limbs, carried.reference_limbs]
                at_target += [carried.picture, carried.coverage]
                base, coverage = carried.base, carried.coverage
            elif settings.limbs:
                size = (reference.shape[-2], reference.shape[-1])
                distances = [limb_distances(bone_distances(bones_of(pose), size)) for pose in poses]
            limbs = [limb_maps(of_limbs).to(dtype) for of_limbs in distances] if settings.limbs else [None, None]
            return Geometry(
                target_limbs=limbs[0],
                reference_limbs=limbs[1],
                at_target=torch.cat(at_target, dim=1).to(dtype) if settings.reference_at_target else None,
                base=base if settings.residual != "none" else None,
                coverage=coverage if settings.residual == "carried" else None,
            )

    def _unpatchify(self, patches: Tensor) -> Tensor:
        grid, size, channels = self.grid_size, self.patch_size, self.drawn_channels
        image = patches.view(-1, grid, grid, size, size, channels)  # N, row, column, y, x, channel
        return image.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid * size, grid * size)

    def _initialise(self) -> None:
        """Initialise as DiT does: Xavier for matrices, zero for what gates the blocks and the output (adaLN-Zero).

        Only the heatmaps' weights differ: they are larger.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.proj.weight.flatten(1))
        nn.init.constant_(self.patch_embedding.get_parameter("proj.bias"), 0)
        # Xavier counts on inputs of unit variance. A heatmap has a few values of at most 0.16, so that a joint would
        # change a patch's embedding by about 1%: the network would follow keypoints only after thousands of steps.
        with torch.no_grad():
            self.patch_embedding.proj.weight[:, self.latent_channels : -1] *= HEATMAP_GAIN
        for weight in (
            self.timestep_embedding.mlp.fc1.weight,
            self.timestep_embedding.mlp.fc2.weight,
            self.task_embedding.weight,
            self.class_embedding.weight,
        ):
            nn.init.normal_(weight, std=0.02)
        # The geometry says nothing at first: published weights give their own output, and learn to use it.
        for embedding in (self.limb_embedding, self.reference_embedding):
            if embedding is not None:
                nn.init.zeros_(embedding.get_parameter("proj.weight"))
                nn.init.zeros_(embedding.get_parameter("proj.bias"))
        if self.detail_head is not None:
            nn.init.zeros_(self.detail_head.modulation.weight)
            nn.init.zeros_(self.detail_head.out.get_parameter("bias"))
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        output = self.final_layer.linear if self.detail_head is None else self.detail_head.out
        for layer in (*(block.modulation for block in blocks), self.final_layer.modulation, output):
            nn.init.zeros_(layer.get_parameter("weight"))
        with torch.no_grad():
            table = sincos_positions(2 * self.grid_size, self.grid_size, self.positions.shape[-1])
            self.positions.copy_(table.unsqueeze(0))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normalised tokens (N, T, D) by (N, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def sincos_positions(rows: int, columns: int, hidden_size: int) -> Tensor:
    """Return a 2-D sine-cosine position table (rows x columns, D), row by row.

    Half of D encodes the column, half the row; each half is sines, then cosines, of frequencies 1 to 1/10000. The
    target takes the upper half of the rows, the reference the lower: 32 rows x 16 columns for two frames of 16 x 16
    patches.
    """
    quarter = hidden_size // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def encode(position: Tensor) -> Tensor:
        angles = position.unsqueeze(-1) * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    return torch.cat([encode(column.flatten()), encode(row.flatten())], dim=-1).float()


def resample_positions(positions: Tensor, grid: int, frames: int = 2) -> Tensor:
    """Return the positions (1, frames x grid x grid, D) of frames of other sizes: each frame's table, seen as an image.

    A token stays where it is in the image: bicubic, about a frame's centre. Of the sine-cosine table twice as fine is
    0.01 off on average (values are 0.7), at the edges most. The same grid gives the same tensor.

    Args:
        positions: Positions (1, frames x P, D) of frames of P tokens.
        grid: Tokens of a frame's side.
        frames: Number of frames.

    """
    _, tokens, hidden_size = positions.shape
    before = math.isqrt(tokens // frames)
    if before == grid or frames * before**2 != tokens:  # what is no square grid is left to those who compare shapes
        return positions
    tables = positions.view(frames, before, before, hidden_size).permute(0, 3, 1, 2).float()
    resampled = F.interpolate(tables, (grid, grid), mode="bicubic", antialias=True)  # the kernel of Catmull and Rom
    return resampled.permute(0, 2, 3, 1).reshape(1, -1, hidden_size).to(positions.dtype)
