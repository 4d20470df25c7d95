"""Hand masks by Segment Anything (Kirillov et al., ICCV 2023), prompted with keypoints and boxes, in batches.

The model is that of ``segment_anything``; only its encoder's attention is computed by PyTorch's fused kernel. PyTorch
and ``segment_anything`` (the extra ``sam``) are imported where they are used, so that this module can be imported on
machines without them.
"""

import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from handdata.pipeline.annotation.masks import HandPrompt, Mask, Points, choose_mask, cut_forearm, sam_prompts
from handdata.schemas import SIDES, WeightsError, hand_rows

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

SamModelType = Literal["vit_h", "vit_l", "vit_b"]

_TYPES: Final[dict[tuple[int, int], SamModelType]] = {(1280, 32): "vit_h", (1024, 24): "vit_l", (768, 12): "vit_b"}
"""Released models by the width and depth of their image encoders."""


def sam_model_type(state: Mapping[str, "torch.Tensor"]) -> SamModelType:
    """Return the released model that a state dict belongs to, by its image encoder's width and depth.

    Raises:
        WeightsError: It is not a SAM state dict, or not one of the three released sizes.

    """
    position = state.get("image_encoder.pos_embed")
    if position is None:
        raise WeightsError("not the weights of a Segment Anything model", "no tensor image_encoder.pos_embed")
    depth = len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})
    width = position.shape[-1]
    if (width, depth) not in _TYPES:
        raise WeightsError(
            f"a Segment Anything model of unknown size: width {width}, depth {depth}",
            "the released ones are " + ", ".join(f"{name}: {size[0]}, {size[1]}" for size, name in _TYPES.items()),
        )
    return _TYPES[width, depth]


def load_sam(checkpoint: Path, build: "Callable[[], Sam] | None" = None) -> "Sam":
    """Load a Segment Anything model, in evaluation mode, on the CPU. The file is read as plain tensors only.

    Args:
        checkpoint: ``.pth`` file with the model's state dict.
        build: Function that makes the model for the weights; by default the released model of their size is made.

    Raises:
        WeightsError: The file is missing, unreadable, or not the weights of that model.

    """
    from segment_anything import sam_model_registry

    state = _read_state(checkpoint)
    sam: Sam = build() if build else sam_model_registry[sam_model_type(state)]()
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint} does not fit the model", str(error).splitlines()[0]) from error
    return sam.eval()


def sam_model_type_of(checkpoint: Path) -> SamModelType:
    """Return the released model that a checkpoint file holds; its tensors are mapped, not read.

    Raises:
        WeightsError: The file is missing, unreadable, or not the weights of a released model.

    """
    return sam_model_type(_read_state(checkpoint))


def _read_state(checkpoint: Path) -> dict[str, "torch.Tensor"]:
    import torch

    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no file {checkpoint}") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"cannot read {checkpoint} as PyTorch weights", "download it again") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{checkpoint} does not hold a state dict")
    return state


DECODED_PROMPTS: Final = 16
"""Number of prompts that the mask decoder takes together; each takes about 30 MB there with the released models."""


@dataclass(frozen=True)
class SamCandidates:
    """SAM's candidate masks for the H hands of one image."""

    logits: "torch.Tensor"
    """(H, 3, S, S) float32; a mask is where they exceed the model's threshold."""
    quality: "torch.Tensor"
    """(H, 3) intersection over union that the model expects of each candidate."""


class SamSegmenter:
    """Segments the hands of a batch of crops with one call of the image encoder.

    On a GPU the image encoder is compiled and runs in bfloat16; elsewhere everything is float32 and the logits are
    those of ``segment_anything.SamPredictor``. Several threads may call it: the images of one call are resized while
    those of another go through the model.
    """

    def __init__(self, sam: "Sam", device: str) -> None:
        import torch
        from segment_anything.utils.transforms import ResizeLongestSide

        self.sam = sam.to(device).eval()
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)
        fuse_attention(self.sam)
        self._one_at_a_time = Lock()
        self._on_gpu = self.sam.device.type == "cuda"
        self._encoder: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(self.sam.image_encoder) if self._on_gpu else self.sam.image_encoder
        )

    def propose(
        self, images: Sequence[NDArray[np.uint8]], keypoints: Sequence[Points], valid: Sequence[Mask]
    ) -> list[Mask]:
        """Return SAM's three candidates for every hand, as (H, 3, S, S) masks an image, the best expected first.

        The hands are those with a valid keypoint, right before left. ``best_masks`` chooses among the candidates.

        Args:
            images: (S, S, 3) RGB crops; S may differ.
            keypoints: (42, 2) each, crop pixels.
            valid: (42,) each, joints to use: those inside the crop.

        """
        prompts = [sam_prompts(*labels) for labels in zip(keypoints, valid, strict=True)]
        proposals: list[Mask] = []
        for candidates in self.predict(images, prompts):
            order = candidates.quality.argsort(dim=1, descending=True)[..., None, None]
            masks = (candidates.logits > self.sam.mask_threshold).take_along_dim(order, dim=1)
            proposals.append(masks.cpu().numpy())
        return proposals

    def predict(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[Sequence[HandPrompt]]
    ) -> list[SamCandidates]:
        """Return SAM's candidates for every prompt of every image. Boxes are clipped to the image.

        Args:
            images: (S, S, 3) RGB crops; S may differ.
            prompts: Prompts of each image, any number.

        """
        import torch

        if not images:
            return []
        # Padded to one length, all prompts would share a batch, but SAM attends to the padding.
        alike: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for number, of_image in enumerate(prompts):
            for hand, prompt in enumerate(of_image):
                alike[images[number].shape[0], len(prompt.points)].append((number, hand))
        decoded: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        resized = np.stack([self.resize.apply_image(image) for image in images])
        with self._one_at_a_time, torch.inference_mode():
            embeddings = self._encode(resized)
            for (size, _), asked in alike.items():
                for start in range(0, len(asked), DECODED_PROMPTS):
                    part = asked[start : start + DECODED_PROMPTS]
                    of_part = embeddings[[number for number, _ in part]]
                    answers = self._decode(of_part, size, [prompts[number][hand] for number, hand in part])
                    decoded |= dict(zip(part, zip(*answers, strict=True), strict=True))
            return [
                self._candidates(image.shape[0], [decoded[number, hand] for hand in range(len(prompts[number]))])
                for number, image in enumerate(images)
            ]

    def _candidates(self, size: int, answers: "Sequence[tuple[torch.Tensor, torch.Tensor]]") -> SamCandidates:
        import torch

        if not answers:
            empty = torch.zeros((0, 3, size, size), device=self.sam.device)
            return SamCandidates(empty, empty[:, :, 0, 0])
        return SamCandidates(*(torch.stack(parts) for parts in zip(*answers, strict=True)))

    def _encode(self, resized: NDArray[np.uint8]) -> "torch.Tensor":
        import torch

        device = self.sam.device
        pixels = self.sam.preprocess(torch.from_numpy(resized).to(device).permute(0, 3, 1, 2))
        with torch.autocast(device.type, torch.bfloat16, enabled=self._on_gpu):
            return self._encoder(pixels).float()

    def _decode(
        self, embeddings: "torch.Tensor", size: int, prompts: Sequence[HandPrompt]
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return logits (P, 3, S, S) and quality (P, 3) of P prompts of equal length, each with its own embedding."""
        import torch

        device = self.sam.device
        points = self.resize.apply_coords(np.stack([prompt.points for prompt in prompts]), (size, size))
        boxes = self.resize.apply_boxes(
            np.stack([prompt.box_xyxy for prompt in prompts]).clip(0, size - 1), (size, size)
        )
        sparse, dense = self.sam.prompt_encoder(
            points=(
                torch.as_tensor(points, dtype=torch.float32, device=device),
                torch.as_tensor(np.stack([prompt.labels for prompt in prompts]), device=device),
            ),
            boxes=torch.as_tensor(boxes, dtype=torch.float32, device=device),
            masks=None,
        )
        low_resolution, quality = self.sam.mask_decoder(
            # The decoder repeats one image's embedding for all prompts and adds the dense prompt to it. Prompts of
            # several images share a call when the embeddings come with the dense prompts instead.
            image_embeddings=torch.zeros_like(embeddings[:1]),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense + embeddings,
            multimask_output=True,
        )
        full = self.sam.image_encoder.img_size
        return self.sam.postprocess_masks(low_resolution, (full, full), (size, size)), quality


def best_masks(candidates: Mask, keypoints: Points, valid: Mask) -> Mask:
    """Return the (S, S) union of the best candidate of each hand, without forearms.

    The best candidate covers the hand's keypoints and spills least; of equals it is the first.

    Args:
        candidates: (H, 3, S, S) masks of one image, as ``SamSegmenter.propose`` returns them.
        keypoints: (42, 2) crop pixels.
        valid: (42,) joints to use.

    """
    union: Mask = np.zeros(candidates.shape[-2:], dtype=bool)
    present = [side for side in SIDES if valid[hand_rows(side)].any()]
    for side, of_hand in zip(present, candidates, strict=True):
        joints = np.zeros_like(valid)
        joints[hand_rows(side)] = valid[hand_rows(side)]
        union |= cut_forearm(of_hand[choose_mask(of_hand, keypoints, joints)], keypoints, joints)
    return union


def fuse_attention(sam: "Sam") -> None:
    """Make the image encoder's attention run as one fused kernel; its weights do not change.

    ``segment_anything`` computes the attention matrix, adds the relative positions and normalises, in separate steps.
    ``scaled_dot_product_attention`` takes the relative positions as its bias. Results agree to rounding.
    """
    from types import MethodType

    from segment_anything.modeling.image_encoder import Attention

    for module in sam.image_encoder.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(_fused_attention, module)


def _fused_attention(attention: Any, x: "torch.Tensor") -> "torch.Tensor":
    """Replace ``segment_anything.modeling.image_encoder.Attention.forward``: (N, H, W, D) to the same shape."""
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    count, height, width, _ = x.shape
    qkv = attention.qkv(x).view(count, height * width, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each N, heads, H W, D / heads
    bias = None
    if attention.use_rel_pos:
        grid = q.unflatten(2, (height, width))
        rows = torch.einsum("nhyxc,ykc->nhyxk", grid, get_rel_pos(height, height, attention.rel_pos_h).to(q.dtype))
        columns = torch.einsum("nhyxc,xkc->nhyxk", grid, get_rel_pos(width, width, attention.rel_pos_w).to(q.dtype))
        bias = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4).flatten(2, 3)  # N, heads, H W, H W
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=attention.scale)
    projected: torch.Tensor = attention.proj(attended.transpose(1, 2).reshape(count, height, width, -1))
    return projected
