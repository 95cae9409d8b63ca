"""The embedded runtime's program: serves its client, and ends with it.

Standard input is the lifeline: one line of JSON (see `mentis_pool.runtime.local`),
then nothing until its end, which means "stop now". A pidfd of the client says
so too, since a forked child of the client would keep the pipe open.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable

from mentis_pool.runtime import program


def main() -> None:
    """Run until the client is gone."""
    config = json.loads(sys.stdin.readline())
    directory, client = config["directory"], config["client"]
    program.lock(directory)

    def watch(stop: Callable[[], None]) -> bool:
        import asyncio

        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), stop)
        if hasattr(os, "pidfd_open"):
            loop.add_reader(os.pidfd_open(client), stop)
        return os.getppid() == int(client)

    # First of all, so that it warms up on another core while this one imports the server.
    with program.zygote(
        directory, config["environment"], config["sys_path"], config["preload"]
    ) as zygote:
        from mentis_pool.runtime.server import server

        token = config["token"]
        program.run(
            zygote,
            directory,
            socket.socket(fileno=config["listener"]),
            lambda supervisor: server(supervisor, token=token, loopback=token is not None),
            watch,
        )


if __name__ == "__main__":
    main()
