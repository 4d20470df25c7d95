"""Accuracy of the keypoints, sides and masks of ``handdata annotate``, compared with raw MediaPipe, in one table.

    python benchmarks/accuracy.py [--cache DIR] [--real ../shared/data] [--part hard --part videos ...]

The set is fixed: synthetic stills (easy: crop-like images of hands; hard: small hands in wide frames, most often two),
synthetic videos (one hand; two hands that cross), and, if their folder exists, 13 real views of one moment and a phone
video. It is rendered once into the cache; its SHA-256 is printed with the table.

A hit is a hand with the right side and a mean joint error of at most 0.15 hand lengths. A hand with less than a third
of its joints visible counts neither way. A side error is a hand that is located well but named wrongly. A method that
locates more hands, and harder ones, makes more side errors: they are also counted among the hands that both methods
locate. A flip is a change of side between two frames of a video in which the same hand was located. The phone video's
keypoints are MediaPipe's own (older interface), so they judge the sides and little else. The masks of the real views
are SAM's, and two of them miss the hand, so IoU is measured on the synthetic images, whose masks are exact.
"""

import argparse
import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

import cv2
import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from PIL import Image

from handdata.adapters.base import Adapter
from handdata.adapters.foundhand10m import FoundHand10MAdapter
from handdata.adapters.synthesis.layout import DATASET_FILE, LABEL_FILE, image_path, mask_path
from handdata.adapters.synthesis.scene import Identity, build_identity
from handdata.adapters.synthesis.sequence import FRAMES_PER_SECOND, HandSequence, sample_sequence
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.console import print_table
from handdata.pipeline.annotation.annotator import Annotator, GrabCutModel
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.annotation.masks import hand_length
from handdata.pipeline.settings import AnnotateSettings, MasksPolicy
from handdata.pipeline.weights import require_weights
from handdata.schemas import (
    KEYPOINT_COUNT,
    SIDES,
    WRIST,
    AnnotatedSample,
    HandRecord,
    RecordError,
    Side,
    hand_rows,
)
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

Part = Literal["easy", "hard", "single", "crossing", "views", "phone"]
SYNTHETIC: Final[tuple[Part, ...]] = ("easy", "hard", "single", "crossing")
REAL: Final[tuple[Part, ...]] = ("views", "phone")
VIDEOS: Final[tuple[Part, ...]] = ("single", "crossing", "phone")

HIT: Final = 0.15
"""Largest mean joint error of a hit, in hand lengths."""
LEAST_SEEN: Final = 1 / 3
"""Share of a hand's joints that must be visible for the hand to count."""
RAW_CONFIDENCES: Final = (0.5, 0.3, 0.1)

_IDENTITIES = 16
_JPEG_QUALITY = 92


# ---- the set


@dataclass(frozen=True)
class SetSizes:
    """Number of sequences of each synthetic part; the defaults are the set of the reported figures.

    Thresholds are chosen on a set with another seed.
    """

    seed: int = 20261125
    easy: int = 200
    hard: int = 1680
    single: int = 6
    crossing: int = 8
    video_frames: int = 72


def write_set(cache: Path, sizes: SetSizes, processes: int = 2) -> Path:
    """Render the synthetic parts below ``cache`` unless they exist; return their folder."""
    folder = cache / "-".join(map(str, vars(sizes).values()))
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    jobs = [(partial, part, index, sizes) for part in SYNTHETIC for index in range(getattr(sizes, part))]
    if processes == 1:
        for job in jobs:
            _write_job(job)
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write_job, jobs, chunksize=4))
    for part in SYNTHETIC:
        (partial / part / DATASET_FILE).write_text("{}\n")
    partial.rename(folder)
    return folder


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, in the order of their paths."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


@lru_cache(maxsize=_IDENTITIES)
def _identity(seed: int, index: int) -> Identity:
    return build_identity(np.random.default_rng([seed, 99, index]))


def _write_job(job: tuple[Path, Part, int, SetSizes]) -> None:
    cv2.setNumThreads(1)
    folder, part, index, sizes = job
    rng = np.random.default_rng([sizes.seed, SYNTHETIC.index(part), index])
    identity = _identity(sizes.seed, index % _IDENTITIES)
    one: tuple[Side, ...] = (SIDES[index % 2],)
    target = folder / part / "test" / f"{part}{index:04d}"
    if part == "easy":
        sides = one if index % 3 else SIDES
        _write_sequence(target, sample_sequence(rng, identity, sides, 1, 1, 256), 1, rng)
    elif part == "hard":
        sides = SIDES if index % 3 else one
        sequence, rows = _in_wide_frame(rng, sample_sequence(rng, identity, sides, 1, 1, 768))
        _write_sequence(target, sequence, 1, rng, rows)
    elif part == "single":
        _write_sequence(
            target, sample_sequence(rng, identity, one, sizes.video_frames, 1, 320), sizes.video_frames, rng
        )
    else:
        sequence = sample_sequence(rng, identity, SIDES, sizes.video_frames, 1, 384)
        _write_sequence(target, _crossing(sequence, sizes.video_frames), sizes.video_frames, rng)


def _in_wide_frame(rng: np.random.Generator, sequence: HandSequence) -> tuple[HandSequence, slice]:
    """Shrink the camera's view to hands of 30 to 150 px, and move them within the 16:9 strip that the slice keeps."""
    (view,) = sequence.views
    size = view.camera.size
    height = size * 9 // 16
    rows = slice((size - height) // 2, (size - height) // 2 + height)
    joints = np.concatenate([view.camera.project(sequence.joints(motion))[0] for motion in sequence.motions])
    per_hand = joints.reshape(len(sequence.motions), -1, 2)
    largest = float(np.ptp(per_hand, axis=1).max())
    shrink = np.exp(rng.uniform(np.log(30), np.log(150))) / largest
    k = view.camera.k.copy()
    k[[0, 1], [0, 1]] *= shrink
    joints = (joints - k[:2, 2]) * shrink + k[:2, 2]
    low, high = joints.min(axis=0), joints.max(axis=0)
    margin = 0.08 * height
    corner = np.array([margin, rows.start + margin])
    room = np.maximum([size - 2 * margin, height - 2 * margin] - (high - low), 0)
    k[:2, 2] += corner + rng.uniform(0, 1, 2) * room - low
    return replace(sequence, views=(replace(view, camera=replace(view.camera, k=k)),)), rows


def _crossing(sequence: HandSequence, frames: int) -> HandSequence:
    """Let two hands change places twice, one in front of the other."""
    phase = np.cos(2 * np.pi * np.arange(frames) / (frames - 1))
    motions = []
    for motion, depth_m in zip(sequence.motions, (-0.05, 0.05), strict=True):
        centres = motion.palm_centres.copy()
        middle = centres[:, 0].mean()
        centres[:, 0] = middle * phase + (centres[:, 0] - middle)
        centres[:, 2] += depth_m
        motions.append(replace(motion, palm_centres=centres))
    return replace(sequence, motions=tuple(motions))


def _write_sequence(
    target: Path, sequence: HandSequence, frames: int, rng: np.random.Generator, rows: slice = slice(None)
) -> None:
    """Write a sequence of one view in the synthetic source's layout, only ``rows`` of each image."""
    (view,) = sequence.views
    (target / "cam0").mkdir(parents=True)
    top = rows.start or 0
    world, pixels = np.zeros((frames, KEYPOINT_COUNT, 3)), np.zeros((frames, 1, KEYPOINT_COUNT, 2))
    valid = np.zeros(KEYPOINT_COUNT, dtype=bool)
    for motion in sequence.motions:
        own = hand_rows(motion.side)
        valid[own], world[:, own] = True, sequence.joints(motion)
        pixels[:, 0, own] = view.camera.project(world[:, own]) - [0, top]
    k = view.camera.k.copy()
    k[1, 2] -= top
    height = width = view.camera.size
    for frame in range(frames):
        rendering = sequence.render(sequence.scene(frame), 0, rng)
        bgr = cv2.cvtColor(rendering.image[rows], cv2.COLOR_RGB2BGR)
        height, width = bgr.shape[:2]
        cv2.imwrite(str(target / image_path("cam0", frame)), bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        cv2.imwrite(str(target / mask_path("cam0", frame)), rendering.mask[rows])
    np.savez(
        target / LABEL_FILE,
        frame_index=np.arange(frames),
        camera_id=np.array(["cam0"]),
        timestamp_s=np.arange(frames) / FRAMES_PER_SECOND,
        keypoints_3d_world=world,
        keypoints_valid=valid,
        keypoints_2d=pixels,
        camera_k=k[None],
        camera_t_world=view.camera.t_world[None],
        image_size=np.array([width, height]),
        identity=np.array(0),
    )


# ---- truth


@dataclass(frozen=True)
class TrueHand:
    """One hand of a frame.

    Args:
        side: Side of the person's hand.
        keypoints: (21, 2) pixels.
        valid: (21,) joints with a label.
        seen: Whether enough of it is visible to count.

    """

    side: Side
    keypoints: FloatArray
    valid: BoolArray
    seen: bool

    def error(self, keypoints: FloatArray) -> float:
        """Return the mean distance of a located hand's joints from the true ones, in hand lengths."""
        distance = np.linalg.norm(keypoints - self.keypoints, axis=1)[self.valid].mean()
        return float(distance / hand_length(self.keypoints, self.valid))


Hands = list[tuple[Side, FloatArray]]
"""Located hands of a frame: side and (21, 2) pixels."""


def read_records(adapter: Adapter, root: Path) -> list[HandRecord]:
    """Return all records of a part, in order."""
    found = [record for partition in adapter.partitions(root) for record in adapter.records(root, partition)]
    records = [record for record in found if isinstance(record, HandRecord)]
    assert len(records) == len(found), "the set has records that cannot be read"
    return records


def phone_records(folder: Path) -> list[HandRecord]:
    """Return the frames of the phone video with the keypoints published beside them."""
    with np.load(folder / "IMG_1087_keypoints.npz") as labels:
        frames, keypoints = labels["frames"], labels["kpts"]
    records = []
    for frame, joints in zip(frames, keypoints, strict=True):
        path = folder / "IMG_1087" / f"{frame:04d}.jpg"
        valid = (joints != 0).any(axis=1)
        with Image.open(path) as image:
            width, height = image.size
        records.append(
            HandRecord(
                source="phone",
                split="test",
                sequence_id="IMG_1087",
                frame_index=int(frame),
                timestamp_s=float(frame) / FRAMES_PER_SECOND,
                image_uri=str(path),
                width=width,
                height=height,
                viewpoint="exo",
                keypoints_2d=joints,
                keypoints_valid=valid,
                hand_state=tuple("labelled" if valid[hand_rows(side)].any() else "absent" for side in SIDES),
            )
        )
    return records


def truth_of(record: HandRecord) -> list[TrueHand]:
    """Return the true hands of a frame; the mask of a synthetic frame tells how much of each is visible."""
    mask = None
    if record.source == "synthetic":
        image = Path(record.image_uri)
        path = image.parent.parent / mask_path(image.parent.name, record.frame_index)
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    hands = []
    for number, side in enumerate(SIDES, start=1):
        rows = hand_rows(side)
        keypoints, valid = record.keypoints_2d[rows], record.keypoints_valid[rows]
        if not valid.any():
            continue
        seen = True
        if mask is not None:
            x, y = np.floor(keypoints + 0.5).astype(int).T
            inside = (x >= 0) & (y >= 0) & (x < record.width) & (y < record.height)
            seen = bool((mask[y[inside], x[inside]] == number).sum() >= LEAST_SEEN * len(keypoints))
        hands.append(TrueHand(side, keypoints, valid, seen))
    return hands


# ---- counting


@dataclass
class Count:
    """Results of one method on one part."""

    hands: int = 0
    predictions: int = 0
    flips: int = 0
    error_sum: float = 0.0
    named_right: dict[tuple[str, Side], bool] = field(default_factory=dict)
    """Whether each located hand, by ``record_id`` and true side, has the right name."""

    @property
    def hits(self) -> int:
        """Number of hands that are located and named correctly."""
        return sum(self.named_right.values())

    @property
    def side_errors(self) -> int:
        """Number of hands that are located but named wrongly."""
        return len(self.named_right) - self.hits

    @property
    def precision(self) -> float:
        """Share of hits among the found hands."""
        return self.hits / max(self.predictions, 1)

    @property
    def recall(self) -> float:
        """Share of hits among the true hands."""
        return self.hits / max(self.hands, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.hits / max(self.predictions + self.hands, 1)

    @property
    def error(self) -> float:
        """Mean joint error of located hands, in hand lengths."""
        return self.error_sum / max(len(self.named_right), 1)


def count(records: Sequence[HandRecord], found: Mapping[str, Hands]) -> Count:
    """Compare located hands, by ``record_id``, with the truth."""
    total = Count()
    last_side: dict[tuple[str, str, Side], Side] = {}
    for record in records:
        truth = truth_of(record)
        predictions = found.get(record.record_id, [])
        total.hands += sum(hand.seen for hand in truth)
        # Pairs with the right side come first: where hands cover each other, a prediction may be near both.
        pairs = sorted(
            (side != hand.side, hand.error(keypoints), number, other)
            for number, (side, keypoints) in enumerate(predictions)
            for other, hand in enumerate(truth)
        )
        matched: dict[int, int] = {}
        for _, error, number, other in pairs:
            if error <= HIT and number not in matched and other not in matched.values():
                matched[number] = other
                if not truth[other].seen:
                    continue
                side, hand = predictions[number][0], truth[other]
                total.error_sum += error
                total.named_right[record.record_id, hand.side] = side == hand.side
                key = (record.sequence_id, record.camera_id, hand.side)
                total.flips += last_side.get(key, side) != side
                last_side[key] = side
        hidden = [hand for hand in truth if not hand.seen]
        total.predictions += sum(
            truth[matched[number]].seen
            if number in matched
            # A prediction of a hardly visible hand counts neither way.
            else not any(hand.error(keypoints) < 0.5 for hand in hidden)
            for number, (_, keypoints) in enumerate(predictions)
        )
    return total


# ---- the methods


def raw(records: Sequence[HandRecord], confidence: float) -> dict[str, Hands]:
    """Return the hands that MediaPipe finds in each frame alone, at most two, with MediaPipe's names."""
    options = vision.HandLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(require_weights("hand_landmarker"))),
        num_hands=2,
        min_hand_detection_confidence=confidence,
    )
    found: dict[str, Hands] = {}
    with vision.HandLandmarker.create_from_options(options) as landmarker:
        for record, pixels in open_frames(records):
            assert not isinstance(pixels, RecordError)
            seen = landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels))
            found[record.record_id] = [
                (
                    "right" if name[0].category_name == "Right" else "left",
                    np.array([(joint.x * record.width, joint.y * record.height) for joint in joints], np.float32),
                )
                for name, joints in zip(seen.handedness, seen.hand_landmarks, strict=True)
            ]
    return found


def ours(
    records: Sequence[HandRecord], open_mask: Callable[[HandRecord], BoolArray], masks: MasksPolicy = "grabcut"
) -> list[AnnotatedSample]:
    """Return the samples that annotation makes without labels."""
    settings = AnnotateSettings(keypoints="mediapipe", masks=masks, image_size=256)
    with HandDetector(require_weights("hand_landmarker"), settings.detection_confidence) as detector:
        annotator = Annotator(
            open_mask=open_mask,
            license="",
            settings=settings,
            annotator_hash="",
            detector=detector,
            mask_model=GrabCutModel() if masks == "grabcut" else None,
        )
        samples, _ = annotator.process("accuracy", records)
    return samples


def hands_of(samples: Iterable[AnnotatedSample]) -> dict[str, Hands]:
    """Return the hands of each sample in pixels of the full image."""
    return {sample.record_id: list(_hands_of(sample)) for sample in samples}


def _decoded(sample: AnnotatedSample) -> ByteArray:
    return np.asarray(cv2.imdecode(np.frombuffer(sample.image.bytes, np.uint8), cv2.IMREAD_COLOR), dtype=np.uint8)


def _hands_of(sample: AnnotatedSample) -> Iterator[tuple[Side, FloatArray]]:
    x0, y0, x1, _ = sample.crop_xyxy
    size = _decoded(sample).shape[0]
    full = np.asarray([x0, y0] + sample.keypoints_2d * (x1 - x0) / size, dtype=np.float32)
    for side in SIDES:
        if sample.keypoints_valid[hand_rows(side)].any():
            yield side, full[hand_rows(side)]


# ---- masks


def mask_overlaps(samples: Sequence[AnnotatedSample], records: Mapping[str, HandRecord]) -> dict[str, list[float]]:
    """Return the IoU of the true mask with each sample's mask, and with a mask from the wrist alone.

    Hands whose keypoints were not found are removed from the true mask: missing hands are counted elsewhere.
    """
    overlaps: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        record = records[sample.record_id]
        image = cv2.cvtColor(_decoded(sample), cv2.COLOR_BGR2RGB)
        truth = _true_mask(sample, record, image.shape[0])
        if sample.hand_mask is None or not truth.any():
            continue
        mask = cv2.imdecode(np.frombuffer(sample.hand_mask.bytes, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
        overlaps["ours"].append(_iou(mask, truth))
        wrists = np.zeros(KEYPOINT_COUNT, dtype=bool)
        wrists[[hand_rows(side).start + WRIST for side in SIDES]] = True
        wrist_only = _grabcut_from_points(image, sample.keypoints_2d[sample.keypoints_valid & wrists])
        overlaps["wrist"].append(_iou(wrist_only, truth))
    return overlaps


def _true_mask(sample: AnnotatedSample, record: HandRecord, size: int) -> BoolArray:
    image = Path(record.image_uri)
    path = image.parent.parent / mask_path(image.parent.name, record.frame_index)
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    wanted = np.zeros(labels.shape, dtype=np.uint8)
    for _, keypoints in _hands_of(sample):
        for hand in truth_of(record):
            if hand.error(keypoints) <= HIT:
                wanted[labels == SIDES.index(hand.side) + 1] = 255
    x0, y0, x1, _ = sample.crop_xyxy
    scale = (x1 - x0) / size
    to_full = np.array([[scale, 0, x0], [0, scale, y0]])
    warped = cv2.warpAffine(wanted, to_full, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(warped >= 128, dtype=np.bool_)


def _grabcut_from_points(image: ByteArray, points: FloatArray) -> BoolArray:
    """Segment with GrabCut from single points: our method, but with the published prompt, the wrist alone.

    In the table it represents masks that are prompted with the wrist, without SAM's weights.
    """
    size = image.shape[0]
    labels = np.full((size, size), cv2.GC_PR_BGD, dtype=np.uint8)
    for x, y in points:
        cv2.circle(labels, (round(float(x)), round(float(y))), size // 8, cv2.GC_PR_FGD, -1)
        cv2.circle(labels, (round(float(x)), round(float(y))), size // 40, cv2.GC_FGD, -1)
    if not (labels == cv2.GC_FGD).any():
        return np.zeros((size, size), dtype=np.bool_)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, (0, 0, 1, 1), *models, 4, cv2.GC_INIT_WITH_MASK)
    return np.asarray((labels & 1).astype(np.bool_))


def _iou(first: BoolArray, second: BoolArray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


# ---- the table


def main() -> None:
    """Render the set, run all methods, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "handdata-accuracy")
    parser.add_argument("--real", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--part", action="append", choices=SYNTHETIC + REAL, help="only these parts")
    parser.add_argument("--seed", type=int, default=SetSizes.seed, help="another set, to choose thresholds on")
    options = parser.parse_args()
    folder = write_set(options.cache, SetSizes(options.seed))
    print(f"synthetic set {folder}: SHA-256 {digest(path for path in folder.rglob('*') if path.is_file())}")
    rows = []
    for part in options.part or SYNTHETIC + REAL:
        if part in REAL and not options.real.is_dir():
            print(f"{part}: skipped, there is no {options.real}")
            continue
        records, adapter = part_records(part, folder, options.real)
        samples = ours(records, adapter.open_mask)
        our_count = count(records, hands_of(samples))
        for confidence in RAW_CONFIDENCES:
            raw_count = count(records, raw(records, confidence))
            same = _wrong_of_the_same(raw_count, our_count)
            rows.append(_row(part, len(records), f"raw MediaPipe at {confidence}", raw_count, same))
        row = _row(part, len(records), "ours", our_count)
        if part in SYNTHETIC:
            overlaps = mask_overlaps(samples, {record.record_id: record for record in records})
            row[-1] = f"{np.mean(overlaps['ours']):.3f}"
            rows.append([part, "", "GrabCut from the wrists", *[""] * 9, f"{np.mean(overlaps['wrist']):.3f}"])
        rows.append(row)
    header = ("part", "frames", "method", "hands", "found", "precision", "recall", "F1", "error", "wrong side", "flips")
    print_table(
        "Error of located hands in hand lengths; wrong side among the hands that both locate: theirs, ours",
        rows,
        header=(*header, "of the same", "mask IoU"),
    )


def part_records(part: Part, folder: Path, real: Path) -> tuple[list[HandRecord], Adapter]:
    """Return the records of a part and the adapter that opens their masks."""
    if part in SYNTHETIC:
        return read_records(SyntheticAdapter(), folder / part), SyntheticAdapter()
    if part == "views":
        return read_records(FoundHand10MAdapter(), real / "FoundHand10M"), FoundHand10MAdapter()
    return phone_records(real / "phone_video"), SyntheticAdapter()


def _row(part: Part, frames: int, name: str, of: Count, wrong_of_the_same: str = "") -> list[str]:
    shares = [f"{value:.3f}" for value in (of.precision, of.recall, of.f1, of.error)]
    flips = str(of.flips) if part in VIDEOS else ""
    counts = [str(of.side_errors), flips, wrong_of_the_same]
    return [part, str(frames), name, str(of.hands), str(of.predictions), *shares, *counts, ""]


def _wrong_of_the_same(theirs: Count, ours: Count) -> str:
    """Return the side errors of both among the hands that both locate."""
    both = theirs.named_right.keys() & ours.named_right.keys()
    return ", ".join(str(sum(not of.named_right[hand] for hand in both)) for of in (theirs, ours))


if __name__ == "__main__":
    main()
