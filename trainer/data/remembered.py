"""Functions that remember their last results, and travel to other processes without them."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """A function that remembers its last results; threads may ask at once.

    ``lru_cache`` cannot be pickled, as the workers of a ``DataLoader`` need it where processes are not forked.

    Args:
        function: The function; a method, or one of a module.
        most: Number of results.

    """

    def __init__(self, function: Callable[..., Result], most: int) -> None:
        self._function, self._most = function, most
        self._cached = lru_cache(most)(function)

    def __call__(self, *key: Hashable) -> Result:
        """Return what the function does."""
        return self._cached(*key)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return Remembered, (self._function, self._most)
