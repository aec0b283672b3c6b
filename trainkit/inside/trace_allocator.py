"""A model of PyTorch's caching allocator for one stream: what it reserves for a sequence of births and deaths.

Part of memory_trace.py. The rules are those of c10/cuda/CUDACachingAllocator.cpp: requests of up to 1 MiB share
segments of 2 MiB, those below 10 MiB segments of 20 MiB, larger ones get a segment of their own, rounded up to 2 MiB;
the smallest free block that fits is taken, split when enough is left, and merged with its free neighbours when freed.
Its answer to running out of memory (give cached segments back and try again) is not modelled: near the card's limit
less is reserved than this says, and with expandable segments little more than is allocated.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trainkit.inside.trace_ledger import Event

MIB = 1 << 20
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_REQUEST = 10 * MIB
LARGE_SEGMENT = 20 * MIB
SEGMENT_GAP = 1 << 50  # address space between segments, so that blocks of two segments are never neighbours


class Pool:
    """The free blocks of one size class, by size and by address."""

    def __init__(self, *, small: bool, expandable: bool) -> None:
        self.small = small
        self.expandable = expandable
        self.reserved = 0
        self._segments = 0
        self._end = 0
        self._free: list[tuple[int, int]] = []
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}

    def allocate(self, size: int) -> tuple[int, int]:
        """Return (address, size) of a block for a request; the block may be larger when the rest is too small."""
        index = bisect_left(self._free, (size, -1))
        if index == len(self._free):
            self._grow(size)
            index = bisect_left(self._free, (size, -1))
        found, start = self._free[index]
        self._take(start, found)
        rest = found - size
        if rest >= 512 if self.small else rest > SMALL_REQUEST:
            self._put(start + size, rest)
            found = size
        return start, found

    def free(self, start: int, size: int) -> None:
        """Give a block back, merged with the free blocks before and after it."""
        before = self._by_end.get(start)
        if before is not None:
            self._take(before, start - before)
            size += start - before
            start = before
        after = self._by_start.get(start + size)
        if after is not None:
            self._take(start + size, after)
            size += after
        self._put(start, size)

    def _grow(self, size: int) -> None:
        if self.expandable:
            self._expand(size)
            return
        segment = self._segment_size(size)
        self._segments += 1
        self.reserved += segment
        self._put(self._segments * SEGMENT_GAP, segment)

    def _expand(self, size: int) -> None:
        """Map pages at the end of the only segment; what is free there already counts."""
        page = SMALL_SEGMENT if self.small else LARGE_SEGMENT
        missing = size - (self._end - self._by_end.get(self._end, self._end))
        added = -(-missing // page) * page
        start, self._end = self._end, self._end + added
        self.reserved += added
        self.free(start, added)

    def _segment_size(self, size: int) -> int:
        if self.small:
            return SMALL_SEGMENT
        return LARGE_SEGMENT if size < LARGE_REQUEST else -(-size // SMALL_SEGMENT) * SMALL_SEGMENT

    def _put(self, start: int, size: int) -> None:
        insort(self._free, (size, start))
        self._by_start[start] = size
        self._by_end[start + size] = start

    def _take(self, start: int, size: int) -> None:
        del self._free[bisect_left(self._free, (size, start))]
        del self._by_start[start]
        del self._by_end[start + size]


def reserved_bytes(events: Iterable[Event], *, expandable: bool) -> int:
    """Return the bytes that the allocator has reserved from the device at the end; it gives none back.

    `expandable` is PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, where each size class has one segment that grows.
    """
    small, large = (Pool(small=is_small, expandable=expandable) for is_small in (True, False))
    blocks: dict[int, tuple[int, int]] = {}
    for event in events:
        pool = small if event.size <= SMALL_REQUEST else large
        if event.born:
            blocks[event.number] = pool.allocate(event.size)
        else:
            pool.free(*blocks.pop(event.number))
    return small.reserved + large.reserved
