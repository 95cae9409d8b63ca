"""To look for what comes soon before one sleeps.

To wake a process that sleeps takes longer than a short call itself, most of all on
a virtual machine, whose idle CPU is given back to its host. So who had to wait for a short
time only when it waited last looks again and again first, for `SPIN` seconds at most, and
gives way to others between two looks.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable

SPIN = 0.0002
"""Seconds that one looks before it sleeps, at most."""

give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))
"""Let others run that wait for this CPU."""


class Selector(selectors.DefaultSelector):
    """The platform's selector, which looks before it sleeps."""

    _short = False
    """Whether the last wait was a short one, and so the next may be."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready, after so many seconds at most."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        begun = now = time.monotonic()
        until = begun + (SPIN if timeout is None else min(SPIN, timeout))
        while self._short and now < until:
            ready = super().select(0)
            if ready:
                return ready
            give_way()
            now = time.monotonic()
        ready = super().select(None if timeout is None else timeout - (now - begun))
        self._short = bool(ready) and time.monotonic() < until
        return ready
