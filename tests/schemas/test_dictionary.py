"""docs/shards.md says of every column what the schema and the code hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from handdata.pictures.joints import joint_order_svg
from handdata.schemas import KEYPOINT_COUNT, SAMPLE_SCHEMA
from handdata.schemas.dictionary import COLUMNS, data_dictionary, with_dictionary

DOCS = Path(__file__).parents[2] / "docs"


def test_the_dictionary_has_every_column_in_order_with_an_example_of_its_type() -> None:
    assert list(COLUMNS) == SAMPLE_SCHEMA.names
    for field in SAMPLE_SCHEMA:
        told = COLUMNS[field.name]
        value = pa.array([told.example], field.type)
        assert told.meaning and value.null_count == 0
        if pa.types.is_fixed_size_list(field.type):
            shape = eval(told.shape)
            assert np.reshape(told.example, shape).size == field.type.list_size
        elif pa.types.is_list(field.type) and told.shape != "any":
            assert len(told.example) == int(told.shape), field.name
        assert "null" in told.meaning or not field.nullable or field.name == "attributes", field.name


def test_the_page_and_the_picture_are_those_that_the_code_makes() -> None:
    page = (DOCS / "shards.md").read_text(encoding="utf-8")
    assert data_dictionary() in page and with_dictionary(page) == page, "run `make docs`"
    assert (DOCS / "joints.svg").read_text(encoding="utf-8") == joint_order_svg(), "run `make docs`"
    rows = [f">{row}</text>" for row in range(KEYPOINT_COUNT)]
    assert all(joint_order_svg().count(row) == 1 for row in rows)
