"""Images of the pairs of a list, one file a pair: of a network, of another program, or written out for one."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from PIL import Image

from handdata.pictures.png import encode_png
from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame
from handdata.trainer.data.pair_lists import ListedFrames, PairList
from handdata.trainer.figures import draw_skeleton
from handdata.trainer.presets import BATCH_SIZE, SamplingOptions
from handdata.trainer.tasks import Sampler, gesture_transfer, video

MADE_WITH: Final = "made-with.json"
"""File that says how the images of a folder were drawn; written before the first one."""
EXPORTED_LIST: Final = "pair-list.json"

_SHOWN: Final = 3

OnPair = Callable[[int, int], None]


def image_name(pair_id: str) -> str:
    """Return the name of a pair's image in a folder."""
    return f"{pair_id}.png"


def draw_pairs(
    sampler: Sampler,
    pairs: PairList,
    frames: ListedFrames,
    options: SamplingOptions,
    folder: Path,
    checkpoint_sha256: str,
    on_pair: OnPair | None = None,
) -> None:
    """Draw the targets of a list into a folder; images that are there, drawn by the same network and options, stay.

    Args:
        sampler: Network that draws.
        pairs: The list.
        frames: Its frames.
        options: Steps, guidance and seed.
        folder: Folder of the images, at the network's size.
        checkpoint_sha256: Hash of the network's file.
        on_pair: Called with (pairs that have their image, pairs in all).

    Raises:
        UsageError: The folder holds images that something else made.

    """
    files = Storage(folder.absolute())
    made_with = {
        "pair_list": pairs.sha256,
        "checkpoint": checkpoint_sha256,
        "seed": options.seed,
        "sampling": options.applied_to(sampler.preset).model_dump(mode="json"),
    }
    _claim(files, made_with)
    done = 0
    for numbers in _together(pairs):
        missing = [number for number in numbers if not files.exists(image_name(pairs.pairs[number].id))]
        if missing:
            # A video's frames depend on those before them.
            drawn = numbers if pairs.task == "video" else missing
            for number, image in zip(drawn, _drawn(sampler, pairs, frames, drawn, options), strict=True):
                files.write_bytes(image_name(pairs.pairs[number].id), encode_png(image))
        done += len(numbers)
        if on_pair:
            on_pair(done, len(pairs.pairs))


def _together(pairs: PairList) -> list[list[int]]:
    """Return the numbers of the pairs that are drawn at once: clips, or batches."""
    if pairs.task == "video":
        return pairs.clips()
    numbers = list(range(len(pairs.pairs)))
    return [numbers[start : start + BATCH_SIZE] for start in range(0, len(numbers), BATCH_SIZE)]


def _claim(files: Storage, made_with: Mapping[str, Any]) -> None:
    """Make a folder one of images that are drawn this way: those drawn in another way go.

    Raises:
        UsageError: It holds images that no network of ours has drawn.

    """
    said = json.dumps(made_with, indent=1, sort_keys=True).encode()
    there = files.exists(MADE_WITH)
    if there and files.read_bytes(MADE_WITH) == said:
        return
    images = files.list_files("", ".png")
    if images and not there:
        raise UsageError(
            f"{files.describe()} holds images, and no {MADE_WITH} that says how they were drawn",
            "choose another --out; --images scores images that another program has made",
        )
    for name in images:
        files.remove(name)
    files.write_bytes(MADE_WITH, said)


def _drawn(
    sampler: Sampler, pairs: PairList, frames: ListedFrames, numbers: list[int], options: SamplingOptions
) -> ByteArray:
    listed = [pairs.pairs[number] for number in numbers]
    targets = [frames.frame(pair.target) for pair in listed]
    if pairs.task == "video":
        return video(sampler, [frames.frame(listed[0].reference)], targets, options)
    task = Task.VIEW_CHANGE if pairs.task == "view" else Task.POSE_CHANGE
    references = [frames.frame(pair.reference) for pair in listed]
    return gesture_transfer(sampler, references, targets, options, task=task, numbers=numbers)


class ImageFolder:
    """The images of a list's targets in a folder."""

    def __init__(self, folder: Path, pairs: PairList, on_note: Callable[[str], None] | None = None) -> None:
        """Check that each pair has its image, whole and readable: none is a surprise after hours of drawing others.

        Args:
            folder: Folder of ``<pair_id>.png`` for each pair.
            pairs: The list.
            on_note: Called with a line where images have another size than the list's, or are JPEG.

        Raises:
            UsageError: Images are missing, cannot be decoded, are not square, are transparent, or are grey of
                more than 8 bits.

        """
        self._folder, self._size = folder, pairs.size
        names = [image_name(pair.id) for pair in pairs.pairs]
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}", f"it should hold an image for each pair, such as {names[0]}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UsageError(
                f"{folder} lacks {len(missing):,} of {len(names):,} images of the pair list: {_some(missing)}",
                "an image is named PAIR_ID.png; --export-pairs writes the references and keypoints of each pair",
            )
        seen = {name: self._looked_at(name) for name in names}
        if deep := [name for name, image in seen.items() if not image.of_8_bits]:
            raise UsageError(
                f"{folder} holds {len(deep):,} grey images of more than 8 bits: {_some(deep)}", "write 8-bit PNG"
            )
        if clear := [name for name, image in seen.items() if image.transparent]:
            raise UsageError(
                f"{folder} holds {len(clear):,} images that are transparent: {_some(clear)}",
                "lay them over their background, and write PNG without transparency",
            )
        if on_note and (lossy := [name for name, image in seen.items() if image.jpeg]):
            on_note(f"{len(lossy):,} images of {folder} are JPEG, whose losses are scored too: {_some(lossy)}")
        sizes = {name: image.size for name, image in seen.items()}
        if odd := [f"{name} ({width} x {height})" for name, (width, height) in sizes.items() if width != height]:
            raise UsageError(
                f"{folder} holds {len(odd):,} images that are not square: {_some(odd)}",
                f"the list's images are {self._size} x {self._size} pixels",
            )
        other = [f"{name} ({width} px)" for name, (width, _) in sizes.items() if width != self._size]
        if other and on_note:
            on_note(f"{len(other):,} images of {folder} are resized to the list's {self._size} px: {_some(other)}")

    def image(self, pair_id: str) -> ByteArray:
        """Return a pair's image (S, S, 3) at the list's size."""
        image = np.asarray(self._decoded(image_name(pair_id)).convert("RGB"))
        side = image.shape[0]
        if side == self._size:
            return image
        how = cv2.INTER_AREA if side > self._size else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, (self._size, self._size), interpolation=how), dtype=np.uint8)

    def _looked_at(self, name: str) -> "_Seen":
        decoded = self._decoded(name)
        transparent = decoded.has_transparency_data and bool((np.asarray(decoded.convert("RGBA"))[..., 3] < 255).any())
        # Colours of 16 bits are read as 8; of grey ones, what is above 255 would be white.
        of_8_bits = not decoded.mode.startswith(("I", "F"))
        return _Seen(decoded.size, of_8_bits, transparent, decoded.format == "JPEG")

    def _decoded(self, name: str) -> Image.Image:
        try:
            with (self._folder / name).open("rb") as file, Image.open(file) as opened:
                opened.load()
                return opened
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UsageError(
                f"{self._folder / name} cannot be read as an image: {' '.join(str(error).split())}",
                "write it anew, as PNG",
            ) from None


class _Seen(NamedTuple):
    """What decides whether an image can be scored."""

    size: tuple[int, int]
    of_8_bits: bool
    transparent: bool
    jpeg: bool


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def export_pairs(pairs: PairList, frames: ListedFrames, folder: Path, on_pair: OnPair | None = None) -> None:
    """Write what another method needs of a list's pairs, and what it is compared with.

    Below ``reference/``, ``reference_mask/``, ``pose/`` (the target's skeleton in colours), ``target/`` and
    ``target_mask/`` lies a PNG file a pair, below ``keypoints/`` a ``.npz`` file with ``reference`` and ``target``,
    (42, 2) pixels, and ``reference_valid`` and ``target_valid`` (42,). The list itself is written last.

    Args:
        pairs: The list.
        frames: Its frames.
        folder: Folder of the files.
        on_pair: Called with (pairs written, pairs in all).

    """
    files = Storage(folder.absolute())
    for number, pair in enumerate(pairs.pairs, start=1):
        reference, target = frames.frame(pair.reference), frames.frame(pair.target)
        images = {
            "reference": reference.image,
            "reference_mask": _grey(reference),
            "pose": draw_skeleton(pairs.size, target.keypoints, target.valid),
            "target": target.image,
            "target_mask": _grey(target),
        }
        for kind, image in images.items():
            files.write_bytes(f"{kind}/{image_name(pair.id)}", encode_png(image))
        stored = io.BytesIO()
        np.savez(
            stored,
            reference=reference.keypoints,
            reference_valid=reference.valid,
            target=target.keypoints,
            target_valid=target.valid,
        )
        files.write_bytes(f"keypoints/{pair.id}.npz", stored.getvalue())
        if on_pair:
            on_pair(number, len(pairs.pairs))
    files.write_bytes(EXPORTED_LIST, pairs.encode())


def _grey(frame: Frame) -> ByteArray:
    """Return a frame's mask as an image: 255 on the hands, 0 elsewhere."""
    return np.repeat(np.where(frame.mask > 127, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
