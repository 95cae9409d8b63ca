"""From a queue that holds the observations of many actions, each task's own.

Whoever collects takes its own from the queue, and leaves all else there, in its
order, for whom it may concern: others that collect, and who reads the queue itself.

Many may wait at one queue, and what is put there wakes but one of those that wait
for it. So one of all that collect listens to the queue; it wakes the others, and
whoever would have been woken in its place::

    put ──not_empty──► the one that listens ──changed──► all others that collect
                                            ──not_empty──► who reads the queue itself
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import OrderedDict
from typing import Any

from mentis_pool.mentis_v1 import (
    STILL_RUNS,
    BaseObservation,
    EndObservation,
    ErrorObservation,
    ResultObservation,
)

_REMEMBERED = 4096
"""Actions that were collected, whose end has not come yet."""


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
    """Who collects from one queue. All of it happens with the queue's own lock held."""

    def __init__(self, lock: threading.Lock) -> None:
        self._changed = threading.Condition(lock)
        self._listening = False
        self._over: OrderedDict[str, None] = OrderedDict()
        """Actions whose result was collected: what else is said of them nobody waits for."""

    def collect(
        self, source: queue.Queue[Any], action_id: str, into: Collected, deadline: float
    ) -> None:
        """Add this action's observations, until one `ends` it or it is so late (monotonic)."""
        with source.mutex:
            while not into.complete:
                self._take(source, action_id, into)
                left = deadline - time.monotonic()
                if into.complete or left <= 0:
                    return
                self._wait(source, left)

    def _take(self, source: queue.Queue[Any], action_id: str, into: Collected) -> None:
        left = []
        for item in source.queue:
            if not isinstance(item, BaseObservation):
                left.append(item)
            elif item.action_id in self._over:
                if isinstance(item, EndObservation):
                    del self._over[item.action_id]
            elif item.action_id == action_id and not into.complete:
                into.append(item)
                if ends(item):
                    into.complete = True
                    self._remember(item)
            else:
                left.append(item)
        taken = len(source.queue) - len(left)
        if taken:
            source.queue.clear()
            source.queue.extend(left)
            source.not_full.notify(taken)

    def _remember(self, last: BaseObservation) -> None:
        if isinstance(last, EndObservation):
            return
        self._over[last.action_id] = None
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    def _wait(self, source: queue.Queue[Any], seconds: float) -> None:
        """Until something has come, or so long."""
        if self._listening:
            self._changed.wait(seconds)
            return
        self._listening = True
        try:
            source.not_empty.wait(seconds)
        finally:
            self._listening = False
            # One of them listens from now on, where this one does not.
            self._changed.notify_all()
            source.not_empty.notify()


_routers: weakref.WeakKeyDictionary[Any, Router] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def router_of(source: queue.Queue[Any]) -> Router:
    """The one router of a queue.

    Raises:
        TypeError: it is of a kind in which nothing can be left for others.
    """
    if not isinstance(source, queue.Queue):
        raise TypeError(f"a queue.Queue is needed to collect from, not {type(source).__name__}")
    with _lock:
        if source not in _routers:
            _routers[source] = Router(source.mutex)
        return _routers[source]
