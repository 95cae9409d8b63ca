"""What the standard library does after each fork, left out where it is of no use.

It makes new locks and forgets threads: other threads may have held the ones, and are not in
the child. Where there are none, that only touches a hundred pages, which the child then
has to copy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

_MODULES = ("threading", "random", "logging")
_useless = False


def load() -> None:
    """Import what would do that, before anything else does, and have it ask here first."""
    register = os.register_at_fork

    def register_where_of_use(**hooks: Callable[[], object]) -> None:
        register(**{when: _where_of_use(hook) for when, hook in hooks.items()})

    os.register_at_fork = register_where_of_use  # type: ignore[assignment]
    try:
        for name in _MODULES:
            importlib.import_module(name)
    finally:
        os.register_at_fork = register


def _where_of_use(hook: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        if not _useless:
            hook()

    return call


def leave_out() -> None:
    """As the zygote: have nothing done from now on, unless there are other threads."""
    global _useless
    import threading

    _useless = threading.active_count() == 1


def catch_up() -> None:
    """As a worker: have it done from now on, and what is of use now."""
    global _useless
    import random
    import threading

    _useless = False
    # Forked processes would all draw the same numbers.
    random.seed()
    main: object = threading.main_thread()
    vars(main)["_native_id"] = threading.get_native_id()
