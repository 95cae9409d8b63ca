"""The runtime program: starts the zygote, serves, and ends with its client.

Standard input is the lifeline: one line of JSON (see `mentis_pool.runtime.local`),
then nothing until its end, which means "stop now". A pidfd of the client says
so too, since a forked child of the client would keep the pipe open.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from typing import Any

_ZYGOTE = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from mentis_pool.runtime.zygote import main\n"
    "main(int(sys.argv[2]), json.loads(sys.argv[3]))\n"
)


def main() -> None:
    """Run until the client is gone."""
    config = json.loads(sys.stdin.readline())
    directory = config["directory"]
    # Held for as long as this process lives: who finds it free may sweep the directory.
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    # First of all, so that it warms up on another core while this one imports the server.
    ours, zygote = _start_zygote(config)
    try:
        _serve(config, ours)
    finally:
        ours.close()
        try:
            zygote.wait(5)
        except subprocess.TimeoutExpired:
            zygote.kill()
        from mentis_pool.runtime import isolation

        isolation.remove(directory)


def _start_zygote(config: dict[str, Any]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _ZYGOTE,
                json.dumps(config["sys_path"]),
                str(theirs.fileno()),
                json.dumps(config["preload"]),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=config["environment"],
            cwd=config["directory"],
        )
    return ours, process


def _serve(config: dict[str, Any], zygote: socket.socket) -> None:
    import asyncio
    import resource

    from mentis_pool.runtime.server import server
    from mentis_pool.runtime.supervisor import Supervisor

    # Each sandbox takes a handful of descriptors here; the sandboxes keep their own limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes no infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def serve() -> None:
        loop = asyncio.get_running_loop()

        def stop(reason: str) -> None:
            if reason and not serving.should_exit:
                print(reason, file=sys.stderr, flush=True)
            serving.should_exit = True
            serving.force_exit = True

        supervisor = Supervisor(zygote, config["directory"], stop)
        serving = server(supervisor)
        loop.add_reader(sys.stdin.fileno(), stop, "")
        if hasattr(os, "pidfd_open"):
            loop.add_reader(os.pidfd_open(config["client"]), stop, "")
        if os.getppid() != config["client"]:
            return
        try:
            await serving.serve([socket.socket(fileno=config["listener"])])
        finally:
            supervisor.close()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
