"""Samples as tensors: what ``HandDataset.to_torch`` gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.data

from handdata.trainer.data.augment import resize

if TYPE_CHECKING:
    from handdata.api.datasets import HandSample


class SampleTensors(torch.utils.data.Dataset[dict[str, Any]]):
    """Samples as dictionaries of tensors.

    A dictionary has ``image`` (3, S, S) uint8; ``keypoints`` (2, 21, 2) float32, pixels, and ``valid`` (2, 21), of the
    right and the left hand; ``mask`` (S, S) bool, all false where ``has_mask`` is; and ``sample_id``.

    Args:
        samples: The samples.
        image_size: Side that they are resized to; None leaves them as stored.

    """

    def __init__(self, samples: "Sequence[HandSample]", image_size: int | None = None) -> None:
        self._samples, self._size = samples, image_size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self._samples[position]
        frame = sample.frame if self._size is None else resize(sample.frame, self._size)
        return {
            "image": torch.from_numpy(frame.image).permute(2, 0, 1).contiguous(),
            "keypoints": torch.tensor(frame.keypoints).reshape(2, 21, 2),
            "valid": torch.tensor(frame.valid).reshape(2, 21),
            "mask": torch.tensor(frame.mask >= 128),
            "has_mask": torch.tensor(sample.has_mask),
            "sample_id": sample.sample_id,
        }
