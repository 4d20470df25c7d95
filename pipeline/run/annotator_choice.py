"""Which settings a run annotates with: those of the dataset, or an error that names what differs.

Sources are added to a dataset months apart, and rows that were made differently must not be mixed without a word.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from handdata.pipeline.settings import FLAG_THRESHOLDS, AnnotateSettings, QualitySettings
from handdata.pipeline.shards.plan import is_of_last_ingest, is_of_older_format, planned_otherwise
from handdata.pipeline.shards.state import DatasetState
from handdata.pipeline.storage import Dataset
from handdata.schemas import FORMAT_VERSION, DatasetManifest, UnitMarker, UsageError


@dataclass(frozen=True, slots=True)
class ChosenAnnotator:
    """What a run annotates with.

    Args:
        settings: Settings of the run, with the dataset's own thresholds where none were given.
        hash: ``annotator_hash`` of its rows.
        overwritten: Sources whose units were made otherwise, to be annotated again.

    """

    settings: AnnotateSettings
    hash: str
    overwritten: tuple[str, ...]


def choose_annotator(
    state: DatasetState,
    settings: AnnotateSettings,
    model_hashes: Mapping[str, str],
    sources: Sequence[str],
    licences: Mapping[str, str],
    *,
    overwrite: bool,
) -> ChosenAnnotator:
    """Return the settings to annotate some sources with.

    Thresholds that only flag belong to the dataset: its first run sets them, ``handdata flag`` changes them, and
    further runs take them over. All else decides what a row is, and must be what it was for the rows of these sources.

    Args:
        state: State of the dataset.
        settings: Settings as given; thresholds that were not set are the dataset's.
        model_hashes: SHA-256 of the model files by name.
        sources: Sources to annotate.
        licences: Licences of those among them whose licence the user says.
        overwrite: Whether sources are annotated again that have a unit made with other settings, models or records, or
            rows under another licence.

    Raises:
        UsageError: Settings or licences differ; the message names which. Or rows that stay are of an older format
            version.

    """
    dataset, markers, manifest = state.dataset, state.markers, state.manifest
    # A manifest that was damaged, and removed, is written again from the markers.
    own = dict(manifest.quality if manifest else markers[0].thresholds) if markers else {}
    given = {name: getattr(settings.quality, name) for name in settings.quality.model_fields_set - {"reject"}}
    quality = QualitySettings(**{**own, **given}, reject=settings.quality.reject)
    settings = settings.model_copy(update={"quality": quality})
    annotator_hash = settings.digest(dict(model_hashes))

    earlier = manifest.licenses if manifest and markers else {}
    relicensed = [source for source, licence in licences.items() if earlier.get(source, licence) != licence]
    made_otherwise = _made_otherwise(dataset, markers, sources, annotator_hash)
    older = _of_older_format(manifest, markers) | {name for name in sources if is_of_older_format(dataset, name)}
    overwritten = tuple(name for name in sources if name in {*made_otherwise, *relicensed, *older}) if overwrite else ()
    if left := sorted(older - {*overwritten}):
        raise UsageError(
            f"{dataset.describe()} holds {', '.join(left)} in format version 1, which can be read but not added to",
            "--overwrite annotates all sources again; --dataset NAME keeps both",
        )
    staying = [marker for marker in markers if marker.source not in overwritten]
    where = dataset.describe()
    for marker in staying:
        if marker.source in sources and marker.annotator_hash != annotator_hash:
            before = manifest.annotator_hashes.get(marker.annotator_hash, {}) if manifest else {}
            now = {"settings": settings.identity(), "models": dict(model_hashes)}
            differences = "; ".join(_differences(before, now))
            raise UsageError(
                f"{where} holds {marker.source} annotated with other settings: {differences}",
                f"repeat the earlier ones; --overwrite annotates {marker.source} again; --dataset NAME keeps both",
            )
    for source in sources:
        if source not in overwritten and (changes := planned_otherwise(dataset, source)):
            raise UsageError(
                f"{where} holds {source} ingested with other options: {'; '.join(changes)}",
                f"ingest it with the earlier ones; --overwrite annotates {source} again; --dataset NAME keeps both",
            )
    for source in relicensed:
        if any(marker.source == source for marker in staying):
            raise UsageError(
                f"{where} holds {source} under the licence {earlier[source]}, its records say {licences[source]}",
                f"ingest it again with the earlier --licence, or --overwrite annotates {source} again",
            )
    if manifest and staying and manifest.image_size != settings.image_size:
        raise UsageError(
            f"{where} has crops of {manifest.image_size} pixels, --image-size is {settings.image_size}",
            f"repeat --image-size {manifest.image_size}, or annotate into another --dataset",
        )
    other = {name: value for name, value in given.items() if own.get(name, value) != value}
    if staying and other:
        _require_same_thresholds(where, own, other, quality)
    return ChosenAnnotator(settings, annotator_hash, overwritten)


def _of_older_format(manifest: DatasetManifest | None, markers: Sequence[UnitMarker]) -> set[str]:
    """Return the sources whose rows are of an older format version."""
    older = {marker.source for marker in markers if marker.format_version < FORMAT_VERSION}
    if older or manifest is None or manifest.format_version == FORMAT_VERSION:
        return older
    return {marker.source for marker in markers}


def _made_otherwise(
    dataset: Dataset, markers: Iterable[UnitMarker], sources: Sequence[str], annotator_hash: str
) -> tuple[str, ...]:
    other_settings = {marker.source for marker in markers if marker.annotator_hash != annotator_hash}
    return tuple(source for source in sources if source in other_settings or not is_of_last_ingest(dataset, source))


def _require_same_thresholds(
    where: str, own: Mapping[str, float], other: Mapping[str, float], quality: QualitySettings
) -> None:
    changes = [f"{name} {own[name]:g} -> {value:g}" for name, value in sorted(other.items())]
    rejecting = {FLAG_THRESHOLDS.get(flag) for flag in quality.reject}
    hint = "--dataset NAME keeps both"
    if not rejecting & other.keys():
        options = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in sorted(other.items()))
        hint = f"`handdata flag {options}` changes all rows, without any model; {hint}"
    raise UsageError(f"the samples in {where} are flagged by other thresholds: {'; '.join(changes)}", hint)


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return what differs between two descriptions of an annotator, as ``name old -> new``."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(document: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for part, values in document.items():
        for name, value in (values if isinstance(values, Mapping) else {}).items():
            if part == "models":
                flat[f"model {name}"] = str(value)[:12]
            elif isinstance(value, Mapping):
                flat |= {
                    f"reject {flag}": "at any" if limit is None else f"at {limit}" for flag, limit in value.items()
                }
            else:
                flat[name] = value
    return flat
