"""The embedded runtime's program: serves its client, and ends with it.

Standard input is the lifeline, one of a pair of sockets. The client writes one line
of JSON there (see `mentis_pool.runtime.local`) and is answered with one, the port,
when it may connect; then comes nothing until the end, which means "stop now". A
pidfd of the client says so too, since a forked child of the client would keep the
other socket open.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from mentis_pool.runtime import posix, program, standing


def main() -> None:
    """Run until the client is gone."""
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return  # the client is gone before it has said all
    config = json.loads(line)
    directory, client, token = config["directory"], config["client"], config["token"]

    def watch(stop: Callable[[], None]) -> bool:
        import asyncio

        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), stop)
        if hasattr(os, "pidfd_open"):
            loop.add_reader(os.pidfd_open(client), stop)
        return os.getppid() == int(client)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(program.own_directory(directory))
        except OSError as exc:
            _give_up(exc)
        os.chdir(directory)
        after = stack.enter_context(contextlib.ExitStack())
        # First of all, so that it warms up on another core while this one imports the server.
        try:
            zygote = stack.enter_context(
                standing.zygote(
                    directory,
                    config["environment"],
                    config["sys_path"],
                    config["preload"],
                    standing.Asked(**config["asked"]),
                )
            )
        except standing.NoIsolation as exc:
            _give_up(exc)
        listener = stack.enter_context(_listen(directory, token, client))
        from mentis_pool.runtime.groups import Groups
        from mentis_pool.runtime.server import server

        # Removed when the zygote has ended, too.
        groups = after.enter_context(Groups(os.path.basename(directory)))

        try:
            code = program.run(
                zygote,
                groups,
                directory,
                listener,
                lambda supervisor: server(supervisor, token=token, loopback=token is not None),
                watch,
            )
        except standing.NoIsolation as exc:
            _give_up(exc)
    sys.exit(code)


def _give_up(why: Exception) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    sys.exit(program.HOPELESS)


def _listen(directory: str, token: str | None, client: int) -> socket.socket:
    """Listen, on TCP for whoever has the token or on the Unix socket for the client, and say so."""
    listener: socket.socket
    if token is None:
        listener = posix.Listener(program.socket_in(directory), client)
        port = 0
    else:
        listener = socket.socket(socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    listener.listen(16)
    try:
        os.write(sys.stdin.fileno(), b"%d\n" % port)
    except ConnectionError:
        pass  # the client is gone; `watch` sees that
    return listener


if __name__ == "__main__":
    main()
