"""Options that several commands share, and the settings behind them."""

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
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]


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
