"""One call: rebuild it, call it, and send what it returns or raises. Runs in the sandbox."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mentis_pool.errors import PayloadError
from mentis_pool.observations import Error, Failure, Result
from mentis_pool.payload import unpack_call
from mentis_pool.pool_stream import PickledCall
from mentis_pool.returned import pack_exception, pack_value
from mentis_pool.runtime.cells import failure_of

PART = 1024 * 1024
"""Bytes of a result that go in one message."""


def call(work: PickledCall, part: Callable[[memoryview], None]) -> Result | Error:
    """Make the call.

    Args:
        part: called with each part of a large result but the last.

    What is no Exception (SystemExit, KeyboardInterrupt) is let through, as is what
    sends a result on its way out.
    """
    sys.path += [directory for directory in work.path if directory not in sys.path]
    try:
        function, args, kwargs = unpack_call(work.pickled)
    except Exception as exc:  # noqa: BLE001 - unpickling runs any code
        text = failure_of(exc)
        return Error("payload", f"the call cannot be rebuilt in the sandbox: {_told(text)}")
    except SystemExit as exc:
        return Error("payload", f"the call cannot be rebuilt in the sandbox: {exc!r}")
    try:
        value = [function(*each) for each in args] if work.chunk else function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - whatever it raises is its outcome
        return raised(work, exc, part)
    del function, args, kwargs
    try:
        result = _bounded("the result", pack_value(value), work)
    except PayloadError as exc:
        return Error("payload", str(exc))
    return Result(pickled=_last(result, part))


def raised(
    work: PickledCall, exc: BaseException, part: Callable[[memoryview], None]
) -> Result | Error:
    """What a call's exception is, as text and as bytes; ``part`` as for `call`."""
    failure = failure_of(exc)
    try:
        pickled = _bounded("the exception", pack_exception(exc), work)
    except PayloadError as wrong:
        return Error("payload", f"{wrong}\n\n{failure.traceback}")
    return Result(failure=failure, pickled=_last(pickled, part))


def _bounded(what: str, pickled: bytes, work: PickledCall) -> bytes:
    most = work.max_result
    if most is not None and len(pickled) > most:
        fewer = ", and a smaller chunksize makes less of it" if work.chunk else ""
        raise PayloadError(
            f"{what} has {len(pickled)} bytes, over the limit of {most}: "
            f"SandboxExecutor(max_result=…) allows more{fewer}; or write it to a file that lasts "
            "(not in the sandbox's own directories), and return its path"
        )
    return pickled


def _last(pickled: bytes, part: Callable[[memoryview], None]) -> bytes:
    """Hand out all parts but the last, which is given back."""
    at = 0
    whole = memoryview(pickled)
    while len(pickled) - at > PART:
        part(whole[at : at + PART])
        at += PART
    return pickled[at:] if at else pickled


def _told(failure: Failure) -> str:
    return f"{failure.name}: {failure.value}"
