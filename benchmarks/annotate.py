"""Speed of keypoints through all of ``handdata annotate``, compared with bare MediaPipe loops and daft-physical-ai.

    python benchmarks/annotate.py [--frames 5000] [--size 256] [--video-frames 200]

All process the same JPEG files in one run, and each is timed from its first finished batch to its last:

- two bare loops (read, decode, detect, keep the result), in two processes at once;
- two bare loops of MediaPipe's video mode over whole videos, with the number of hands in each: what tracking can give;
- ``daft_physical_ai.hands.track_hands(method="mediapipe")`` over the same files, in an environment of its own;
- ``handdata annotate --keypoints mediapipe --masks none``: read, decode, detect, crop, measure, encode, commit. The
  files are taken once as stills, each a sequence of its own, and once as videos of ``--video-frames`` frames.

Videos show a right hand, a left hand or both, a third each. Tracking saves MediaPipe's search for palms, but not its
landmarks of each hand, so videos of one hand and of two are also timed apart. They are rendered once and kept in the
cache folder.
"""

import argparse
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import cv2
import ray
from peers import peer_python

from handdata.adapters import Partition
from handdata.adapters.synthesis.dataset import write_dataset
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.console import err, print_table
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.weights import cache_folder, require_weights
from handdata.schemas import HandRecord, Rejection

CONFIDENCE = AnnotateSettings().detection_confidence
LOOPS = 2
DAFT = ("daft-physical-ai[mediapipe]==0.3.0",)
DAFT_SCRIPT = """
import sys, time
import daft
from daft_physical_ai.hands import track_hands

paths, model = open(sys.argv[1]).read().splitlines(), sys.argv[2]
frames = daft.from_pydict({"path": paths}).into_batches(16)
frames = frames.with_column("image", daft.functions.decode_image(daft.functions.download(daft.col("path"))))
hands = track_hands(daft.col("image"), method="mediapipe", model_path=model, min_confidence=float(sys.argv[3]))
started, rows = 0.0, 0
for batch in frames.select("path", hands.alias("hands")).to_arrow_iter():
    if not started:
        started, first = time.perf_counter(), batch.num_rows
    rows += batch.num_rows
print((rows - first) / (time.perf_counter() - started))
"""


Videos = list[tuple[int, list[str]]]
"""Videos: the number of hands in each, and the files of its frames."""


def bare_loop(videos: Videos, mode: str, model: str, ready: Barrier, answers: "multiprocessing.Queue[float]") -> None:
    """Detect hands in all frames of videos; report the frames a second since all loops were ready."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    def landmarker(hands: int) -> vision.HandLandmarker:
        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=model),
            running_mode=vision.RunningMode[mode],
            num_hands=hands,
            min_hand_detection_confidence=CONFIDENCE,
        )
        return vision.HandLandmarker.create_from_options(options)

    def detect(file: str, hands: int, number: int) -> object:
        pixels = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        if mode == "VIDEO":
            return landmarkers[hands].detect_for_video(image, 33 * number)
        return landmarkers[2].detect(image)

    cv2.setNumThreads(1)
    landmarkers = {hands: landmarker(hands) for hands in (1, 2)}
    for hands in landmarkers:
        detect(videos[0][1][0], hands, 0)
    ready.wait()
    started = time.perf_counter()
    frames = [(file, hands) for hands, files in videos for file in files]
    kept = [detect(file, hands, number) for number, (file, hands) in enumerate(frames, start=1)]
    answers.put(len(kept) / (time.perf_counter() - started))
    for each in landmarkers.values():
        each.close()


def bare_loops_images_per_s(videos: Videos, mode: str) -> float:
    """Run the loops at once, each on its share of the videos; return the sum of their rates."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(LOOPS), context.Queue()
    model = str(require_weights("hand_landmarker"))
    shares = [videos[share::LOOPS] for share in range(LOOPS)]
    loops = [context.Process(target=bare_loop, args=(share, mode, model, ready, answers)) for share in shares]
    for loop in loops:
        loop.start()
    rates = [answers.get() for _ in loops]
    for loop in loops:
        loop.join()
    return sum(rates)


def videos_of(root: Path) -> Videos:
    """Return the videos of a dataset."""
    adapter = SyntheticAdapter()
    rows = (row for partition in adapter.partitions(root) for row in adapter.records(root, partition))
    records = [row for row in rows if isinstance(row, HandRecord)]
    videos: dict[str, tuple[int, list[str]]] = {}
    for record in sorted(records, key=lambda record: (record.sequence_id, record.frame_index)):
        hands, files = videos.get(record.sequence_id, (0, []))
        videos[record.sequence_id] = max(hands, record.hand_state.count("labelled")), [*files, record.image_uri]
    return list(videos.values())


def daft_images_per_s(files: list[str], folder: Path) -> float:
    """Run daft-physical-ai over the files; return its rate."""
    (folder / "paths.txt").write_text("\n".join(files))
    command = [peer_python("daft-physical-ai", DAFT), "-I", "-c", DAFT_SCRIPT]
    arguments = [folder / "paths.txt", require_weights("hand_landmarker"), str(CONFIDENCE)]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def annotate_images_per_s(storage: Storage, size: int) -> float:
    """Annotate all records of a workspace with a fresh Ray; return the rate from first finished unit to last."""
    settings = AnnotateSettings(keypoints="mediapipe", masks="none", image_size=size)
    finished: list[tuple[float, int]] = []
    annotate(
        AnnotateRequest(Dataset(storage)),
        settings,
        on_unit=lambda marker: finished.append((time.perf_counter(), marker.records)),
    )
    ray.shutdown()
    return sum(rows for _, rows in finished[1:]) / (finished[-1][0] - finished[0][0])


class VideosOfOneHand(SyntheticAdapter):
    """The synthetic source, only its videos of one hand."""

    hands = 1

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the records of a partition that show this many hands."""
        for row in super().records(root, partition):
            if not isinstance(row, HandRecord) or row.hand_state.count("labelled") == self.hands:
                yield row


class VideosOfTwoHands(VideosOfOneHand):
    """The synthetic source, only its videos of two hands."""

    hands = 2


class Stills(SyntheticAdapter):
    """The synthetic source with each frame as a sequence of its own."""

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the records of a partition, each as a sequence of its own."""
        for row in super().records(root, partition):
            if isinstance(row, HandRecord):
                name = f"{row.sequence_id}-{row.frame_index:06d}"
                yield row.model_copy(update={"sequence_id": name, "frame_index": 0, "timestamp_s": None})
            else:
                yield row


def rendered(frames: int, video_frames: int, size: int) -> Path:
    """Return the folder of a synthetic dataset of about this many frames; the first call renders it."""
    root = cache_folder().parent / "benchmarks" / f"annotate-{frames}-{video_frames}-{size}"
    if not root.exists():
        err.print(f"rendering {frames} frames into {root} (once)")
        sequences = max(frames // video_frames, 2)
        write_dataset(root, min(8, sequences), sequences, video_frames, 1, size, seed=0)
    return root


Row = tuple[str, float, float]
"""Name of a contender, its rate and that of the bare loops over the same files."""


def main() -> None:
    """Run all contenders, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--video-frames", type=int, default=200)
    options = parser.parse_args()
    root = rendered(options.frames, options.video_frames, options.size)
    videos = videos_of(root)
    files = [file for _, frames in videos for file in frames]
    rows: list[Row] = []

    def add(name: str, rate: float, loops: float | None = None) -> float:
        rows.append((name, rate, loops or rate))
        err.print(f"{name}: {rate:.1f} images/s")
        return rate

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def annotated(adapter: type[SyntheticAdapter]) -> float:
            storage = Storage(folder / adapter.__name__)
            ingest(adapter, root, storage)
            return annotate_images_per_s(storage, options.size)

        loops = add("two bare MediaPipe loops at once", bare_loops_images_per_s(videos, "IMAGE"))
        daft = add("daft-physical-ai track_hands", daft_images_per_s(files, folder), loops)
        add("handdata annotate, stills", annotated(Stills), loops)
        add("handdata annotate, videos", annotated(SyntheticAdapter), loops)
        add("the loops in video mode", bare_loops_images_per_s(videos, "VIDEO"), loops)
        for adapter, hands in ((VideosOfOneHand, "one hand"), (VideosOfTwoHands, "two hands")):
            some = [video for video in videos if video[0] == adapter.hands]
            loops = add(f"videos of {hands}: the loops", bare_loops_images_per_s(some, "IMAGE"))
            add(f"videos of {hands}: handdata annotate", annotated(adapter), loops)
            add(f"videos of {hands}: the loops in video mode", bare_loops_images_per_s(some, "VIDEO"), loops)
    print_table(
        f"{len(files)} frames of {options.size} px, first batch to last",
        [(name, f"{rate:.1f}", f"{rate / loops:.2f}", f"{rate / daft:.2f}") for name, rate, loops in rows],
        header=("", "images/s", "relative to the loops on the same files", "relative to daft on all files"),
    )


if __name__ == "__main__":
    main()
