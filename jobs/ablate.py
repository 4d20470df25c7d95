"""``handdata ablate``: the paper's questions of design, each answered by training networks with and without.

A question has variants: what differs from the preset's settings. Each variant and seed is a run of the workspace,
``ablate-<variant>-<seed>-<hash of its settings>``, trained and scored on one list of pairs. What is done already is not
done again: runs go on from their checkpoints, and scores lie beside the table with the hashes of the checkpoint and of
the list. Other settings are other runs: none goes on from one that was trained for fewer steps, say.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ValidationError

from handdata.jobs.evaluate import EvaluationRequest, checkpoint_sha256, evaluate, pairs_for
from handdata.jobs.figures import OURS
from handdata.jobs.tables import facts as facts_of
from handdata.pipeline.shards import list_shards
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import run_folder
from handdata.pipeline.weights import find_weights, require_weights
from handdata.schemas import Split, UsageError, WeightsError, known_names
from handdata.trainer.checkpoints import averaged_weights, latest_checkpoint
from handdata.trainer.data.splits import training_split
from handdata.trainer.loop import train
from handdata.trainer.presets import AlignmentConfig, DropoutConfig, Preset, SamplingOptions
from handdata.trainer.resuming import without

OnRun = Callable[[str, int, int], None]
"""Called with what is done to a run, and (done, in all) of it."""
OnNote = Callable[[str], None]

_MEASURES: Final = ("psnr", "ssim", "psnr_box", "ssim_box", "lpips", "fid", "detected", "pck@0.2")
"""Measures of the table; those of learned features where their weights are here."""
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
        checkpoints: SHA-256 of each seed's checkpoint.

    """

    question: str
    variant: str
    scores: dict[str, list[float]]
    checkpoints: list[str]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The answers to some questions, and what they depend on.

    Args:
        answers: Those of each variant, the variants of one question after one another.
        facts: Pairs, pair rule, size, region and detector, as lines below the table.

    """

    answers: list[Answer]
    facts: dict[str, str]


def ablate(
    request: AblationRequest,
    storage: Storage,
    out_dir: Path,
    weights: Path | None = None,
    on_run: OnRun | None = None,
    on_note: OnNote | None = None,
) -> Ablation:
    """Train and score the variants of some questions; what is done already is not done again.

    Args:
        request: Preset, questions and seeds.
        storage: Workspace of the dataset and of the runs.
        out_dir: Folder of the scores of each run.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        on_run: Called with progress.
        on_note: Called with what the user should know of.

    Raises:
        UsageError: A question is unknown, the preset has what a question would change, or the split has no pairs.
        WeightsError: MediaPipe's model, or for alignment DINOv2's weights, are not on this machine.

    """
    questions = list(dict.fromkeys(request.questions))
    for question in questions:
        _require_possible(question, request.preset)
    require_weights("hand_landmarker", weights)  # before hours of training, as are the pairs
    asked = EvaluationRequest(
        checkpoint=None,
        split=request.split,
        count=request.pairs,
        dataset=request.preset.data.dataset,
        device=request.device,
    )
    asked = replace(asked, pair_list=pairs_for(request.preset, asked, storage, on_note))
    answers = []
    facts: dict[str, str] = {}
    for question in questions:
        for variant in _variants(question, request.preset):
            of_seeds = [
                _scored(variant, seed, request, asked, storage, out_dir, weights, on_run, on_note)
                for seed in range(request.seeds)
            ]
            shared = [name for name in of_seeds[0].scores if all(name in scored.scores for scored in of_seeds)]
            measures = {name: [scored.scores[name] for scored in of_seeds] for name in shared}
            answers.append(Answer(question, variant.name, measures, [scored.checkpoint for scored in of_seeds]))
            facts = of_seeds[0].facts
    return Ablation(answers, facts)


def _require_possible(question: str, preset: Preset) -> None:
    if question not in QUESTIONS:
        raise UsageError(f"no question is called {question}", known_names(question, list(QUESTIONS)))
    known: dict[str, str] = {}
    for variant in _variants(question, preset):
        try:
            settings = json.dumps([variant.applied_to(preset, 0).model_dump(mode="json"), variant.guidance])
        except ValidationError as error:
            raise UsageError(
                f"this preset cannot be compared with {variant.name}: {error.errors()[0]['msg']}",
                "choose one without model.geometry, such as tiny",
            ) from None
        if settings in known:
            raise UsageError(
                f"nothing to compare for {question}: with these settings, {known[settings]!r} and {variant.name!r} are "
                "the same",
                "leave out of --config what the question is about, or choose another preset",
            )
        known[settings] = variant.name
    if question == "alignment" and find_weights("dinov2") is None:
        raise WeightsError("alignment needs DINOv2's weights", "run `handdata weights fetch dinov2`")


def _variants(question: str, preset: Preset) -> list[Variant]:
    """Return the variants of a question; the block that is aligned lies in the middle of the preset's."""
    aligned = AlignmentConfig(block=max(preset.model.depth // 2, 1), hidden_size=4 * preset.model.hidden_size)
    return [
        Variant(variant.name, variant.run, changes={"alignment": aligned}) if variant.run == "aligned" else variant
        for variant in QUESTIONS[question]
    ]


class _Scored(BaseModel):
    """File of what a run scores.

    Args:
        settings: Settings of the run.
        guidance: Guidance scale of its images; None is the preset's.
        pair_list: SHA-256 of the list of pairs.
        checkpoint: SHA-256 of the run's weights.
        scores: Means over the pairs, by measure.
        facts: What the scores of all runs depend on.

    """

    settings: dict[str, Any]
    guidance: float | None
    pair_list: str
    checkpoint: str
    scores: dict[str, float]
    facts: dict[str, str]


def _scored(
    variant: Variant,
    seed: int,
    request: AblationRequest,
    asked: EvaluationRequest,
    storage: Storage,
    out_dir: Path,
    weights: Path | None,
    on_run: OnRun | None,
    on_note: OnNote | None,
) -> _Scored:
    """Return what a variant's run of one seed scores, which is trained where it is not."""
    assert asked.pair_list is not None
    preset = variant.applied_to(request.preset, seed)
    run = f"ablate-{variant.run}-{seed}-{_hash_of_training(preset, storage)}"
    checkpoint = storage.url(run_folder(run))

    def show(step: int, total: int, loss: float, rate: float) -> None:
        if on_run:
            on_run(f"training {run}", step, total)

    def show_scored(done: int, total: int) -> None:
        if on_run:
            on_run(f"scoring {run}", done, total)

    if not _is_trained(checkpoint, preset):
        train(preset, storage, run, resume=True, device=request.device, on_step=show, on_note=on_note)
    sha256 = checkpoint_sha256(averaged_weights(checkpoint))
    settings = preset.model_dump(mode="json")
    folder, name = Storage(out_dir.absolute()), f"{run}{'' if variant.guidance is None else '-unguided'}.json"
    if folder.exists(name):
        found = folder.read_document(name, _Scored)
        if (found.settings, found.guidance, found.pair_list, found.checkpoint) == (
            settings,
            variant.guidance,
            asked.pair_list.sha256,
            sha256,
        ):
            return found
    options = SamplingOptions(guidance_scale=variant.guidance)
    evaluation = evaluate(
        replace(asked, checkpoint=checkpoint, options=options), storage, weights, show_scored, on_note
    )
    scored = _Scored(
        settings=settings,
        guidance=variant.guidance,
        pair_list=asked.pair_list.sha256,
        checkpoint=sha256,
        scores={measure: interval.mean for measure, interval in evaluation.scores[OURS].items()},
        facts={fact: text for fact, text in facts_of(evaluation).items() if fact != OURS},
    )
    folder.write_bytes(name, scored.model_dump_json(indent=2).encode())
    return scored


def _hash_of_training(preset: Preset, storage: Storage) -> str:
    """Return a short hash of what a run's weights depend on: settings, and the files of the split to train on."""
    settings = without(preset.model_dump(mode="json"), ("monitoring", "sampling"))
    dataset = Dataset(storage, preset.data.dataset)
    files = sorted(shard.name for shard in list_shards(dataset, splits=[training_split(dataset)]))  # named by content
    return hashlib.sha256(json.dumps([settings, files], sort_keys=True).encode()).hexdigest()[:8]


def _is_trained(run_url: str, preset: Preset) -> bool:
    """Tell whether a run has its last checkpoint; its name says that its settings are these."""
    latest = latest_checkpoint(run_url)
    return latest is not None and int(latest.rsplit("-", 1)[1]) >= preset.optimisation.steps


def as_markdown(found: Ablation, request: AblationRequest) -> str:
    """Return the table of some answers: means over seeds, their standard deviations, and differences from the first."""
    measures = [name for name in _MEASURES if all(name in answer.scores for answer in found.answers)]
    steps = request.preset.optimisation.steps
    lines = [
        f"{request.seeds} {'seed' if request.seeds == 1 else 'seeds'} a row, {steps:,} steps each. Mean +- standard "
        "deviation over seeds; in brackets the difference from the question's first row, seed by seed.",
        "",
        *(f"- {name}: {text}" for name, text in found.facts.items()),
        "",
        "| question | variant | " + " | ".join(measures) + " |",
        "| --- | --- | " + " | ".join("---" for _ in measures) + " |",
    ]
    first: Answer | None = None
    for answer in found.answers:
        if first is None or first.question != answer.question:
            first = answer
        cells = [_cell(answer.scores[name], None if answer is first else first.scores[name]) for name in measures]
        lines.append(f"| {answer.question} | {answer.variant} | " + " | ".join(cells) + " |")
    lines += ["", "Checkpoints (SHA-256), seed by seed:", ""]
    lines += [
        f"- {answer.question}, {answer.variant}: {', '.join(sha256[:12] for sha256 in answer.checkpoints)}"
        for answer in found.answers
    ]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], others: Sequence[float] | None) -> str:
    text = _with_spread(values)
    if others is not None:
        text += f" ({_with_spread(np.subtract(values, others).tolist(), signed=True)})"
    return text


def _with_spread(values: Sequence[float], signed: bool = False) -> str:
    mean = f"{np.mean(values):{'+' if signed else ''}.3f}"
    return mean if len(values) < 2 else f"{mean} +- {np.std(values, ddof=1):.3f}"
