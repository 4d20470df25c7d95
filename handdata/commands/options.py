"""Options that several commands share, and the settings behind them."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from handdata.schemas import UsageError

if TYPE_CHECKING:
    from handdata.pipeline.settings import Settings


class SplitName(StrEnum):
    """Splits, as a choice."""

    train = "train"
    val = "val"
    test = "test"


class MasksName(StrEnum):
    """Mask policies, as a choice."""

    auto = "auto"
    sam = "sam"
    grabcut = "grabcut"
    dataset = "dataset"
    none = "none"


class KeypointsName(StrEnum):
    """Keypoint policies, as a choice."""

    prefer_dataset = "prefer-dataset"
    dataset = "dataset"
    mediapipe = "mediapipe"


class CropName(StrEnum):
    """Crop modes, as a choice."""

    frame = "frame"
    stable = "stable"


Workspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="PATH_OR_URL",
        help="Where records, dataset and runs go.",
        show_default="./workspace",
    ),
]

_QUALITY = "Quality flags"
MinHandPx = Annotated[
    float | None,
    typer.Option(
        "--min-hand-px",
        min=0,
        metavar="PIXELS",
        rich_help_panel=_QUALITY,
        help="small_hand: smaller in the full image.",
        show_default="48",
    ),
]
MaxTruncation = Annotated[
    float | None,
    typer.Option(
        "--max-truncation",
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=_QUALITY,
        help="truncated: more of a hand's joints outside the picture.",
        show_default="0",
    ),
]
MinSharpness = Annotated[
    float | None,
    typer.Option(
        "--min-sharpness",
        min=0,
        metavar="VARIANCE",
        rich_help_panel=_QUALITY,
        help="blurry: variance of the Laplacian below this.",
        show_default="2",
    ),
]
MaxBlur = Annotated[
    float | None,
    typer.Option(
        "--max-blur",
        metavar="SHARE",
        rich_help_panel=_QUALITY,
        help="The same from the other end: blur = 1 / (1 + sharpness), from 0 (sharp) to 1 (no edge).",
        show_default="0.333",
    ),
]
MinMaskScore = Annotated[
    float | None,
    typer.Option(
        "--min-mask-score",
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=_QUALITY,
        help="low_mask_coverage: fewer keypoints in the mask.",
        show_default="0.6",
    ),
]
MaxMaskSpill = Annotated[
    float | None,
    typer.Option(
        "--max-mask-spill",
        min=0,
        max=1,
        metavar="SHARE",
        rich_help_panel=_QUALITY,
        help="mask_spill: more of the mask away from the hand.",
        show_default="0.05",
    ),
]
MaxDisagreement = Annotated[
    float | None,
    typer.Option(
        "--max-disagreement",
        min=0,
        metavar="HANDS",
        rich_help_panel=_QUALITY,
        help="labels_disagree: labels and MediaPipe further apart, in hand sizes.",
        show_default="0.1",
    ),
]
MinPhashDistance = Annotated[
    int | None,
    typer.Option(
        "--min-phash-distance",
        min=0,
        max=65,
        metavar="BITS",
        rich_help_panel=_QUALITY,
        help="near_duplicate: hash closer to the last kept frame of its video; 0: never.",
        show_default="3",
    ),
]


def _dataset_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in ("records", "rejected", "dropped", "runs"):
        raise UsageError(
            f"--dataset {name}: not a name for a folder of the workspace", "use letters, digits, dots, - and _"
        )
    return name


DatasetName = Annotated[
    str,
    typer.Option("--dataset", metavar="NAME", callback=_dataset_name, help="A further dataset of the same workspace."),
]
OtherDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        callback=lambda name: None if name is None else _dataset_name(name),
        help="One of several datasets of the workspace.",
        show_default="the training run's, else dataset",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


def given_thresholds(
    *, min_sharpness: float | None, max_blur: float | None, **others: float | None
) -> dict[str, float]:
    """Return the quality thresholds that were given as flags, by the names of their settings."""
    if max_blur is not None:
        if min_sharpness is not None:
            raise UsageError("--max-blur and --min-sharpness set the same threshold", "give one of them")
        if not 0 < max_blur <= 1:
            raise UsageError(
                f"--max-blur {max_blur:g} is not between 0 (sharp) and 1 (no edge)",
                "it is 1 / (1 + sharpness); --min-sharpness takes the variance of the Laplacian itself",
            )
        min_sharpness = 1 / max_blur - 1
    thresholds = {"min_sharpness": min_sharpness, **others}
    return {name: value for name, value in thresholds.items() if value is not None}


def load_settings(**flags: Any) -> "Settings":
    """Return the settings: flag > variable > handdata.toml > default."""
    from handdata.pipeline.settings import SETTINGS_FILE, Settings

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"setting {where}: {first['msg']}", f"check flags, HANDDATA_ variables and {SETTINGS_FILE}"
        ) from None
    except ValueError as error:  # a TOML file that does not parse
        raise UsageError(f"{SETTINGS_FILE} cannot be read: {error}") from None
