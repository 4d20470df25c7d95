"""Videos of rendered hands for ``gpu_learn.py``: what its processes run, without torch, which each would load."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from handdata.adapters.synthesis.dataset import (
    SequencePlan,
    noise_generator,
    sample_planned_sequence,
    sequence_labels,
)
from handdata.schemas import inside
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame


class Video(NamedTuple):
    """A rendered video of F frames, of one camera. Its hands fill the image as they do annotated crops."""

    name: str
    held_out: bool
    images: ByteArray
    """(F, 3, S, S) RGB."""
    masks: ByteArray
    """(F, 1, S, S) 255 on the hands."""
    keypoints: FloatArray
    """(F, 42, 2) pixels."""
    valid: BoolArray
    """(F, 42)."""

    def frame(self, number: int) -> Frame:
        """Return one frame."""
        return Frame(
            image=np.ascontiguousarray(self.images[number].transpose(1, 2, 0)),
            mask=self.masks[number, 0],
            known=np.full_like(self.masks[number, 0], 255),
            keypoints=self.keypoints[number],
            valid=self.valid[number],
        )


def render_videos(plans: Sequence[SequencePlan]) -> list[Video]:
    """Render the videos of one person; runs in a process of the pool."""
    videos = []
    for plan in plans:
        sequence = sample_planned_sequence(plan)
        labels = sequence_labels(plan, sequence)
        there, joints = labels["keypoints_valid"].astype(bool), labels["keypoints_2d"][:, 0].astype(np.float32)
        drawn = [sequence.render(sequence.scene(n), 0, noise_generator(plan, n, 0)) for n in range(plan.frames)]
        valid = there & inside(joints, plan.size, plan.size)
        videos.append(
            Video(
                name=plan.sequence_id,
                held_out=plan.split != "train",
                images=np.stack([rendering.image.transpose(2, 0, 1) for rendering in drawn]),
                masks=np.stack([(rendering.mask > 0).astype(np.uint8) * 255 for rendering in drawn])[:, None],
                keypoints=np.where(valid[..., None], joints, 0).astype(np.float32),
                valid=valid,
            )
        )
    return videos


def be_quiet() -> None:
    """Leave the processors to the process that trains, where it wants one."""
    cv2.setNumThreads(1)
    os.nice(5)
