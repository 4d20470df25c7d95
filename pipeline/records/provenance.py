"""Where records come from: the folder that their URIs are relative to, the licence and the release of their dataset.

Tables on disk hold the URIs of files below the dataset's folder relative to it, and the folder itself stands once a
source in the summary of its ingest and in the manifest: a workspace can move, and so can a dataset. Everywhere else (in
adapters, records and messages of a process) URIs are whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError, license_id_of

_IN_ROOT: Final = '"{root}/'
"""What begins, in the JSON of ``extra``, the path of a file below the root."""

_PROBES: Final = 16
"""Images of a source that are looked for in its folder before the work begins."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the samples of a source say of where they come from.

    Args:
        license: Licence of the data.
        license_id: SPDX id of the licence, or a ``LicenseRef-``.
        root: Folder that the URIs of its records are relative to.
        release: Release of the dataset, where its files tell.

    """

    license: str
    license_id: str
    root: str = ""
    release: str | None = None

    @classmethod
    def of_ingest(cls, ingest: IngestSummary, root: Path | None = None) -> "Provenance":
        """Return that of ingested records, whose dataset lies at ``root`` now."""
        license_id = ingest.license_id or license_id_of(ingest.license)
        return cls(ingest.license, license_id, ingest.root if root is None else str(root), ingest.release)


def relative_uri(uri: str, root: str) -> str:
    """Return a URI as tables hold it: relative to the root where it names a file below it.

    >>> relative_uri("/data/rhd/a.png", "/data/rhd"), relative_uri("zip://a.jpg::/data/visor/P01.zip", "/data/visor")
    ('a.png', 'zip://a.jpg::P01.zip')
    >>> relative_uri("file:///data/rhd/a.png", "/data/rhd"), relative_uri("s3://bucket/a.png", "/data/rhd")
    ('a.png', 's3://bucket/a.png')

    """
    container, path = _split(uri)
    inner = path.removeprefix("file://")
    prefix = _prefix(root)
    if not root or not inner.startswith(prefix):
        return uri
    return container + inner[len(prefix) :].lstrip("/")


def absolute_uri(uri: str, root: str) -> str:
    """Return a URI of a table as a process opens it; what is whole already stays as it is."""
    container, path = _split(uri)
    if not root or "://" in path or path.startswith("/"):
        return uri
    return f"{container}{_prefix(root)}{path}"


def _split(uri: str) -> tuple[str, str]:
    """Return the part of a URI that says where in a file the image lies (``zip://a.jpg::``), and the file."""
    scheme = uri.rfind("://")
    if scheme < 0:
        return "", uri
    if uri[:scheme].endswith("file"):
        return uri[: scheme - len("file")], uri[scheme - len("file") :]
    file = uri.find("::", scheme) + len("::")
    return (uri[:file], uri[file:]) if file >= len("::") else ("", uri)


def _prefix(root: str) -> str:
    return f"{root.rstrip('/')}/"


def with_relative_uris(table: pa.Table, root: str) -> pa.Table:
    """Return a table of records, samples or rejections as it is stored: its URIs relative to the root.

    So are the paths in ``extra``. What is relative already stays as it is.
    """
    if not root or not len(table):
        return table
    place = table.schema.get_field_index("image_uri")
    table = table.set_column(place, table.schema.field(place), _relative_uris(table["image_uri"], root))
    if "extra" not in table.column_names or table["extra"].null_count == len(table):
        return table
    place = table.schema.get_field_index("extra")
    extra = pc.replace_substring(table["extra"], pattern=_quoted(root), replacement=_IN_ROOT)
    return table.set_column(place, table.schema.field(place), extra)


def _relative_uris(uris: pa.ChunkedArray, root: str) -> pa.ChunkedArray:
    """Return ``relative_uri`` of each; of the usual ones at once, since there are millions."""
    prefix = _prefix(root)
    if pc.all(pc.starts_with(uris, prefix), skip_nulls=False).as_py():
        relative = pc.utf8_slice_codeunits(uris, len(prefix))
        if not pc.any(pc.starts_with(relative, "/")).as_py():
            return relative
    elif not pc.any(pc.or_(pc.starts_with(uris, "/"), pc.match_substring(uris, "://"))).as_py():
        return uris
    texts = [None if uri is None else relative_uri(uri, root) for uri in uris.to_pylist()]
    return pa.chunked_array([pa.array(texts, uris.type)])


def absolute_row(row: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Return a row of a table of records with whole URIs, also in ``extra``."""
    whole = dict(row)
    if isinstance(row["image_uri"], str):
        whole["image_uri"] = absolute_uri(row["image_uri"], root)
    if isinstance(row["extra"], str):
        whole["extra"] = row["extra"].replace(_IN_ROOT, _quoted(root))
    return whole


def _quoted(root: str) -> str:
    """Return how the JSON text of a path below the root begins."""
    return json.dumps(_prefix(root))[:-1]


def given_provenances(ingests: Mapping[str, IngestSummary], roots: Mapping[str, Path]) -> dict[str, Provenance]:
    """Return where the records of some sources come from.

    Args:
        ingests: Summaries of their ingests by source.
        roots: Folders in which the user says that datasets lie now, or which hold them, by source.

    Raises:
        UsageError: A folder is named for another source, or is none.

    """
    for source, root in roots.items():
        if source not in ingests:
            raise UsageError(
                f"--root {source}={root}: the run has no source {source}", f"its sources are {', '.join(ingests)}"
            )
        if not root.is_dir():
            raise UsageError(f"--root {source}={root}: there is no such folder", "give the folder of the dataset")
    return {
        name: Provenance.of_ingest(ingest, _absolute(roots[name]) if name in roots else None)
        for name, ingest in ingests.items()
    }


def _absolute(folder: Path) -> Path:
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def found_provenance(
    storage: Storage, ingest: IngestSummary, provenance: Provenance, *, is_given: bool = False
) -> Provenance:
    """Return where the records of a source come from, once an image of some is found there.

    Args:
        storage: The workspace.
        ingest: Summary of the source's ingest.
        provenance: Where they should come from.
        is_given: Whether the user says so: as for an ingest, the dataset may then lie in a folder in that folder.

    Raises:
        UsageError: None of some images is there: to go on would reject all records. Or several folders have them.

    """
    uris = _some_uris(storage, ingest)
    root = Path(provenance.root)
    if not uris or _holds_some(root, uris):
        return provenance
    found = [folder for folder in _folders_in(root) if _holds_some(folder, uris)] if is_given else []
    if len(found) == 1:
        return replace(provenance, root=str(found[0]))
    if found:
        raise UsageError(
            f"{root} holds {ingest.source} more than once: {', '.join(folder.name for folder in found)}",
            f"choose one of them: --root {ingest.source}={found[0]}",
        )
    raise UsageError(
        f"the images of {ingest.source} are not in {root}: there is no {_file_of(absolute_uri(uris[0], str(root)))}",
        f"is its disk there? If the dataset has moved, --root {ingest.source}=DIR says where it is",
    )


def _some_uris(storage: Storage, ingest: IngestSummary) -> list[str]:
    """Return the URIs of some images, spread over a source's records, that are files of this machine."""
    uris: list[str] = []
    for name in dict.fromkeys((*ingest.files[:1], *ingest.files[-1:])):
        found = storage.read_parquet(name, ["image_uri"])["image_uri"].drop_null().unique().to_pylist()
        relative = [relative_uri(uri, ingest.root) for uri in found]
        local = [uri for uri in relative if "://" not in _split(uri)[1]]
        uris += local[:: max(1, len(local) // _PROBES)]
    return uris


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}", "may you read it?") from None


def _holds_some(folder: Path, uris: Sequence[str]) -> bool:
    return any(_is_there(absolute_uri(uri, str(folder))) for uri in uris)


def _is_there(uri: str) -> bool:
    """Return whether the file of a URI is there; what cannot be asked is for the run to find out."""
    try:
        Path(_file_of(uri)).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return True


def _file_of(uri: str) -> str:
    return _split(uri)[1]
