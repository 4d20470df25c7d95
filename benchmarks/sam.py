"""Speed of SAM masks in our batches, compared with ``SamPredictor`` in a loop: the same images, prompts and weights.

    python benchmarks/sam.py [--checkpoint FILE] [--images 8] [--batch 4] [--device cpu]

Without a checkpoint the model is a ViT-B with random weights: the same work, but meaningless masks. Both get one batch
to warm up. The logits of both are compared; except on a GPU, everything is float32.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from handdata.pipeline.annotation.masks import HandPrompt, sam_prompts
from handdata.pipeline.annotation.sam import SamSegmenter, load_sam

IMAGE_PX = 512
Asked = list[tuple[NDArray[np.uint8], list[HandPrompt]]]
Logits = list[NDArray[np.float32]]


def asked_of_synthetic_frames(count: int) -> Asked:
    """Return rendered images of one and two hands with their prompts."""
    from handdata.adapters.synthesis.dataset import write_dataset
    from handdata.adapters.synthetic import SyntheticAdapter
    from handdata.pipeline.annotation.frames import open_frames
    from handdata.schemas import HandRecord

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        write_dataset(root, 2, count, 1, 1, IMAGE_PX, seed=0)
        adapter = SyntheticAdapter()
        rows = [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]
        records = [row for row in rows if isinstance(row, HandRecord)]
        return [
            (image, sam_prompts(record.keypoints_2d, record.keypoints_valid))
            for record, image in open_frames(records)
            if isinstance(image, np.ndarray)
        ]


def one_by_one(sam: Sam, asked: Asked) -> Logits:
    """Return the logits of ``SamPredictor`` for each hand of each image in turn."""
    predictor = SamPredictor(sam)
    answers = []
    for image, prompts in asked:
        predictor.set_image(image)
        for prompt in prompts:
            box = prompt.box_xyxy.clip(0, image.shape[0] - 1)
            answers.append(predictor.predict(prompt.points, prompt.labels, box=box, return_logits=True)[0])
    return answers


def in_batches(segmenter: SamSegmenter, asked: Asked, size: int) -> Logits:
    """Return the logits of our segmenter for the same hands, ``size`` images at a time."""
    answers = []
    for part in (asked[start : start + size] for start in range(0, len(asked), size)):
        candidates = segmenter.predict([image for image, _ in part], [prompts for _, prompts in part])
        answers += [logits for image in candidates for logits in image.logits.float().cpu().numpy()]
    return answers


def timed(work: Callable[[], Logits]) -> tuple[float, Logits]:
    """Return the seconds that some work takes, and its result."""
    started = time.perf_counter()
    answers = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, answers


def main() -> None:
    """Run both, compare, print the table."""
    from handdata.console import print_table  # here: benchmarks/gpu.py uses this file where rich is missing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)

    def model() -> Sam:
        return load_sam(options.checkpoint) if options.checkpoint else sam_model_registry["vit_b"]().eval()

    theirs = model().to(options.device)
    segmenter = SamSegmenter(model(), options.device)
    segmenter.sam.load_state_dict(theirs.state_dict())
    asked = asked_of_synthetic_frames(options.images)
    hands = sum(len(prompts) for _, prompts in asked)
    warm_up = asked[: options.batch]
    one_by_one(theirs, warm_up[:1])
    in_batches(segmenter, warm_up, options.batch)
    loop_s, wanted = timed(lambda: one_by_one(theirs, asked))
    ours_s, got = timed(lambda: in_batches(segmenter, asked, options.batch))
    apart = max(float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True))
    print_table(
        f"{len(asked)} images of {IMAGE_PX} px, {hands} hands, {options.device}; logits differ by {apart:.1e} at most",
        [
            ("SamPredictor, one by one", f"{len(asked) / loop_s:.3f}", "1.00"),
            (f"ours, batches of {options.batch}", f"{len(asked) / ours_s:.3f}", f"{loop_s / ours_s:.2f}"),
        ],
        header=("", "images/s", "ratio"),
    )


if __name__ == "__main__":
    main()
