"""From a queue that holds the observations of many actions, each task's own.

Whoever collects may take from the queue what belongs to somebody else: that is
kept here until it is asked for. One thread at a time reads the queue, for all
that collect from it.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import defaultdict
from typing import Any

from mentis_pool.mentis_v1 import (
    STILL_RUNS,
    BaseObservation,
    EndObservation,
    ErrorObservation,
    ResultObservation,
)


class Collected(list[BaseObservation]):
    """Observations of one task, in order; ``complete`` is False where its result is not among them."""

    complete: bool = False


def ends(observation: BaseObservation) -> bool:
    """Whether this is the last that a task has to wait for: its result, or what stands for it."""
    if isinstance(observation, ResultObservation):
        return True
    if isinstance(observation, (ErrorObservation, EndObservation)):
        # An original runtime gives up waiting after 10 s; the cell goes on, and its result comes.
        return STILL_RUNS not in (observation.error or "")
    return False


class Router:
    """What was taken from one queue, by action."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, list[BaseObservation]] = defaultdict(list)
        self._reading = False

    def collect(
        self, source: queue.Queue[Any], action_id: str, into: Collected, deadline: float
    ) -> None:
        """Add this action's observations, until one `ends` it or it is so late (monotonic)."""
        with self._changed:
            while not into.complete:
                self._take(action_id, into)
                left = deadline - time.monotonic()
                if into.complete or (left <= 0 and source.empty()):
                    return
                if self._reading:
                    self._changed.wait(max(left, 0.001))
                else:
                    self._read(source, max(left, 0.0))

    def _take(self, action_id: str, into: Collected) -> None:
        waiting = self._waiting.get(action_id, [])
        while waiting and not into.complete:
            observation = waiting.pop(0)
            into.append(observation)
            into.complete = ends(observation)
        if not waiting:
            self._waiting.pop(action_id, None)

    def _read(self, source: queue.Queue[Any], patience: float) -> None:
        """One observation from the queue, for whom it may concern."""
        self._reading = True
        self._changed.release()
        observation = None
        try:
            observation = source.get(timeout=patience) if patience else source.get_nowait()
        except queue.Empty:
            pass
        finally:
            self._changed.acquire()
            self._reading = False
            if observation is not None:
                self._waiting[observation.action_id].append(observation)
            self._changed.notify_all()


_routers: weakref.WeakKeyDictionary[Any, Router] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def router_of(source: queue.Queue[Any]) -> Router:
    """The one router of a queue."""
    with _lock:
        return _routers.setdefault(source, Router())
