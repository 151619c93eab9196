"""Histograms of times, with buckets a tenth wide, that can be added up."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from peewee import ColumnBase, quote  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from peewee import Field

#: The longest time that has a bucket of its own, in milliseconds.
_LONGEST = 7 * 86_400_000


def _bounds() -> tuple[int, ...]:
    bounds = [0, 1]
    while bounds[-1] < _LONGEST:
        bounds.append(max(bounds[-1] + 1, round(bounds[-1] * 1.1)))
    return tuple(bounds)


#: Bucket n counts the times from ``BOUNDS[n]`` milliseconds on, up to the next bound.
BOUNDS = _bounds()


class Histogram(dict[int, int]):
    """A histogram of times: counts by bucket number."""

    @property
    def count(self) -> int:
        """The number of times counted."""
        return sum(self.values())

    def merge(self, other: dict[Any, int]) -> None:
        """Add the counts of *other*, whose keys may be texts, as in JSON."""
        for name, number in other.items():
            bucket = int(name)
            self[bucket] = self.get(bucket, 0) + number

    def percentile(self, share: float) -> int | None:
        """Return the milliseconds within which *share* of them ended, such as 0.95; None if empty.

        It is exact to the width of a bucket, a tenth.
        """
        wanted, seen = share * self.count, 0
        for bucket in sorted(self):
            inside = self[bucket]
            if seen + inside >= wanted:
                low = BOUNDS[bucket]
                last = BOUNDS[bucket + 1] - 1 if bucket + 1 < len(BOUNDS) else low
                return low + round((last - low) * (wanted - seen) / inside)
            seen += inside
        return None


def bucket_of(milliseconds: int) -> int:
    """Return the number of a time's bucket."""
    return bisect_right(BOUNDS, max(0, milliseconds)) - 1


def bucket_expression(column: Field) -> Any:
    """Return the expression for a column's bucket; not every database has logarithms."""
    return _Bucket(column)


# Any: the stubs of peewee leave the context out.
class _Bucket(ColumnBase):
    """The column's name is in the text some two hundred times: it is rendered once."""

    def __init__(self, column: Field) -> None:
        self._column = column

    def __sql__(self, ctx: Any) -> Any:
        column: Any = self._column
        table = ctx.alias_manager[column.model._meta.table]
        return ctx.literal(_TREE.replace("?", quote((table, column.column_name), ctx.state.quote)))


def _choose(low: int, high: int) -> str:
    """Return a CASE that halves the buckets from *low* to *high* until one is left."""
    if low == high:
        return str(low)
    middle = (low + high + 1) // 2
    left, right = _choose(low, middle - 1), _choose(middle, high)
    return f"CASE WHEN ? < {BOUNDS[middle]} THEN {left} ELSE {right} END"


_TREE = f"CASE WHEN ? IS NULL THEN NULL ELSE {_choose(0, len(BOUNDS) - 1)} END"
