"""Pydantic models as rows of Arrow tables."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

JSON_COLUMNS: Final = frozenset({"extra", "attributes"})
"""Columns that hold JSON."""


def columns_of(model: type[BaseModel], beside: Collection[str] = ()) -> dict[str, pa.Field]:
    """Return the Arrow columns of a model by name, in the order of its fields.

    Each field names its Arrow type: ``name: Annotated[float | None, pa.float64()]``. The column is nullable where the
    field takes ``None``.

    Args:
        model: The model.
        beside: Fields that are no columns.

    Raises:
        TypeError: A field without an Arrow type.

    """
    columns = {}
    for name, field in ((name, field) for name, field in model.model_fields.items() if name not in beside):
        types = [item for item in field.metadata if isinstance(item, pa.DataType)]
        if len(types) != 1:
            raise TypeError(f"{model.__name__}.{name}: expected one Arrow type in Annotated[...], got {types}")
        columns[name] = pa.field(name, types[0], nullable=type(None) in get_args(field.annotation))
    return columns


def models_to_table(
    models: Sequence[BaseModel], schema: pa.Schema, made: Mapping[str, Sequence[Any]] | None = None
) -> pa.Table:
    """Return the models as a table; a field that the schema does not name is omitted.

    Args:
        models: The rows.
        schema: Columns of the table.
        made: Values of columns that are no fields of the models.

    """
    columns = []
    for field in schema:
        values = (made or {}).get(field.name) or [getattr(model, field.name) for model in models]
        if pa.types.is_fixed_size_list(field.type):
            columns.append(_fixed_list_column(values, field.type))
        elif field.name in JSON_COLUMNS:
            texts = [None if value is None else json.dumps(value, sort_keys=True) for value in values]
            columns.append(pa.array(texts, field.type))
        else:
            plain = [value.model_dump() if isinstance(value, BaseModel) else value for value in values]
            columns.append(pa.array(plain, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _fixed_list_column(arrays: Sequence[NDArray[Any] | None], column_type: pa.FixedSizeListType) -> pa.Array:
    """Stack arrays of one size into a fixed-size-list column; ``None`` becomes a null row."""
    missing = np.array([array is None for array in arrays], dtype=bool)
    placeholder = np.zeros(column_type.list_size, dtype=column_type.value_type.to_pandas_dtype())
    rows = [placeholder if array is None else array.reshape(-1) for array in arrays]
    values = np.concatenate(rows) if rows else placeholder[:0]
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values, type=column_type.value_type),
        type=column_type,
        mask=pa.array(missing) if missing.any() else None,
    )
