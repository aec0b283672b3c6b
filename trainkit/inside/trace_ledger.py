"""The book of a trace: which storages are born and die, in which phase, and what is alive when memory is at its peak.

Part of memory_trace.py. Plain Python, so that it can be tested without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

CUDA_ALIGNMENT = 512


class Event(NamedTuple):
    """A storage `number` of `size` bytes that is born, or dies."""

    number: int
    size: int
    born: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a storage comes from: `Origin("aten::mm", "bfloat16", (8192, 3584))`."""

    operator: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


class Ledger:
    """Keeps account of storages, each rounded up to `alignment` bytes as PyTorch's CUDA allocator does.

    `current` and `peak` are bytes; `peaks` has the peak of each phase; `peak_phase` is where the highest one was.
    """

    def __init__(self, alignment: int = CUDA_ALIGNMENT) -> None:
        self.alignment = alignment
        self.events: list[Event] = []
        self.origins: list[Origin] = []
        self.current = 0
        self.peak = 0
        self.peak_phase = ""
        self.peaks: dict[str, int] = {}
        self.phase = ""
        self._peak_events = 0

    def birth(self, nbytes: int, origin: Origin) -> Event:
        """Enter a storage of `nbytes` bytes; its event is what `death` takes."""
        size = -(-nbytes // self.alignment) * self.alignment
        event = Event(len(self.origins), size, born=True)
        self.origins.append(origin)
        self.events.append(event)
        self.current += size
        self.peaks[self.phase] = max(self.current, self.peaks.get(self.phase, 0))
        if self.current > self.peak:
            self.peak, self.peak_phase, self._peak_events = self.current, self.phase, len(self.events)
        return event

    def death(self, event: Event) -> None:
        """Enter the end of a storage."""
        self.events.append(event._replace(born=False))
        self.current -= event.size

    def scratch(self, nbytes: int, operator: str) -> None:
        """Enter memory that a kernel takes for itself and gives back before it returns."""
        self.death(self.birth(nbytes, Origin(operator)))

    def forget_peaks(self) -> None:
        """Start the peaks anew from here: loading a model is not a training step."""
        self.peak, self.peak_phase, self.peaks = 0, "", {}

    def composition(self, count: int) -> list[tuple[int, int, Origin]]:
        """Return the `count` largest groups alive at the peak as (bytes, number of storages, origin)."""
        alive: dict[int, Event] = {}
        for event in self.events[: self._peak_events]:
            if event.born:
                alive[event.number] = event
            else:
                del alive[event.number]
        groups: dict[Origin, list[int]] = {}
        for event in alive.values():
            groups.setdefault(self.origins[event.number], []).append(event.size)
        ordered = sorted(groups.items(), key=lambda group: (-sum(group[1]), str(group[0])))
        return [(sum(sizes), len(sizes), origin) for origin, sizes in ordered[:count]]
