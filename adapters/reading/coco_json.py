"""Label files in COCO's format: each image with its annotations, in bounded memory, whatever order the file has.

``{"info": {...}, "images": [...], "annotations": [...], "categories": [...]}``: an annotation names its image and its
category by their ids. The lists come in any order and hold gigabytes, so that one pass over the file puts them into a
temporary database on disk, which joins them.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from handdata.adapters.reading.json_stream import stream_lists
from handdata.schemas.errors import RecordError, RejectReason, StorageError

_TABLES: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE images (number INTEGER PRIMARY KEY, id TEXT, file_name TEXT, entry TEXT);
    CREATE TABLE annotations (number INTEGER PRIMARY KEY, image_id TEXT, entry TEXT);
"""
_INDEXES: Final = """
    CREATE INDEX of_image ON annotations (image_id);
    CREATE INDEX by_id ON images (id);
    CREATE INDEX by_name ON images (file_name);
"""
_IMAGES: Final = """
    SELECT number, entry, id,
        (SELECT COUNT(*) FROM images AS other WHERE other.id = images.id),
        (SELECT COUNT(*) FROM images AS other WHERE other.file_name = images.file_name)
    FROM images ORDER BY number
"""
_ORPHANS: Final = (
    "SELECT number, image_id FROM annotations WHERE image_id NOT IN (SELECT id FROM images) ORDER BY number"
)


class CocoLabels:
    """The content of one label file.

    Args:
        path: The file.
        database: Database with its images and annotations.
        info: What the file says about itself, empty where it says nothing.
        categories: Entries of the list ``categories``.

    """

    def __init__(self, path: Path, database: sqlite3.Connection, info: dict[str, Any], categories: list[Any]) -> None:
        self.path = path
        self.info = info
        self.categories = categories
        self._database = database

    def images(self) -> Iterator[tuple[int, Any, list[Any] | RecordError]]:
        """Yield each image's position in the file, its entry, and its annotations or what is wrong with the entry."""
        for number, entry, image_id, ids, names in self._database.execute(_IMAGES):
            image = json.loads(entry)
            if not isinstance(image, dict) or image_id == "":
                problem = "is no object with an id, a number or a text"
            elif ids > 1:
                problem = f"has the id {image_id} of another image: nothing tells whose its annotations are"
            elif names > 1:
                problem = f"has the file_name of another image: {image.get('file_name')!r}"
            else:
                found = self._database.execute(
                    "SELECT entry FROM annotations WHERE image_id = ? ORDER BY number", (image_id,)
                )
                yield number, image, [json.loads(text) for (text,) in found]
                continue
            yield number, image, RecordError(RejectReason.LABEL_CORRUPT, f"{self.path}: image {number} {problem}")

    def annotations_without_image(self) -> Iterator[tuple[int, RecordError]]:
        """Yield the position and the fault of each annotation that belongs to no image of the file."""
        for number, image_id in self._database.execute(_ORPHANS):
            where = f"{self.path}: annotation {number}"
            if image_id == "":
                yield number, RecordError(RejectReason.LABEL_CORRUPT, f"{where} is no object with an image_id")
            else:
                detail = f"{where} is of image {image_id}, which the list images does not have"
                yield number, RecordError(RejectReason.LABEL_MISSING, detail)


@contextmanager
def open_labels(path: Path, fields: Sequence[str]) -> Iterator[CocoLabels]:
    """Read a label file; its database lives as long as the context.

    Args:
        path: The file.
        fields: What to keep of each annotation.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``: it is no JSON, or has no images or no categories.
        StorageError: The folder of temporary files is full.

    """
    info: dict[str, Any] = {}
    categories: list[Any] = []
    try:
        # A database without a name is a temporary file, which SQLite removes when it is closed.
        with closing(sqlite3.connect("")) as database:
            database.executescript(_TABLES)
            for name, entry in stream_lists(path, "info", "categories", "images", "annotations"):
                is_object = isinstance(entry, dict)
                if name == "info":
                    info = entry if is_object else {}
                elif name == "categories":
                    categories.append(entry)
                elif name == "images":
                    if is_object and isinstance(entry.get("file_name"), str):
                        entry["file_name"] = entry["file_name"].replace("\\", "/")  # as Windows separates folders
                    image = (_id(entry, "id"), _id(entry, "file_name"), json.dumps(entry))
                    database.execute("INSERT INTO images (id, file_name, entry) VALUES (?, ?, ?)", image)
                else:
                    kept = {field: entry[field] for field in fields if field in entry} if is_object else entry
                    annotation = (_id(entry, "image_id"), json.dumps(kept))
                    database.execute("INSERT INTO annotations (image_id, entry) VALUES (?, ?)", annotation)
            database.executescript(_INDEXES)
            if not categories or not database.execute("SELECT EXISTS (SELECT * FROM images)").fetchone()[0]:
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} has no list of images or none of categories")
            yield CocoLabels(path, database, info, categories)
    except sqlite3.Error as error:
        hint = "set TMPDIR to a folder with as much space as the label file takes"
        raise StorageError(
            f"the labels of {path} do not fit into the folder of temporary files: {error}", hint
        ) from None


def _id(entry: Any, key: str) -> str:
    """Return an id as a text that tells numbers and texts apart; "" where it is neither."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return json.dumps(value) if type(value) is int or (isinstance(value, str) and value) else ""
