"""The settings of a run: flag > environment variable > ``handdata.toml`` > default."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from handdata.schemas import UsageError
from handdata.schemas.sample import CropMode, Flag

KeypointsPolicy = Literal["prefer-dataset", "dataset", "mediapipe"]
MasksPolicy = Literal["auto", "sam", "grabcut", "dataset", "none"]

SETTINGS_FILE = "handdata.toml"
_PREFIX: Final = "HANDDATA_"
_NESTED: Final = "__"

FLAG_THRESHOLDS: Final[dict[Flag, str]] = {
    "blurry": "min_sharpness",
    "labels_disagree": "max_disagreement",
    "low_mask_coverage": "min_mask_score",
    "mask_spill": "max_mask_spill",
    "near_duplicate": "min_phash_distance",
    "no_content": "min_contrast",
    "small_hand": "min_hand_px",
    "truncated": "max_truncation",
}
"""Name of the threshold of each flag that follows from stored numbers."""


class QualitySettings(BaseModel):
    """Quality gates: a threshold for each flag, and which flags reject a record instead of marking its sample.

    Flags can be recomputed from the stored numbers for other thresholds. A record that a gate rejected is not stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_mask_score: float = Field(default=0.6, ge=0, le=1)
    """``low_mask_coverage`` where less than this share of the keypoints lies inside the mask."""
    max_mask_spill: float = Field(default=0.005, ge=0, le=1)
    """``mask_spill`` where more than this share of the mask lies away from the hands. A good mask has none there."""
    min_hand_px: float = Field(default=48, ge=0, allow_inf_nan=False)
    """``small_hand`` where the longer side of a hand's keypoint box is below this many full-image pixels."""
    max_truncation: float = Field(default=0, ge=0, le=1)
    """``truncated`` where more than this share of a hand's joints lies outside the image."""
    min_sharpness: float = Field(default=2, ge=0, allow_inf_nan=False)
    """``blurry`` where the variance of the Laplacian is below this."""
    min_contrast: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    """``no_content`` where the contrast of the hand box is below this: a black frame, noise or one colour."""
    max_disagreement: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """``labels_disagree`` where dataset and MediaPipe differ by more than this share of the hand's size."""
    min_phash_distance: int = Field(default=3, ge=0, le=65)
    """``near_duplicate`` where the perceptual hash of a frame differs in fewer bits than this from that of the last
    frame of its sequence and camera that is no near-duplicate; 0 never flags. JPEG noise changes up to 3 bits."""
    reject: frozenset[Flag] = frozenset()
    """Flags that are gates: a record with one of them is rejected, with the reason ``quality_<flag>``."""

    @field_serializer("reject", when_used="json")
    def _sorted(self, reject: frozenset[Flag]) -> list[Flag]:
        return sorted(reject)

    def gates(self) -> dict[str, float | None]:
        """Return the flags that reject, with their threshold; None for a flag that annotation observes."""
        names = {flag: FLAG_THRESHOLDS.get(flag) for flag in sorted(self.reject)}
        return {flag: None if name is None else getattr(self, name) for flag, name in names.items()}

    def thresholds(self) -> dict[str, float]:
        """Return the thresholds of all flags by name."""
        return self.model_dump(exclude={"reject"})


class AnnotateSettings(BaseModel):
    """Settings that decide what a sample holds. Rows of different settings have different ``annotator_hash`` values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keypoints: KeypointsPolicy = "prefer-dataset"
    masks: MasksPolicy = "auto"
    crop: CropMode = "frame"
    image_size: int = Field(default=512, ge=32, le=2048)
    """Side of the square crops in pixels."""
    crop_scale: float = Field(default=1.6, gt=1)
    """Side of the square over the longer side of the box of all joints."""
    detection_confidence: float = Field(default=0.3, ge=0, le=1)
    """Least confidence of MediaPipe's palm detection."""
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    quality: QualitySettings = QualitySettings()

    def identity(self) -> dict[str, object]:
        """Return what, beside the model files, decides which samples there are and what they hold.

        Gates are part of it. Thresholds that only flag are not, since ``handdata flag`` can change them later.
        """
        return {**self.model_dump(mode="json", exclude={"quality"}), "gates": self.quality.gates()}

    def digest(self, model_hashes: dict[str, str]) -> str:
        """Return the ``annotator_hash`` of these settings with these model files (name to SHA-256)."""
        document = {"settings": self.identity(), "models": model_hashes}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


class Settings(BaseSettings):
    """Locations and limits on this machine. Their environment variables have the prefix ``HANDDATA_``."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, toml_file=SETTINGS_FILE, extra="forbid", env_nested_delimiter=_NESTED
    )

    workspace: str = "./workspace"
    """Folder or fsspec URL of records, dataset and runs."""
    sources_root: Path = Path("./sources")
    """Folder with one folder per downloaded dataset, named like the source."""
    weights: Path | None = None
    """Folder of model files, searched before any download."""
    mano_dir: Path | None = None
    """Folder of the user's own MANO_RIGHT.pkl and MANO_LEFT.pkl."""
    stuck_after_s: float = Field(default=600, gt=0)
    """Time without progress after which a worker of ``annotate`` is ended and counts as crashed. A record, or a batch
    of crops at the mask model, never takes so long: the largest SAM on a slow core needs three minutes for a batch."""
    annotate: AnnotateSettings = AnnotateSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment before the TOML file; ``.env`` and secret files are not read."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, f"{prefix}{name}{_NESTED}")


SETTINGS_VARIABLES: Final = frozenset(name.lower() for name in _variables(Settings, _PREFIX))
"""Names of all environment variables that are settings, in lower case: their case is nothing to ``Settings``."""


def load_settings(**flags: Any) -> Settings:
    """Return the settings: flag > variable > handdata.toml > default.

    Args:
        flags: Settings by name; None for a flag that was not given.

    Raises:
        UsageError: A setting has a wrong value, or handdata.toml does not parse.

    """
    try:
        return Settings(**_given(flags))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"setting {where}: {first['msg']}", f"check flags, HANDDATA_ variables and {SETTINGS_FILE}"
        ) from None
    except ValueError as error:  # a TOML file that does not parse
        raise UsageError(f"{SETTINGS_FILE} cannot be read: {error}") from None


def annotation_settings(
    settings: AnnotateSettings, given: Mapping[str, object], quality: Mapping[str, object]
) -> AnnotateSettings:
    """Return annotation settings with those replaced that were given; None stands for one that was not.

    Args:
        settings: Settings from variables and handdata.toml.
        given: Annotation settings by name.
        quality: Quality settings by name.

    Raises:
        UsageError: There is no such setting, or it has a wrong value.

    """
    of_quality = settings.quality.model_dump(exclude_unset=True) | _given(quality)
    changed = settings.model_dump(exclude_unset=True) | _given(given) | {"quality": of_quality}
    return load_settings(annotate=changed).annotate


def _given(settings: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
