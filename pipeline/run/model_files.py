"""The model files of a run, found on the driver: which ones the settings need, and where they are."""

from pathlib import Path

from handdata.pipeline.annotation.factory import ModelFiles
from handdata.pipeline.run.request import ModelPaths
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import WEIGHTS, find_weights, require_weights, sha256_of
from handdata.schemas import WeightsError
from handdata.schemas.sample import MaskOrigin


def find_models(settings: AnnotateSettings, paths: ModelPaths) -> ModelFiles:
    """Find the model files that the settings need, and download MediaPipe's model where it is missing.

    Raises:
        WeightsError: A needed file is nowhere.

    """
    weights, sam_checkpoint = paths.weights, paths.sam_checkpoint
    hand_landmarker = None if settings.keypoints == "dataset" else require_weights("hand_landmarker", weights)
    sam: Path | None = None
    if sam_checkpoint is not None:
        if not sam_checkpoint.is_file():
            raise WeightsError(f"the SAM checkpoint {sam_checkpoint} does not exist", "check --sam-checkpoint")
        sam = sam_checkpoint
    if settings.masks in ("auto", "sam") and sam is None:
        candidates = (find_weights(name, weights) for name in ("sam_vit_h", "sam_vit_l", "sam_vit_b"))
        sam = next((path for path in candidates if path is not None), None)
        if sam is None and settings.masks == "sam":
            file = WEIGHTS["sam_vit_h"]
            raise WeightsError(
                "no SAM checkpoint is on this machine",
                f"run `handdata weights fetch {file.name}`, pass --sam-checkpoint, put {file.filename} into the folder "
                "HANDDATA_WEIGHTS, or choose --masks grabcut",
            )
    if settings.masks not in ("auto", "sam"):
        sam = None
    files = {"hand_landmarker": hand_landmarker, "sam": sam}
    return ModelFiles(
        hand_landmarker=hand_landmarker,
        sam=sam,
        sam_origin=None if sam is None else _sam_origin(sam),
        grabcut=settings.masks == "grabcut" or (settings.masks == "auto" and sam is None),
        hashes={name: sha256_of(path) for name, path in files.items() if path is not None},
    )


def _sam_origin(checkpoint: Path) -> MaskOrigin:
    from handdata.pipeline.annotation.sam import sam_model_type_of

    origins: dict[str, MaskOrigin] = {"vit_h": "sam_vit_h", "vit_l": "sam_vit_l", "vit_b": "sam_vit_b"}
    return origins[sam_model_type_of(checkpoint)]
