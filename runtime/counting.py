# SPDX-License-Identifier: Apache-2.0
"""What each region did in this process: for tests, and for people who wonder whether it compiled."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

logger = logging.getLogger("vgen.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionCounters:
    """A snapshot of one region's counters, summed over all instances.

    Attributes:
        calls: Forwards that were to run compiled: compiled ones and fallbacks.
        compiles: Calls in which something was compiled.
        graphs: Graphs that were handed to the backend.
        variants: Variants that were met first.
        held: Of these, the variants that only what the modules held told apart: see `held_states`.
        recordings: CUDA graphs that were recorded.
        replays: Calls that replayed one.
        loaded: Calls that a loaded artifact served.
        fallbacks: How many calls ran uncompiled, by reason.
    """

    calls: int
    compiles: int
    graphs: int
    variants: int
    held: int
    recordings: int
    replays: int
    loaded: int
    fallbacks: Mapping[str, int]


@dataclass(slots=True)
class Tally:
    """The running counters of one region."""

    calls: int = 0
    compiles: int = 0
    graphs: int = 0
    variants: int = 0
    held: int = 0
    recordings: int = 0
    replays: int = 0
    loaded: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)


_lock = threading.Lock()
_tallies: dict[str, Tally] = {}
_logged: set[tuple[str, str]] = set()


def tally(tag: str) -> Tally:
    """The running counters of a region, by its compile tag."""
    found = _tallies.get(tag)
    if found is None:
        with _lock:
            found = _tallies.setdefault(tag, Tally())
    return found


def record_fallback(tag: str, reason: str) -> None:
    """Count a call that ran uncompiled, and log the reason if this region hasn't logged it before."""
    tally(tag).fallbacks[reason] += 1
    if (tag, reason) not in _logged:
        _logged.add((tag, reason))
        logger.warning("%s runs uncompiled: %s", tag, reason)


def counters() -> dict[str, RegionCounters]:
    """The counters of each region that ran, by compile tag (`qwen2_5_vl.encoder`)."""
    with _lock:
        return {
            tag: RegionCounters(
                calls=each.calls,
                compiles=each.compiles,
                graphs=each.graphs,
                variants=each.variants,
                held=each.held,
                recordings=each.recordings,
                replays=each.replays,
                loaded=each.loaded,
                fallbacks=MappingProxyType(dict(sorted(each.fallbacks.items()))),
            )
            for tag, each in sorted(_tallies.items())
        }


def reset_counters() -> None:
    """Set all counters to zero. What is compiled stays compiled, and what was logged isn't logged again."""
    with _lock:
        _tallies.clear()
