"""Measures of generated hands: likeness to the truth, pose, identity, steadiness, and distances of whole sets.

Most are of one picture and its true target. ``psnr`` and ``ssim`` look at the whole picture, as FoundHand's tables do;
``psnr_box`` and ``ssim_box`` inside the target's hand box, grown by ``BOX_MARGIN``, where the background cannot decide.
Those of learned features (LPIPS, FID, KID, DINOv2) take a function of features: the published networks' need their
weights, ``load_...`` says which are missing, and a number of random weights is never given.

Sources: LPIPS, Zhang et al. 2018; FID, Heusel et al. 2017; KID, Binkowski et al. 2018; CIEDE2000, Sharma et al. 2005.
All are computed by torchmetrics and scikit-image.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Final, NamedTuple, cast

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from handdata.schemas import FINGERS, SIDES, WRIST, Side, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.errors import WeightsError
from handdata.trainer.data.augment import Frame

BOX_MARGIN: Final = 0.25
"""Share of the hand box's longer side that is added on each side."""
SMALLEST_BOX_PX: Final = 16
"""Smallest side of a box: SSIM looks through a window of 11 pixels."""
PCK_SHARES: Final = (0.1, 0.2)
"""Shares of the hand's length within which a drawn joint is right."""
_BATCH: Final = 32
_ALEXNET_FILE: Final = "alexnet-owt-7be5be79.pth"
"""Name under which torchvision looks for AlexNet."""
LEAST_OF_A_SET: Final = 2
"""Smallest number of images of a set: one has no spread."""
_KID_IMAGES: Final = 1000
"""Images of a subset of KID, as published; all where there are fewer."""


class FoundHand(NamedTuple):
    """A hand that a detector finds in an image.

    Args:
        side: Side of the person's hand.
        joints: Joints (21, 2), pixels of the image.

    """

    side: Side
    joints: FloatArray


FindHands = Callable[[ByteArray], Sequence[FoundHand]]
"""An (S, S, 3) RGB image -> the hands that a detector finds in it."""
Features = Callable[[Tensor], Tensor]
"""uint8 RGB images (N, 3, S, S) -> a vector of features each (N, F)."""
PictureDistance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of uint8 RGB images (N, 3, S, S) -> the distance of each two (N,)."""


def hand_length(keypoints: FloatArray, valid: BoolArray) -> float:
    """Return the longest way from a hand's wrist to a fingertip along its joints (21, 2), in pixels."""
    ways = (keypoints[[joint for joint in (WRIST, *finger) if valid[joint]]] for finger in FINGERS.values())
    return max(float(np.hypot(*np.diff(way, axis=0).T).sum()) for way in ways)


def hand_box(frame: Frame) -> tuple[slice, slice]:
    """Return rows and columns of the box around a frame's joints, grown by ``BOX_MARGIN``, inside the image."""
    size = frame.image.shape[0]
    joints = frame.keypoints[frame.valid]
    low, high = joints.min(axis=0), joints.max(axis=0)
    grown = np.maximum((high - low) / 2 + BOX_MARGIN * (high - low).max(), SMALLEST_BOX_PX / 2)
    first = np.clip(np.floor((low + high) / 2 - grown).astype(int), 0, size - SMALLEST_BOX_PX)
    last = np.clip(np.ceil((low + high) / 2 + grown).astype(int) + 1, first + SMALLEST_BOX_PX, size)
    return slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))


def picture_marks(image: ByteArray, target: Frame) -> dict[str, float]:
    """Return PSNR (dB) and SSIM of an image (S, S, 3) and the true target: of the whole, and in its hand box."""
    rows, columns = hand_box(target)
    drawn, true = (_batch([pixels]).float() for pixels in (image, target.image))
    inside = drawn[..., rows, columns], true[..., rows, columns]
    return _likeness(drawn, true, "") | _likeness(*inside, "_box")


def _likeness(drawn: Tensor, true: Tensor, region: str) -> dict[str, float]:
    # In single precision a bright image is not like itself: its variance is the small difference of large squares.
    ssim = structural_similarity_index_measure(drawn.double(), true.double(), data_range=255.0)
    assert isinstance(ssim, Tensor)  # without its map of local values
    psnr = peak_signal_noise_ratio(drawn, true, data_range=255.0)
    return {f"psnr{region}": float(psnr), f"ssim{region}": float(ssim)}


def pose_marks(image: ByteArray, target: Frame, find_hands: FindHands) -> dict[str, float]:
    """Return how much of the target's pose a detector finds in an image (S, S, 3).

    A detection counts for one hand: they are shared out such that the distances are smallest in all. A hand is detected
    where its detection lies within a hand's length on average; what is said of one that is not is the worst.

    Returns:
        ``detected``, the share of hands; ``side_right``, of those whose detection also has their side; ``error``, the
        mean distance of visible joints in hand lengths, at most 1 each; ``pck@...``, the share of joints within that
        share of the hand's length.

    """
    there = [(side, target.keypoints[hand_rows(side)], target.valid[hand_rows(side)]) for side in SIDES]
    hands = [hand for hand in there if hand_length(*hand[1:]) > 0]
    found = list(find_hands(image))
    # A row a hand, a column a detection, and columns of "not detected", which is worse than any hit.
    apart = [
        [np.hypot(*(hand.joints - keypoints)[valid].T) / hand_length(keypoints, valid) for hand in found]
        + [np.full(int(valid.sum()), np.inf) for _ in hands]
        for _, keypoints, valid in hands
    ]
    chosen = min(
        permutations(range(len(found) + len(hands)), len(hands)),
        key=lambda columns: sum(min(float(apart[row][column].mean()), 1.0) for row, column in enumerate(columns)),
    )
    nearest = [apart[row][column] for row, column in enumerate(chosen)]
    detected = [float(distance.mean()) < 1 for distance in nearest]
    named = [
        hit and found[column].side == side for hit, column, (side, _, _) in zip(detected, chosen, hands, strict=True)
    ]
    distances = np.concatenate(
        [distance if hit else np.full_like(distance, np.inf) for distance, hit in zip(nearest, detected, strict=True)]
    )
    return {
        "detected": float(np.mean(detected)),
        "side_right": float(np.mean(named)),
        "error": float(np.minimum(distances, 1).mean()),
        **{f"pck@{share}": float((distances < share).mean()) for share in PCK_SHARES},
    }


def skin_distance(image: ByteArray, target: Frame) -> float:
    """Return how far the mean colour of the hands of an image (S, S, 3) is from the true target's, as CIEDE2000.

    The hands are where the target's mask has them, else inside its hand box. Below 2 is hardly seen.
    """
    hands = target.mask > 127
    if not hands.any():
        hands[hand_box(target)] = True
    drawn, true = (rgb2lab(pixels[hands][None]).mean(axis=1) for pixels in (image, target.image))
    return float(deltaE_ciede2000(drawn, true)[0])  # type: ignore[no-untyped-call]


def flicker(images: ByteArray, truth: ByteArray) -> float:
    """Return how much a video's changes from frame to frame differ from the true ones, in grey levels (mean, absolute).

    0 where each frame changes as in the true video, also where every frame has the same fault.

    Args:
        images: Generated frames (T, S, S, 3), at least two.
        truth: True frames (T, S, S, 3).

    """
    changes = (np.diff(frames.astype(np.float32), axis=0) for frames in (images, truth))
    return float(np.abs(np.subtract(*changes)).mean())


def feature_similarity(images: Sequence[ByteArray], targets: Sequence[Frame], features: Features) -> list[float]:
    """Return the cosine similarity of the features of each image's hand box (S, S, 3) and of its target's."""

    def of_boxes(pictures: Sequence[ByteArray]) -> Tensor:
        boxes = [_batch([picture[hand_box(target)]]) for picture, target in zip(pictures, targets, strict=True)]
        return torch.cat([features(box) for box in boxes])  # of different sizes

    return torch.cosine_similarity(of_boxes(images), of_boxes([target.image for target in targets])).tolist()


def picture_distances(
    images: Sequence[ByteArray], truths: Sequence[ByteArray], distance: PictureDistance
) -> list[float]:
    """Return the distance of each image (S, S, 3) and its truth."""
    parts = zip(_batches(images), _batches(truths), strict=True)
    return torch.cat([distance(drawn, true) for drawn, true in parts]).tolist()


def set_marks(images: Sequence[ByteArray], truths: Sequence[ByteArray], features: Features) -> dict[str, float]:
    """Return FID and KID between generated and true images (S, S, 3), at least two each.

    FID of few images is too high (Chong and Forsyth 2020): compare it among sets of one size alone.
    """
    from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance

    extractor = _Extractor(features)
    subset = min(_KID_IMAGES, len(images), len(truths))
    subsets = 1 if subset == len(images) == len(truths) else 100
    fid = FrechetInceptionDistance(feature=extractor)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features")  # 8 KB an image
        kid = KernelInceptionDistance(feature=extractor, subsets=subsets, subset_size=subset)
    for pictures, are_real in ((truths, True), (images, False)):
        for batch in _batches(pictures):
            fid.update(batch, real=are_real)
            kid.update(batch, real=are_real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of KID's subsets
        mean, _ = kid.compute()
    return {"fid": float(fid.compute()), "kid": float(mean)}


class _Extractor(nn.Module):
    """A function of features as torchmetrics takes it."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self._features = features
        self.num_features = int(features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        return self._features(images)


def load_inception(weights: Path, device: str | torch.device = "cpu") -> Features:
    """Return the features (N, 2048) of FID and KID: Inception-v3 with the published weights.

    Args:
        weights: File of ``inception`` of ``handdata weights``.
        device: Device that computes.

    Raises:
        WeightsError: The file does not hold them.

    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    _require_plain(weights, "inception")
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except (RuntimeError, AttributeError, TypeError) as error:
        raise _no_weights(weights, "inception") from error
    network = network.to(device).eval()

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return cast(Tensor, network(images.to(device))[0]).cpu()

    return features


def load_lpips(weights: Path, device: str | torch.device = "cpu") -> PictureDistance:
    """Return LPIPS of AlexNet, as the field reports it; 0 is the same picture.

    Args:
        weights: File of ``alexnet`` of ``handdata weights``; what is learned above it comes with torchmetrics.
        device: Device that computes.

    Raises:
        WeightsError: The file does not hold them.

    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    _require_plain(weights, "alexnet")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # torchmetrics takes AlexNet from the folder of torch's downloads, by its published name.
        place = Path(folder) / "checkpoints" / _ALEXNET_FILE
        place.parent.mkdir()
        place.symlink_to(weights.absolute())
        warnings.simplefilter("ignore")
        torch.hub.set_dir(folder)
        try:
            metric = LearnedPerceptualImagePatchSimilarity("alex", reduction="none").to(device).eval()
        except (RuntimeError, AttributeError, TypeError) as error:
            raise _no_weights(weights, "alexnet") from error
        finally:
            torch.hub.set_dir(before)

    def distance(drawn: Tensor, true: Tensor) -> Tensor:
        pictures = (batch.to(device).float() / 127.5 - 1 for batch in (drawn, true))
        with torch.no_grad():
            found = cast(Tensor, metric(*pictures)).reshape(-1).cpu()
        metric.reset()
        return found

    return distance


def _require_plain(weights: Path, name: str) -> None:
    """Check that a file of weights holds tensors alone: both packages would run what else is pickled in it.

    Raises:
        WeightsError: It holds anything else, or cannot be read.

    """
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle has many
        raise _no_weights(weights, name) from error


def _no_weights(weights: Path, name: str) -> WeightsError:
    return WeightsError(f"{weights} does not hold the weights of {name}", f"run `handdata weights fetch {name}`")


def _batch(images: Sequence[ByteArray]) -> Tensor:
    """Return images (S, S, 3) as (N, 3, S, S)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _batches(images: Sequence[ByteArray]) -> Iterator[Tensor]:
    for start in range(0, len(images), _BATCH):
        yield _batch(images[start : start + _BATCH])
