"""The folder of ``handdata sample --out-dir``: every picture at the network's own size, with what it was made from.

Each is a PNG file whose text says ``handdata`` (the version), ``task``, ``checkpoint``, ``checkpoint_sha256``,
``licences`` (of the data that the network was trained on), ``settings`` (JSON), ``seed``, ``number`` (of the picture;
seed and number give its noise), ``reference`` and ``target`` (their names), and ``inputs_sha256`` (of their pixels and
keypoints). A picture that is there with the same text is not drawn again. Where an upscaler is given, each picture lies
there enlarged, too, as ``..._x4.png``, which says ``upscaled`` beside.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from handdata._version import __version__
from handdata.pipeline.storage import Storage
from handdata.pipeline.weights import UPSCALER, sha256_of
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.trainer.checkpoints import averaged_weights, training_licences
from handdata.trainer.data.augment import Frame
from handdata.trainer.presets import Preset, SamplingOptions
from handdata.trainer.upscaling import Upscaler
from handdata.trainer.weights import read_stored


@dataclass(frozen=True, slots=True)
class CheckpointOrigin:
    """What is told of a network in the pictures that it draws.

    Args:
        checkpoint: Path or URL of the file of weights.
        checkpoint_sha256: SHA-256 of that file, hexadecimal.
        licences: Ids of the licences of the data that it was trained on, separated by commas, as far as they are known.

    """

    checkpoint: str
    checkpoint_sha256: str
    licences: str

    @classmethod
    def of(cls, checkpoint: str) -> "CheckpointOrigin":
        """Read the origin of a checkpoint, which may be whatever ``load_sampler`` takes."""
        file = averaged_weights(checkpoint)
        with Storage(file).local_copy() as local:
            digest = sha256_of(local)
            licences = training_licences(file, read_stored(str(local)))
        return cls(file, digest, ", ".join(licences))


@dataclass(frozen=True, slots=True)
class NamedFrame:
    """A frame with the name that a user knows it by: a file or a sample.

    Args:
        name: Path or sample_id.
        frame: Image and labels.

    """

    name: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What a picture was made from.

    Args:
        reference: Name of what lent it its hand; empty for nothing.
        target: Name of what lent it its pose.
        inputs_sha256: Hash of their pixels and keypoints.

    """

    reference: str = ""
    target: str = ""
    inputs_sha256: str = ""

    @classmethod
    def of(cls, references: Sequence[NamedFrame], target: NamedFrame | None) -> "MadeFrom":
        """Name references and target, and hash what the network is given of them."""
        digest = hashlib.sha256()
        for each in references:
            for plane in (each.frame.image, each.frame.mask, each.frame.keypoints, each.frame.valid):
                digest.update(np.ascontiguousarray(plane).tobytes())
        if target is not None:
            digest.update(target.frame.keypoints.tobytes() + target.frame.valid.tobytes())
        names = ", ".join(each.name for each in references)
        return cls(names, target.name if target else "", digest.hexdigest() if references or target else "")

    @classmethod
    def of_repair(cls, photo: str, square: Frame, region: BoolArray) -> "MadeFrom":
        """Name a photograph, and hash a square of it and what of the square (H, W) is drawn anew."""
        digest = hashlib.sha256()
        for plane in (square.image, square.keypoints, square.valid, region):
            digest.update(np.ascontiguousarray(plane).tobytes())
        return cls(target=photo, inputs_sha256=digest.hexdigest())


class PictureFolder:
    """Pictures of one call of a task. Without a folder, none is written and none is found.

    Args:
        folder: Folder of the pictures; made when the first is written.
        task: Name of the task.
        checkpoint: Path or URL of the weights.
        preset: Settings of the network.
        options: Steps, guidance and seed.
        details: Further settings of the call, as JSON has them.
        upscaler: Writes each picture enlarged, too, beside it; None writes none.
        on_note: Called with a line before a picture is enlarged, which takes a while.

    """

    def __init__(
        self,
        folder: Path | None,
        task: str,
        checkpoint: str,
        preset: Preset,
        options: SamplingOptions,
        details: Mapping[str, object] | None = None,
        upscaler: Upscaler | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._upscaler, self._note = upscaler, on_note
        self._folder, self._task, self._checkpoint, self._options = folder, task, checkpoint, options
        self._settings = options.applied_to(preset).model_dump(mode="json") | dict(details or {})

    @cached_property
    def _origin(self) -> CheckpointOrigin:
        return CheckpointOrigin.of(self._checkpoint)

    def write(self, number: int, picture: ByteArray, made_from: MadeFrom) -> None:
        """Write a picture.

        Args:
            number: Its number among those of the call, from 0 on.
            picture: RGB (H, W, 3).
            made_from: Reference and target.

        Raises:
            StorageError: It cannot be written.

        """
        if self._folder is None:
            return
        self._write(self._name(number, made_from), picture, self._text(number, made_from))
        self._write_enlarged(number, picture, made_from)

    def _write(self, name: str, picture: ByteArray, text: Mapping[str, str]) -> None:
        chunks = PngImagePlugin.PngInfo()
        for key, value in text.items():
            chunks.add_text(key, value)
        stream = BytesIO()
        Image.fromarray(picture).save(stream, "PNG", pnginfo=chunks)
        assert self._folder is not None
        Storage(self._folder).write_bytes(name, stream.getvalue())

    def _write_enlarged(self, number: int, picture: ByteArray, made_from: MadeFrom) -> None:
        """Write a picture as the upscaler enlarges it, unless it is there."""
        if self._upscaler is None:
            return
        factor = self._upscaler.factor
        text = {**self._text(number, made_from), "upscaled": f"{factor} times, by {UPSCALER}"}
        name = f"{self._name(number, made_from).removesuffix('.png')}_x{factor}.png"
        if self._read(name, text) is None:
            if self._note:
                self._note(f"enlarging picture {number + 1}: {name}")
            self._write(name, self._upscaler.enlarge(picture, self._options.seed), text)

    def is_there(self, number: int, made_from: MadeFrom) -> bool:
        """Return whether there is a file where a picture would be written."""
        return self._folder is not None and (self._folder / self._name(number, made_from)).exists()

    def find(self, number: int, made_from: MadeFrom) -> ByteArray | None:
        """Return a picture (H, W, 3) RGB that an earlier call has made of all the same; None where there is none."""
        picture = self._read(self._name(number, made_from), self._text(number, made_from)) if self._folder else None
        if picture is not None:
            self._write_enlarged(number, picture, made_from)
        return picture

    def _read(self, name: str, text: Mapping[str, str]) -> ByteArray | None:
        """Return a picture of the folder that says what it should; None where there is none."""
        assert self._folder is not None
        try:
            with Image.open(self._folder / name) as opened:
                return np.asarray(opened.convert("RGB")) if opened.info == text else None
        except (OSError, ValueError, SyntaxError):  # none is there, or half of one
            return None

    def _text(self, number: int, made_from: MadeFrom) -> dict[str, str]:
        return {
            "handdata": __version__,
            "task": self._task,
            **asdict(self._origin),
            "settings": json.dumps(self._settings, sort_keys=True),
            "seed": str(self._options.seed),
            "number": str(number),
            **{key: value for key, value in asdict(made_from).items() if value},
        }

    def _name(self, number: int, made_from: MadeFrom) -> str:
        first = made_from.reference.split(", ")[0]
        words = [re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[-40:] for name in (first, made_from.target)]
        return "_".join([f"{number:04d}", *filter(None, words)]) + ".png"
