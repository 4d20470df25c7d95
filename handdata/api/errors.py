"""Errors of the Python API: they name arguments, where those of the command line name flags."""

import re
import shlex
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from handdata.schemas import HandDataError
from handdata.schemas.errors import missing_package

Given = ParamSpec("Given")
Result = TypeVar("Result")

_NAMES: Final = {
    "checkpoint": "model",
    "guidance-scale": "guidance",
    "mano": "mano_dir",
    "n": "count",
    "run": "model",
}
"""Arguments that are not called like their flags."""
_SWITCHES: Final = ("follow-links", "force", "mirrored", "overwrite", "repair")
"""Flags without a value."""
_FUNCTIONS: Final = ("annotate", "ingest")
"""Commands that are functions of ``handdata``, with the same names."""
_FLAG: Final = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


def names_arguments(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let the errors of a function name arguments instead of flags."""

    @wraps(function)
    def run(*arguments: Given.args, **options: Given.kwargs) -> Result:
        try:
            return function(*arguments, **options)
        except ModuleNotFoundError as error:
            missing = missing_package(error)
            if missing is None:
                raise
            raise missing from None
        except HandDataError as error:
            if hasattr(error, "message"):
                error.message, error.hint = in_python(error.message), in_python(error.hint)
                error.args = (error.message, error.hint, *error.args[2:])
            raise

    return run


def in_python(text: str) -> str:
    """Return a text of the command line as Python says it: flags as arguments, commands as calls where there are such.

    >>> in_python("lower --guidance-scale, or run `handdata annotate --dataset mine --repair`")
    "lower guidance, or run `handdata.annotate(dataset='mine', repair=True)`"

    """
    parts = text.split("`")
    for number, part in enumerate(parts):
        named = _FLAG.sub(lambda found: _argument(found[1]), part)
        parts[number] = _call(part) if number % 2 else named.replace("model or model", "model")
    return "`".join(parts)


def _argument(flag: str) -> str:
    name = _NAMES.get(flag, flag.replace("-", "_"))
    return f"{name}=True" if flag in _SWITCHES else name


def _call(command: str) -> str:
    """Return a command as a call, or as it is where no function of this name is there."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    if words[:1] != ["handdata"] or len(words) < 2 or words[1] not in _FUNCTIONS:
        return command
    given, rest = [], words[2:]
    while rest:
        flag = rest.pop(0).removeprefix("--")
        value = rest.pop(0) if rest and not rest[0].startswith("--") else True
        given.append(f"{_NAMES.get(flag, flag.replace('-', '_'))}={value!r}")
    return f"handdata.{words[1]}({', '.join(given)})"
