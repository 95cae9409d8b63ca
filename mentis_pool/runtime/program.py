"""What every runtime program does: make its directory, start the zygote, serve, leave nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

    from mentis_pool.runtime.groups import Groups
    from mentis_pool.runtime.standing import Zygote
    from mentis_pool.runtime.supervisor import Supervisor

HOPELESS = 78
"""What one exits with that has said what to do, and another of which would fare no better
(EX_CONFIG of sysexits.h)."""
_SWEEP_AGE = 60.0
"""Seconds: a directory younger than this may be about to be locked."""


def prefix() -> str:
    """How the names of runtimes' directories begin, for this user."""
    return f"mentis-{os.getuid()}-"


def socket_in(directory: str) -> str:
    """Where an embedded runtime listens."""
    return os.path.join(directory, "socket")


@contextlib.contextmanager
def own_directory(path: str) -> Iterator[None]:
    """Make this program's directory; afterwards it is gone.

    Raises:
        OSError: it cannot be made, and what to do.
    """
    import fcntl

    try:
        os.mkdir(path, 0o700)
    except OSError as exc:
        raise OSError(
            f"no directory for the runtime can be made in {os.path.dirname(path)}: {exc}; "
            "set TMPDIR to a directory that can be written"
        ) from exc
    try:
        # Until this process ends, however it does: who finds it unlocked may sweep it.
        fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_SH)
        yield
    finally:
        from mentis_pool.runtime import isolation

        isolation.remove(path)


def sweep(base: str) -> None:
    """Remove the directories of runtimes that were killed and whose client did not remove them.

    It was killed as well, or there was none, as a served runtime has none.
    """
    import fcntl

    from mentis_pool.runtime import isolation

    for entry in os.scandir(base):
        if not entry.name.startswith(prefix()) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _SWEEP_AGE:
                continue
            lock = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            isolation.remove(entry.path)
        except OSError:
            pass  # somebody lives there, or removes it at the same time
        finally:
            os.close(lock)


def run(
    zygote: Zygote,
    groups: Groups,
    directory: str,
    listener: socket.socket,
    make_server: Callable[[Supervisor], uvicorn.Server],
    watch: Callable[[Callable[[], None]], bool],
    most: int | None = None,
) -> int:
    """Serve until something says stop.

    Args:
        zygote: as it was started.
        groups: to be settled.
        directory: where the sandboxes' directories go.
        listener: where clients come.
        make_server: of a supervisor.
        watch: called on the event loop with what stops it; False where it is not
            to begin.
        most: sandboxes at most; None for no limit.

    Returns:
        What to exit with: 0 where it was told to stop; otherwise it has said on stderr
        why it could not go on.

    Raises:
        NoIsolation: the isolation that was asked for cannot be had.
    """
    import asyncio

    import msgspec

    from mentis_pool.runtime import posix
    from mentis_pool.runtime.supervisor import Supervisor
    from mentis_pool.spinning import Selector

    sweep(os.path.dirname(directory))
    # Each sandbox takes a handful of descriptors here.
    posix.open_more()
    standing = zygote.stand()
    # While it warms up.
    standing = msgspec.structs.replace(standing, groups=groups.settle())
    why = ""
    code = 0

    async def serve() -> None:
        def stop(reason: str = "") -> None:
            nonlocal why
            why = why or ("" if serving.should_exit else reason)
            serving.should_exit = True
            serving.force_exit = True

        supervisor = Supervisor(zygote.socket, directory, stop, standing, groups, most)
        serving = make_server(supervisor)
        if not watch(stop):
            return
        try:
            await serving.serve([listener])
        finally:
            supervisor.close()
        if why:
            nonlocal code
            code = HOPELESS if supervisor.hopeless else 1

    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:
            runner.run(serve())
    else:
        asyncio.run(serve())
    if why:
        print(why, file=sys.stderr, flush=True)
    return code
