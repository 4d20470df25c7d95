"""``handdata ablate``: the paper's questions of design, each answered by training networks with and without.

A question has variants: what differs from the preset's settings. Each variant and seed is a run of the workspace,
``ablate-<variant>-<seed>``, trained and scored on one list of pairs. What is done already is not done again: runs go on
from their checkpoints, and scores lie beside the table.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from handdata.jobs.evaluate import EvaluationRequest, evaluate
from handdata.jobs.figures import OURS
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import run_folder
from handdata.pipeline.weights import find_weights
from handdata.schemas import Split, UsageError, WeightsError, known_names
from handdata.trainer.loop import train
from handdata.trainer.presets import AlignmentConfig, DropoutConfig, Preset, SamplingOptions

OnRun = Callable[[str, int, int], None]
"""Called with what is done to a run, and (done, in all) of it."""
OnNote = Callable[[str], None]

_NO_DROPOUT: Final = DropoutConfig(reference=0, target_keypoints=0, reference_mask=0, both=0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One answer to a question.

    Args:
        name: What the table calls it.
        run: Part of its runs' names.
        model: Settings of ``model.conditions`` that differ from the preset's.
        changes: Other settings that differ.
        guidance: Guidance scale of its images; None takes the preset's.

    """

    name: str
    run: str
    model: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None

    def applied_to(self, preset: Preset, seed: int) -> Preset:
        """Return a preset's settings with those of the variant, and a seed."""
        document = preset.model_dump(mode="json")
        document["model"]["conditions"] |= self.model
        document["optimisation"]["seed"] = seed
        return Preset.model_validate(document | dict(self.changes))


AS_PUBLISHED: Final = Variant("as the preset has it", "base")
QUESTIONS: Final[dict[str, tuple[Variant, ...]]] = {
    "heatmaps": (
        AS_PUBLISHED,
        Variant("heatmaps summed in one channel", "sum", {"keypoints": "sum"}),
        Variant("skeleton drawn in colours", "skeleton", {"keypoints": "skeleton"}),
    ),
    "mask": (AS_PUBLISHED, Variant("without the reference's mask", "no-mask", {"reference_mask": False})),
    "dropout": (
        AS_PUBLISHED,
        Variant("with dropout, no guidance", "base", guidance=1.0),
        Variant("without dropout, no guidance", "no-dropout", changes={"dropout": _NO_DROPOUT}, guidance=1.0),
    ),
    "alignment": (AS_PUBLISHED, Variant("aligned with DINOv2", "aligned")),
}
"""Questions and their answers, the first of which the others are compared with."""


@dataclass(frozen=True, slots=True)
class AblationRequest:
    """What ``handdata ablate`` was asked for.

    Args:
        preset: Settings that all variants start from.
        questions: Names of ``QUESTIONS``.
        seeds: Number of seeds, 0 and on; each is a run of each variant.
        split: Split of the scored pairs.
        pairs: Largest number of scored pairs.
        device: Device to train and to sample on; None takes CUDA's where there is one.

    """

    preset: Preset
    questions: Sequence[str]
    seeds: int = 2
    split: Split = "val"
    pairs: int = 200
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the runs of a variant score.

    Args:
        question: Name of the question.
        variant: Name of the variant.
        scores: Means over the pairs, by measure, one a seed.

    """

    question: str
    variant: str
    scores: dict[str, list[float]]


def ablate(
    request: AblationRequest,
    storage: Storage,
    out_dir: Path,
    weights: Path | None = None,
    on_run: OnRun | None = None,
    on_note: OnNote | None = None,
) -> list[Answer]:
    """Train and score the variants of some questions; what is done already is not done again.

    Args:
        request: Preset, questions and seeds.
        storage: Workspace of the dataset and of the runs.
        out_dir: Folder of the scores of each run.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        on_run: Called with progress.
        on_note: Called with what the user should know of.

    Raises:
        UsageError: A question is unknown, the preset has what a question would change, or a run of this name has other
            settings.
        WeightsError: Alignment is asked for, and DINOv2's weights are not on this machine.

    """
    answers = []
    for question in request.questions:
        _require_possible(question, request.preset)
    for question in request.questions:
        for variant in _variants(question, request.preset):
            of_seeds = [
                _scores(variant, seed, request, storage, out_dir, weights, on_run, on_note)
                for seed in range(request.seeds)
            ]
            measures = {name: [scores[name] for scores in of_seeds] for name in of_seeds[0]}
            answers.append(Answer(question, variant.name, measures))
    return answers


def _require_possible(question: str, preset: Preset) -> None:
    if question not in QUESTIONS:
        raise UsageError(f"no question is called {question}", known_names(question, list(QUESTIONS)))
    for variant in _variants(question, preset):
        try:
            variant.applied_to(preset, 0)
        except ValueError as error:
            raise UsageError(
                f"this preset cannot be compared with {variant.name}: {str(error).splitlines()[2].strip()}",
                "choose one without model.geometry, such as tiny",
            ) from None
    if question == "alignment" and find_weights("dinov2") is None:
        raise WeightsError("alignment needs DINOv2's weights", "run `handdata weights fetch dinov2`")


def _variants(question: str, preset: Preset) -> list[Variant]:
    """Return the variants of a question; the block that is aligned lies in the middle of the preset's."""
    aligned = AlignmentConfig(block=max(preset.model.depth // 2, 1), hidden_size=4 * preset.model.hidden_size)
    return [
        Variant(variant.name, variant.run, changes={"alignment": aligned}) if variant.run == "aligned" else variant
        for variant in QUESTIONS[question]
    ]


def _scores(
    variant: Variant,
    seed: int,
    request: AblationRequest,
    storage: Storage,
    out_dir: Path,
    weights: Path | None,
    on_run: OnRun | None,
    on_note: OnNote | None,
) -> dict[str, float]:
    """Return what a variant's run of one seed scores, which is trained where it is not."""
    run = f"ablate-{variant.run}-{seed}"
    preset = variant.applied_to(request.preset, seed)
    options = SamplingOptions(guidance_scale=variant.guidance)
    asked = {
        "settings": preset.model_dump(mode="json"),
        "guidance": variant.guidance,
        "split": request.split,
        "pairs": request.pairs,
    }
    folder, name = Storage(out_dir.absolute()), f"{run}{'' if variant.guidance is None else '-unguided'}.json"
    if folder.exists(name):
        found = json.loads(folder.read_bytes(name))
        if found["asked"] == asked:
            return dict(found["scores"])

    def show(step: int, total: int, loss: float, rate: float) -> None:
        if on_run:
            on_run(f"training {run}", step, total)

    def show_scored(done: int, total: int) -> None:
        if on_run:
            on_run(f"scoring {run}", done, total)

    train(preset, storage, run, resume=True, device=request.device, on_step=show, on_note=on_note)
    scored = evaluate(
        EvaluationRequest(
            checkpoint=storage.url(run_folder(run)),
            split=request.split,
            count=request.pairs,
            options=options,
            device=request.device,
        ),
        storage,
        weights,
        show_scored,
        on_note,
    )
    scores = {measure: interval.mean for measure, interval in scored.scores[OURS].items()}
    folder.write_bytes(name, json.dumps({"asked": asked, "scores": scores}, indent=2).encode())
    return scores


def as_markdown(answers: Sequence[Answer], request: AblationRequest) -> str:
    """Return the table of some answers: means over seeds, their standard deviations, and differences from the first."""
    measures = ("psnr", "ssim", "psnr_box", "ssim_box", "detected", "pck@0.2")
    steps = request.preset.optimisation.steps
    lines = [
        f"{request.seeds} seeds a row, {steps:,} steps each, {request.preset.image_size} px; up to {request.pairs} "
        f"pairs of the split {request.split} that move. psnr and ssim are of the whole picture, psnr_box and ssim_box "
        "of the hand box; detected and pck by MediaPipe. Mean +- standard deviation over seeds; in brackets the "
        "difference from the question's first row, seed by seed.",
        "",
        "| question | variant | " + " | ".join(measures) + " |",
        "| --- | --- | " + " | ".join("---" for _ in measures) + " |",
    ]
    first: Answer | None = None
    for answer in answers:
        if first is None or first.question != answer.question:
            first = answer
        cells = [_cell(answer.scores[name], None if answer is first else first.scores[name]) for name in measures]
        lines.append(f"| {answer.question} | {answer.variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], others: Sequence[float] | None) -> str:
    text = _with_spread(values)
    if others is not None:
        text += f" ({_with_spread(np.subtract(values, others).tolist(), signed=True)})"
    return text


def _with_spread(values: Sequence[float], signed: bool = False) -> str:
    mean = f"{np.mean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} +- {np.std(values, ddof=1):.3f}"
