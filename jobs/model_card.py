"""The card of a trained network: what it learned from, which licences bind its weights, and how good it is."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from handdata._version import __version__
from handdata.adapters.registry import known_cards
from handdata.pipeline.report.card import licence_fields, table, whom_to_cite
from handdata.pipeline.report.page import read_metrics
from handdata.pipeline.shards import DATASET
from handdata.pipeline.shards.manifest import find_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.layout import metrics_file, run_folder
from handdata.pipeline.weights import WEIGHTS
from handdata.schemas import DatasetManifest, UsageError, WeightsError, permits_commercial_use
from handdata.schemas.terms import Answer, Terms, licences_page, terms_of
from handdata.trainer.checkpoints import STATE_FILE, latest_checkpoint
from handdata.trainer.presets import Preset
from handdata.trainer.resuming import checkpoint_settings


class Score(BaseModel):
    """A mean with its 95% interval; a measure of a whole set, such as FID, has none."""

    mean: float
    low: float | None
    high: float | None


class EvaluationFile(BaseModel):
    """``evaluation.json``, as ``handdata evaluate --out`` writes it; what a card does not show is passed over."""

    model_config = ConfigDict(extra="ignore")

    pairs: int
    scores: dict[str, dict[str, Score]]


def read_evaluation(file: Path) -> EvaluationFile:
    """Return the scores that ``handdata evaluate`` wrote.

    Raises:
        UsageError: The file is not there, or holds something else.

    """
    try:
        return EvaluationFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", "`handdata evaluate --out DIR` writes it") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{file} holds no scores: {place}: {first['msg']}", "give the evaluation.json of `handdata evaluate --out`"
        ) from None


class ModelCard(NamedTuple):
    """The card of a trained network (YAML between two lines of dashes, then Markdown), and its page of licences."""

    card: str
    licences: str


def model_card(storage: Storage, run: str, evaluation: EvaluationFile | None = None) -> ModelCard:
    """Return the card of a training run's latest checkpoint.

    Args:
        storage: The workspace.
        run: Name of the run.
        evaluation: Scores of the run's network.

    Raises:
        UsageError: There is no such run, or it has no checkpoint yet.
        WeightsError: The checkpoint is damaged.

    """
    run_url = storage.url(run_folder(run))
    checkpoint = latest_checkpoint(run_url)
    if checkpoint is None:
        raise UsageError(
            f"{storage.describe()} has no training run {run!r} with a checkpoint", "run `handdata train` first"
        )
    preset = checkpoint_settings(checkpoint)
    step, watched = _read_history(Storage(checkpoint))
    manifest = find_manifest(Dataset(storage, preset.data.dataset))
    targets, licences = watched.get("targets") or {}, watched.get("licences")
    terms = (*_binding_terms(manifest, targets, licences), *_terms_of_start(preset.init))
    sections = {
        "Licences that bind the weights": _licences(terms, licences, preset),
        "What it learned from": _data(preset, targets, manifest),
        "How it was trained": _settings(preset, step),
        "Results": _results(storage, run, evaluation),
        "What it is for, and what not": _uses(terms),
        "Whom to cite": "\n".join(f"- {paper}" for paper in whom_to_cite(terms)),
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)
    size = f"{preset.image_size} x {preset.image_size} px"
    summary = (
        "A two-frame diffusion transformer of hands after [FoundHand](https://arxiv.org/abs/2412.02690): it draws the "
        f"hand of a reference picture in the pose of 42 keypoints, at {size}. Trained by handdata {__version__}, run "
        f"`{run}`."
    )
    card = f"---\n{_hub_fields(run, terms, evaluation)}\n---\n\n# {run}\n\n{summary}\n\n{body}\n"
    return ModelCard(card, licences_page(terms))


def _read_history(checkpoint: Storage) -> tuple[int, dict[str, Any]]:
    """Return the step of a checkpoint, and what the run noted of its data, without reading the optimiser's tensors."""
    try:
        with checkpoint.local_copy(STATE_FILE) as file:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            watched = state["data"].get("watched") or {}
            return int(state["step"]), dict(watched)
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        where = checkpoint.describe(STATE_FILE)
        raise WeightsError(
            f"{where} cannot be read: {' '.join(str(error).split())[:200]}",
            "restore it, or remove the checkpoint's folder to go back to an earlier one",
        ) from None


def _binding_terms(
    manifest: DatasetManifest | None, targets: Mapping[str, int], licences: list[str] | None
) -> tuple[Terms, ...]:
    """Return the licences of the sources that a run was trained on.

    The run says which sources and licences; of what has left the dataset since, the sources' cards say the rest.
    """
    cards = known_cards()
    names = manifest.licenses if manifest else {}
    ids = manifest.license_ids if manifest else {}
    sources = sorted(targets or (manifest.sources if manifest else {}))
    trained = DatasetManifest(
        handdata_version=__version__,
        image_size=0,
        annotator_hashes={},
        sources={source: {} for source in sources},
        licenses={
            source: names.get(source) or (cards[source].license if source in cards else "unknown") for source in sources
        },
        license_ids={source: ids[source] for source in sources if source in ids},
        complete=True,
    )
    found = terms_of(trained, cards)
    known = {terms.license_id for terms in found}
    further = [name for name in licences or () if name not in known]
    return (*found, *(Terms("?", name, name, name, "unconfirmed", "unconfirmed") for name in further))


def _terms_of_start(init: str | None) -> tuple[Terms, ...]:
    """Return the licence of the weights that a run was started from; none where it began with nothing."""
    if init is None:
        return ()
    if init == "builtin":
        return (Terms("--init", "the built-in network", "Apache-2.0", "Apache-2.0", "yes", "yes"),)
    for file in WEIGHTS.values():
        if PurePath(init).name == file.filename or init == file.name:
            license_id = file.licence.split()[0]
            commercial: Answer = "yes" if permits_commercial_use(license_id) else "no"
            return (Terms("--init", file.purpose, file.licence, license_id, commercial, "unconfirmed"),)
    unknown = f"that of {init}, which handdata does not know"
    return (Terms("--init", init, unknown, "LicenseRef-unknown", "unconfirmed", "unconfirmed"),)


def _licences(terms: tuple[Terms, ...], licences: list[str] | None, preset: Preset) -> str:
    rows = [
        (f"`{of.source}`", of.licence, f"`{of.license_id}`", of.commercial_use, " ".join(of.obligations))
        for of in terms
    ]
    lines = [table(["trained on", "licence", "id", "commercial use", "what it asks"], rows)]
    if preset.init:
        lines.append(f"It was started from the weights `{preset.init}`, whose licence binds it too.")
    if preset.forked_from:
        forks = ", ".join(f"`{fork.run}` at step {fork.step:,}" for fork in preset.forked_from)
        lines.append(f"It goes on from {forks}: what they learned from binds it too.")
    if licences is None:
        lines.append("The run does not say under which licences its rows were: these are the dataset's of today.")
    return "\n\n".join(line for line in lines if line)


def _data(preset: Preset, targets: Mapping[str, int], manifest: DatasetManifest | None) -> str:
    lines = [table(["source", "frames that were targets"], sorted(targets.items()))]
    if preset.data.where:
        lines.append(f"Rows where `{preset.data.where}`.")
    if preset.data.licences:
        lines.append(f"Rows under {', '.join(preset.data.licences)} alone.")
    if manifest:
        hashes = ", ".join(f"`{name}`" for name in sorted(manifest.annotator_hashes))
        lines.append(f"Annotated by {hashes} (the settings and model files behind them stand in the dataset's card).")
    return "\n\n".join(line for line in lines if line)


def _settings(preset: Preset, step: int) -> str:
    settings = preset.optimisation
    facts = {
        "steps": f"{step:,} of {settings.steps:,}",
        "pairs a step": f"{settings.batch_size}",
        "network": f"width {preset.model.hidden_size}, depth {preset.model.depth}, {preset.model.num_heads} heads",
        "latents": preset.autoencoder.kind,
        "optimiser": f"{settings.optimiser}, learning rate {settings.learning_rate:g}, seed {settings.seed}",
    }
    whole = preset.model_dump_json(indent=2)
    details = f"<details><summary>All settings</summary>\n\n```json\n{whole}\n```\n\n</details>"
    return f"{table(['what', 'value'], facts.items())}\n\n{details}"


def _results(storage: Storage, run: str, evaluation: EvaluationFile | None) -> str:
    lines = []
    rows = read_metrics(storage, run) if storage.exists(metrics_file(run)) else []
    validated = [row for row in rows if "validation_loss" in row]
    if validated:
        last = validated[-1]
        lines.append(
            f"Validation loss at step {last['step']:,}: {last['validation_loss']:.4f}; with another pair's keypoints "
            f"{last.get('permuted_loss', float('nan')):.4f}."
        )
    if evaluation:
        names = list(dict.fromkeys(name for scores in evaluation.scores.values() for name in scores))
        scored = [
            (way, *(_interval(scores[name]) if name in scores else "" for name in names))
            for way, scores in evaluation.scores.items()
        ]
        lines.append(
            f"{evaluation.pairs:,} pairs of frames; means with 95% intervals.\n\n{table(['', *names], scored)}"
        )
    if not lines:
        lines.append(
            "Not scored: `handdata evaluate --out DIR`, then `handdata card --evaluation DIR/evaluation.json`."
        )
    return "\n\n".join(lines)


def _interval(score: Score) -> str:
    spread = "" if score.low is None or score.high is None else f" ({score.low:.3f} to {score.high:.3f})"
    return f"{score.mean:.3f}{spread}"


def _uses(terms: tuple[Terms, ...]) -> str:
    closed = [of.source for of in terms if of.commercial_use != "yes"]
    commercial = f" Not for commercial use: {', '.join(closed)} do not permit it, or do not say so." if closed else ""
    return (
        "For pictures of hands in given poses: research, augmentation, repair. It knows nothing of who is shown; do "
        f"not use it to deceive about a person.{commercial}"
    )


def _hub_fields(run: str, terms: tuple[Terms, ...], evaluation: EvaluationFile | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if evaluation and "generated" in evaluation.scores:
        results = [
            EvalResult("image-to-image", "handdata", DATASET, metric, score.mean)
            for metric, score in evaluation.scores["generated"].items()
        ]
    fields: dict[str, Any] = {
        **licence_fields(terms),
        "library_name": "handdata",
        "pipeline_tag": "image-to-image",
        "tags": ["hands", "foundhand", "diffusion"],
        **({"model_name": run, "eval_results": results} if results else {}),
    }
    return str(ModelCardData(**fields).to_yaml()).strip()
