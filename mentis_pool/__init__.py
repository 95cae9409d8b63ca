"""concurrent.futures for code sandboxes: submit cells of Python, get futures.

::

    from mentis_pool import SandboxExecutor

    with SandboxExecutor(max_workers=4) as executor:
        print(executor.submit("1 + 1").result().value)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mentis_pool._version import __version__

if TYPE_CHECKING:
    from mentis_pool.errors import (
        BrokenSandboxPool as BrokenSandboxPool,
    )
    from mentis_pool.errors import (
        CellError as CellError,
    )
    from mentis_pool.errors import (
        CellTimeout as CellTimeout,
    )
    from mentis_pool.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from mentis_pool.errors import (
        IsolationWarning as IsolationWarning,
    )
    from mentis_pool.errors import (
        MentisPoolError as MentisPoolError,
    )
    from mentis_pool.errors import (
        OutcomeUnknown as OutcomeUnknown,
    )
    from mentis_pool.errors import (
        PayloadError as PayloadError,
    )
    from mentis_pool.errors import (
        ProtocolError as ProtocolError,
    )
    from mentis_pool.errors import (
        QueueFull as QueueFull,
    )
    from mentis_pool.errors import (
        QueueTimeout as QueueTimeout,
    )
    from mentis_pool.errors import (
        RuntimeRejected as RuntimeRejected,
    )
    from mentis_pool.errors import (
        RuntimeUnavailable as RuntimeUnavailable,
    )
    from mentis_pool.errors import (
        SandboxDied as SandboxDied,
    )
    from mentis_pool.errors import (
        SandboxError as SandboxError,
    )
    from mentis_pool.errors import (
        StateLost as StateLost,
    )
    from mentis_pool.executor import SandboxExecutor as SandboxExecutor
    from mentis_pool.future import CallFuture as CallFuture
    from mentis_pool.future import CellFuture as CellFuture
    from mentis_pool.observations import (
        Cut as Cut,
    )
    from mentis_pool.observations import (
        Display as Display,
    )
    from mentis_pool.observations import (
        End as End,
    )
    from mentis_pool.observations import (
        Error as Error,
    )
    from mentis_pool.observations import (
        Part as Part,
    )
    from mentis_pool.observations import (
        Result as Result,
    )
    from mentis_pool.observations import (
        Start as Start,
    )
    from mentis_pool.observations import (
        Stream as Stream,
    )
    from mentis_pool.results import CellResult as CellResult
    from mentis_pool.results import Opaque as Opaque
    from mentis_pool.results import Usage as Usage
    from mentis_pool.sandbox import ConcurrentTask as ConcurrentTask
    from mentis_pool.sandbox import MentisSandbox as MentisSandbox
    from mentis_pool.sandbox import Space as Space
    from mentis_pool.sandbox import SpaceManager as SpaceManager
    from mentis_pool.sandbox import sandbox_session as sandbox_session
    from mentis_pool.session import Session as Session
    from mentis_pool.walls import Wall as Wall

_HOME = {
    **dict.fromkeys(
        (
            "BrokenSandboxPool",
            "CellError",
            "CellTimeout",
            "DeadlineExceeded",
            "IsolationWarning",
            "MentisPoolError",
            "OutcomeUnknown",
            "PayloadError",
            "ProtocolError",
            "QueueFull",
            "QueueTimeout",
            "RuntimeRejected",
            "RuntimeUnavailable",
            "SandboxDied",
            "SandboxError",
            "StateLost",
        ),
        "errors",
    ),
    "SandboxExecutor": "executor",
    **dict.fromkeys(("CallFuture", "CellFuture"), "future"),
    "Session": "session",
    "Wall": "walls",
    **dict.fromkeys(
        ("Cut", "Display", "End", "Error", "Part", "Result", "Start", "Stream"), "observations"
    ),
    **dict.fromkeys(("CellResult", "Opaque", "Usage"), "results"),
    **dict.fromkeys(
        ("ConcurrentTask", "MentisSandbox", "Space", "SpaceManager", "sandbox_session"), "sandbox"
    ),
}

__all__ = [
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the runtime's processes need none of them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
