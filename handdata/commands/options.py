"""Options that several commands share, and the settings behind them.

What help shows of a setting (its default and bounds) is read from the settings model, so that it cannot differ.
"""

import errno
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from pydantic import BaseModel

from handdata.pipeline.settings import QualitySettings, Settings
from handdata.schemas import StorageError, UsageError, known_names
from handdata.trainer.presets import SamplerName, SamplingOptions

if TYPE_CHECKING:
    from typer.models import OptionInfo

    from handdata.pipeline.storage import Dataset, Storage


Command: TypeAlias = Callable[..., None]


def shown_default(model: type[BaseModel], setting: str) -> str | bool:
    """Return a setting's default as help shows it; False, which shows nothing, for None."""
    value = model.model_fields[setting].default
    if value is None:
        return False
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_option(model: type[BaseModel], setting: str, **shown: Any) -> "OptionInfo":
    """Return an option that replaces a setting; help shows the setting's default and inclusive bounds.

    Args:
        model: Settings model.
        setting: Name of the setting in the model, and of the command's argument.
        shown: Help text, metavar and panel, as ``typer.Option`` takes them.

    """
    bounds = {
        name: getattr(constraint, attribute)
        for constraint in model.model_fields[setting].metadata
        for name, attribute in (("min", "ge"), ("max", "le"))
        if hasattr(constraint, attribute)
    }
    option: OptionInfo = typer.Option(show_default=shown_default(model, setting), **bounds, **shown)
    return option


Workspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="PATH_OR_URL",
        help="Folder or URL of records, datasets and runs.",
        show_default=shown_default(Settings, "workspace"),
    ),
]

QUALITY_PANEL = "Quality flags"


def _threshold(field: str, metavar: str, text: str) -> "OptionInfo":
    return setting_option(QualitySettings, field, metavar=metavar, help=text, rich_help_panel=QUALITY_PANEL)


MinHandPx = Annotated[
    float | None,
    _threshold("min_hand_px", "PIXELS", "Smallest hand size in the full image, else flag small_hand."),
]
MaxTruncation = Annotated[
    float | None,
    _threshold("max_truncation", "SHARE", "Largest share of a hand's joints outside the image, else flag truncated."),
]
MinSharpness = Annotated[
    float | None,
    _threshold("min_sharpness", "VARIANCE", "Smallest variance of the Laplacian, else flag blurry."),
]
MaxBlur = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=QUALITY_PANEL,
        help="Largest blur, from 0 (sharp) to 1 (no edge), else flag blurry: --min-sharpness as 1 / (1 + variance).",
        show_default=f"{1 / (1 + QualitySettings().min_sharpness):.3g}",
    ),
]
MinContrast = Annotated[
    float | None,
    _threshold("min_contrast", "LEVELS", "Smallest contrast of the hand box in grey levels, else flag no_content."),
]
MinMaskScore = Annotated[
    float | None,
    _threshold("min_mask_score", "SHARE", "Smallest share of keypoints inside the mask, else flag low_mask_coverage."),
]
MaxMaskSpill = Annotated[
    float | None,
    _threshold("max_mask_spill", "SHARE", "Largest share of the mask away from the hands, else flag mask_spill."),
]
MaxDisagreement = Annotated[
    float | None,
    _threshold(
        "max_disagreement",
        "HANDS",
        "Largest distance between labels and MediaPipe in hand sizes, else flag labels_disagree.",
    ),
]
MinPhashDistance = Annotated[
    int | None,
    _threshold(
        "min_phash_distance",
        "BITS",
        "Smallest hash distance to the last kept frame of the video, else flag near_duplicate; 0 flags none.",
    ),
]


def _dataset_name(name: str | None) -> str | None:
    """Return a dataset's name as it was given.

    Raises:
        UsageError: The name cannot be a folder of the workspace, or the workspace uses it for something else.

    """
    if name is not None:
        from handdata.pipeline.storage.layout import require_dataset_name  # not at the top: help answers without Arrow

        require_dataset_name(name)
    return name


def dataset_option(
    name: str = "--dataset", text: str = "Dataset folder in the workspace.", **shown: Any
) -> "OptionInfo":
    """Return an option that names a dataset of the workspace."""
    option: OptionInfo = typer.Option(name, metavar="NAME", callback=_dataset_name, help=text, **shown)
    return option


DatasetName = Annotated[str, dataset_option()]
TrainingDataset = Annotated[str | None, dataset_option(show_default="the preset's")]
TrainedDataset = Annotated[str | None, dataset_option(show_default="the one of the training run")]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a record was rejected.")]


def _run_name(name: str | None) -> str | None:
    """Return a run's name as it was given.

    Raises:
        UsageError: The name cannot be a folder below the workspace's ``runs``.

    """
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--run {name}: not a name for a folder of runs", "use letters, digits, dots, - and _")
    return name


def url_of_run(storage: "Storage", name: str) -> str:
    """Return where a run of a workspace lies.

    Raises:
        UsageError: The workspace has other runs, and none of this name.

    """
    from handdata.pipeline.storage.layout import list_runs, run_folder

    runs = list_runs(storage)
    if runs and name not in runs:
        raise UsageError(
            f"{storage.describe()} has no run {name}",
            f"{known_names(name, runs)}; --checkpoint builtin is the network of the package",
        )
    return storage.url(run_folder(name))


def run_option(text: str, **shown: Any) -> "OptionInfo":
    """Return the option that names a training run."""
    option: OptionInfo = typer.Option("--run", metavar="NAME", callback=_run_name, help=text, **shown)
    return option


RunName = Annotated[str, run_option("Training run of the workspace.")]
RunOrBuiltin = Annotated[
    str | None,
    run_option("Training run of the workspace.", show_default="default; builtin network where there is no run"),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="PATH_OR_URL",
        help="Checkpoint file or folder, published FoundHand weights, or builtin for the network of the package.",
        show_default="the run's latest",
    ),
]
CheckpointPreset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Preset of a checkpoint that carries no settings, such as foundhand-xl for the published weights.",
        show_default="the checkpoint's own settings",
    ),
]


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Return the number of an option, which bounds alone do not keep from being no number.

    Raises:
        UsageError: It is not finite.

    """
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{parameter.opts[0]} {value} is no finite number")
    return value


Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N.", show_default="CUDA where there is a GPU"),
]


def takes_sampling_options(*left_out: str, guidance_scale: float | None = None) -> Callable[[Command], Command]:
    """Give a command the options of ``SamplingOptions``, which it receives as its argument ``options``.

    Args:
        left_out: Fields that the command has no option for, since its task does not look at them.
        guidance_scale: Guidance scale unless another is asked for; None takes the preset's.

    """
    preset = {"show_default": "the preset's"}
    scale = {"min": 0, "callback": finite, "metavar": "SCALE"}

    def option(kind: Any, text: str, **shown: Any) -> Any:
        return Annotated[kind, typer.Option(help=text, rich_help_panel="Sampling", **shown)]

    kinds = {
        "steps": option(int | None, "Number of denoising steps.", min=1, metavar="N", **preset),
        "sampler": option(SamplerName | None, "ddpm as published, or one that needs 10 to 25 steps.", **preset),
        "guidance_scale": option(
            float | None,
            "Scale of classifier-free guidance; 1 is none.",
            **scale,
            **(preset if guidance_scale is None else {}),
        ),
        "pose_guidance": option(float | None, "Guidance scale of the pose alone.", **scale, **preset),
        "appearance_guidance": option(float | None, "Guidance scale of the reference alone.", **scale, **preset),
        "guided_channels": option(
            int | None, "Guide the first N latent channels; as published 3.", min=1, metavar="N", **preset
        ),
        "seed": option(int, "Random seed; the same seed gives the same images.", min=0, max=2**31 - 1, metavar="N"),
    }
    defaults = {"guidance_scale": guidance_scale, "seed": 0}
    offered = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults.get(name), annotation=kind)
        for name, kind in kinds.items()
        if name not in left_out
    ]

    def taking(command: Command) -> Command:
        @wraps(command)
        def run(**given: Any) -> None:
            command(options=SamplingOptions(**{each.name: given.pop(each.name) for each in offered}), **given)

        parameters = signature(command).parameters.values()
        spread = [each for one in parameters for each in (offered if one.name == "options" else [one])]
        vars(run)["__signature__"] = Signature(spread)
        run.__annotations__ = {each.name: each.annotation for each in spread}
        return run

    return taking


def require_place(file: Path) -> None:
    """Make the folder of a file that a command writes at its end: a place that cannot be written ends it before that.

    Raises:
        StorageError: The file cannot be written there.

    """
    folder = file.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"cannot write {file.absolute()}: {error.strerror}", "choose another place with --out"
        ) from None


Licence = Annotated[
    str | None,
    typer.Option(
        "--licence",
        "--license",
        metavar="A,B",
        help="Ids of licences (column license_id), separated by commas; only their rows are used.",
    ),
]
Commercial = Annotated[
    bool, typer.Option("--commercial", help="Use only rows whose licence is known to permit commercial use.")
]


def given_thresholds(
    *, min_sharpness: float | None, max_blur: float | None, **others: float | None
) -> dict[str, float]:
    """Return the quality thresholds that were given as flags, by the names of their settings.

    Raises:
        UsageError: ``max_blur`` is not a blur, or ``min_sharpness`` is given too; or a threshold is not finite.

    """
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
    for name, threshold in thresholds.items():
        if threshold is not None and not math.isfinite(threshold):
            raise UsageError(f"--{name.replace('_', '-')} {threshold:g} is no finite number")
    return {name: value for name, value in thresholds.items() if value is not None}


def commercial_licences(dataset: "Dataset", licences: Sequence[str]) -> list[str]:
    """Return the ids of those of some licences of a dataset, or of all, that are known to permit commercial use.

    Raises:
        UsageError: There are none; the message lists those that are there.

    """
    from handdata.pipeline.shards import describe_licences, license_ids, read_manifest
    from handdata.schemas import license_id_of, permits_commercial_use

    manifest = read_manifest(dataset)
    wanted = {license_id_of(name) for name in licences} if licences else {*license_ids(manifest).values()}
    found = sorted(filter(permits_commercial_use, wanted.intersection(license_ids(manifest).values())))
    if not found:
        raise UsageError(
            "no licence here is known to permit commercial use", f"there are {describe_licences(manifest)}"
        )
    return found


def licence_names(text: str) -> list[str]:
    """Return the names in a list of licences.

    Raises:
        UsageError: There are none, or one is empty: what a shell makes of a variable that is not set.

    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--licence {text!r} names an empty licence", "leave it out to use rows under any licence")
    return names
