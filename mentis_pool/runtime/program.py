"""What every runtime program does: start the zygote, serve, and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

    from mentis_pool.runtime.supervisor import Supervisor

_ZYGOTE = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from mentis_pool.runtime.zygote import main\n"
    "main(int(sys.argv[2]), json.loads(sys.argv[3]))\n"
)


@contextlib.contextmanager
def zygote(
    directory: str, environment: dict[str, str], sys_path: list[str], preload: list[str]
) -> Iterator[socket.socket]:
    """A zygote, and the socket to it; afterwards it is gone, and so is the directory."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _ZYGOTE,
                json.dumps(sys_path),
                str(theirs.fileno()),
                json.dumps(preload),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=environment,
            cwd=directory,
        )
    try:
        yield ours
    finally:
        ours.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        from mentis_pool.runtime import isolation

        isolation.remove(directory)


def run(
    zygote: socket.socket,
    directory: str,
    listener: socket.socket,
    make_server: Callable[[Supervisor], uvicorn.Server],
    watch: Callable[[Callable[[], None]], bool],
    most: int | None = None,
) -> str:
    """Serve until something says stop.

    Args:
        zygote: the socket to it.
        directory: where the sandboxes' directories go.
        listener: where clients come.
        make_server: of a supervisor.
        watch: called on the event loop with what stops it; False where it is not
            to begin.
        most: sandboxes at most; None for no limit.

    Returns:
        Why it could not go on; nothing where it was told to stop.
    """
    import asyncio
    import resource

    from mentis_pool.runtime.supervisor import Supervisor

    # Each sandbox takes a handful of descriptors here; the sandboxes keep their own limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes no infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    why = ""

    async def serve() -> None:
        def stop(reason: str = "") -> None:
            nonlocal why
            why = why or ("" if serving.should_exit else reason)
            serving.should_exit = True
            serving.force_exit = True

        supervisor = Supervisor(zygote, directory, stop, most)
        serving = make_server(supervisor)
        if not watch(stop):
            return
        try:
            await serving.serve([listener])
        finally:
            supervisor.close()

    asyncio.run(serve())
    if why:
        print(why, file=sys.stderr, flush=True)
    return why


def lock(directory: str) -> int:
    """Hold the directory's lock while this process lives: who finds it free may sweep it."""
    import fcntl

    descriptor = os.open(
        os.path.join(directory, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor
