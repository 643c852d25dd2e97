"""Memory that is still to be filled, while the process whose it is runs and changes its mappings. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Memory from `start` to `end`, and where its content begins in one of the images."""

    start: int
    end: int
    image: int
    offset: int

    def cut(self, start: int, end: int) -> "Part":
        """What of it lies between; there must be something."""
        first, last = max(start, self.start), min(end, self.end)
        return Part(first, last, self.image, self.offset + first - self.start)


class Pending:
    """Parts in the order of their addresses, none over another."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = sorted(parts, key=lambda part: part.start)
        self._starts = [part.start for part in self._parts]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def copy(self) -> "Pending":
        """As it is now, for memory that was copied by fork(2)."""
        return Pending(self._parts)

    def first(self) -> Part:
        """That of the lowest address. Raises IndexError: there is none."""
        return self._parts[0]

    def at(self, address: int) -> Part | None:
        """The part that an address lies in."""
        found = self._within(address, address + 1)
        return self._parts[found.start] if found else None

    def remove(self, start: int, end: int) -> list[Part]:
        """Memory is filled, or nobody wants it any more; the parts of it that were pending."""
        found = self._within(start, end)
        parts = self._parts[found.start : found.stop]
        kept = [part.cut(part.start, start) for part in parts[:1] if part.start < start]
        kept += [part.cut(end, part.end) for part in parts[-1:] if part.end > end]
        self._replace(found, kept)
        return [part.cut(start, end) for part in parts]

    def move(self, source: int, target: int, size: int) -> None:
        """Memory is somewhere else now, in the place of what was there."""
        moved = [
            Part(part.start + target - source, part.end + target - source, part.image, part.offset)
            for part in self.remove(source, source + size)
        ]
        self.remove(target, target + size)
        at = bisect_left(self._starts, target)
        self._replace(range(at, at), moved)

    def _within(self, start: int, end: int) -> range:
        """The places of the parts that have something between."""
        first = max(0, bisect_right(self._starts, start) - 1)
        if first < len(self._parts) and self._parts[first].end <= start:
            first += 1
        return range(first, max(first, bisect_left(self._starts, end)))

    def _replace(self, places: range, parts: list[Part]) -> None:
        self._parts[places.start : places.stop] = parts
        self._starts[places.start : places.stop] = [part.start for part in parts]
