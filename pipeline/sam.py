"""Hand masks by Segment Anything (Kirillov et al., ICCV 2023), prompted with keypoints and boxes, in batches.

The model is ``segment_anything``'s own, unchanged. PyTorch and ``segment_anything`` (the extra ``sam``) are imported
where they are used, so that this module costs nothing on machines without them.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from handdata.pipeline.masks import HandPrompt, Mask, Points, choose_mask, cut_forearm, sam_prompts
from handdata.schemas import SIDES, WeightsError, hand_rows

if TYPE_CHECKING:
    import torch
    from segment_anything.modeling import Sam

SamModelType = Literal["vit_h", "vit_l", "vit_b"]

_TYPES: Final[dict[tuple[int, int], SamModelType]] = {(1280, 32): "vit_h", (1024, 24): "vit_l", (768, 12): "vit_b"}
"""Width and depth of the image encoders that were released."""


def sam_model_type(state: Mapping[str, "torch.Tensor"]) -> SamModelType:
    """Return which released model a state dict belongs to, by its image encoder's width and depth.

    Raises:
        WeightsError: it is not a SAM state dict, or not one of the three released sizes.

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
        build: makes the model that the weights go into; by default the released model whose size they have.

    Raises:
        WeightsError: the file is missing, unreadable, or not the weights of that model.

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
    """Return which released model a checkpoint file holds; its tensors are mapped, not read.

    Raises:
        WeightsError: as ``load_sam`` and ``sam_model_type``.

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


@dataclass(frozen=True)
class SamCandidates:
    """What SAM proposes for the H hands of one image."""

    logits: "torch.Tensor"
    """(H, 3, S, S) float32, the mask is where they exceed the model's threshold."""
    quality: "torch.Tensor"
    """(H, 3) the intersection over union that the model expects of each."""


class SamSegmenter:
    """Segments the hands of a batch of crops with one call of the image encoder.

    On a GPU the image encoder runs in bfloat16, elsewhere everything is float32 and the logits are those of
    ``segment_anything.SamPredictor``.
    """

    def __init__(self, sam: "Sam", device: str) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.sam = sam.to(device).eval()
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)

    def segment(
        self, images: Sequence[NDArray[np.uint8]], keypoints: Sequence[Points], valid: Sequence[Mask]
    ) -> list[Mask]:
        """Return one mask an image: the hands that its keypoints name, without their forearms.

        Of SAM's three candidates for a hand, the one that covers its keypoints and spills least is taken; of equals,
        the one that the model itself expects most of.

        Args:
            images: (S, S, 3) RGB crops; S may differ.
            keypoints: (42, 2) each, crop pixels.
            valid: (42,) each, joints to use: those inside the crop.

        """
        prompts = [sam_prompts(*labels) for labels in zip(keypoints, valid, strict=True)]
        candidates = self.predict(images, prompts)
        return [self._union(*of_image) for of_image in zip(candidates, keypoints, valid, strict=True)]

    def predict(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[Sequence[HandPrompt]]
    ) -> list[SamCandidates]:
        """Return SAM's candidates for every prompt of every image. Boxes are clipped to the image.

        Args:
            images: (S, S, 3) RGB crops; S may differ.
            prompts: those of each image, any number.

        """
        import torch

        if not images:
            return []
        with torch.inference_mode():
            embeddings = self._encode(images)
            return [
                self._decode(embedding, image.shape[0], of_image)
                for embedding, image, of_image in zip(embeddings, images, prompts, strict=True)
            ]

    def _encode(self, images: Sequence[NDArray[np.uint8]]) -> "torch.Tensor":
        import torch

        device = self.sam.device
        resized = np.stack([self.resize.apply_image(image) for image in images])
        pixels = self.sam.preprocess(torch.from_numpy(resized).to(device).permute(0, 3, 1, 2))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeddings: torch.Tensor = self.sam.image_encoder(pixels)
        return embeddings.float()

    def _decode(self, embedding: "torch.Tensor", size: int, prompts: Sequence[HandPrompt]) -> SamCandidates:
        import torch

        if not prompts:
            return SamCandidates(embedding.new_zeros((0, 3, size, size)), embedding.new_zeros((0, 3)))
        if len({len(prompt.points) for prompt in prompts}) > 1:
            # Filled up to one length the prompts would share a batch, but SAM attends to the filling.
            parts = [self._decode(embedding, size, [prompt]) for prompt in prompts]
            return SamCandidates(torch.cat([p.logits for p in parts]), torch.cat([p.quality for p in parts]))
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
            image_embeddings=embedding[None],
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        full = self.sam.image_encoder.img_size
        return SamCandidates(self.sam.postprocess_masks(low_resolution, (full, full), (size, size)), quality)

    def _union(self, candidates: SamCandidates, keypoints: Points, valid: Mask) -> Mask:
        masks = (candidates.logits > self.sam.mask_threshold).cpu().numpy()
        best_first = candidates.quality.argsort(dim=1, descending=True).cpu().numpy()
        union: Mask = np.zeros(masks.shape[-2:], dtype=bool)
        present = [side for side in SIDES if valid[hand_rows(side)].any()]
        for side, of_hand, order in zip(present, masks, best_first, strict=True):
            joints = np.zeros_like(valid)
            joints[hand_rows(side)] = valid[hand_rows(side)]
            ordered = of_hand[order]
            union |= cut_forearm(ordered[choose_mask(ordered, keypoints, joints)], keypoints, joints)
        return union
