"""Tell a broken place from a broken item: one that breaks a process here and another elsewhere is itself to blame."""

from collections.abc import Hashable

NOWHERE = -1


class Strikes:
    """Count for each place the items in a row that broke its process and have broken no other place's.

    Args:
        limit: strikes at which a place is out; 0 for never.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._against: dict[int, set[Hashable]] = {}
        self._first_at: dict[Hashable, int] = {}

    def add(self, place: int, item: Hashable) -> None:
        """Note that an item broke a place's process; one that broke another's before speaks against no place."""
        first = self._first_at.setdefault(item, place)
        if first == place:
            self._against.setdefault(place, set()).add(item)
        else:
            self._against.get(first, set()).discard(item)
            self._first_at[item] = NOWHERE

    def clear(self, place: int) -> None:
        """Note that a place finished an item."""
        self._against.pop(place, None)

    def out(self, place: int) -> bool:
        """Whether a place is to get no more work."""
        return 0 < self._limit <= len(self._against.get(place, ()))
