"""``mentis-pool serve``: the runtime on TCP, for other programs and other machines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

from mentis_pool import walls
from mentis_pool.address import is_loopback
from mentis_pool.runtime import groups, isolation, local, program, standing

_MEMORY = 128 * 1024 * 1024
"""Bytes of memory that a sandbox is taken to need."""
_PER_CPU = 32
"""Sandboxes for each CPU."""


def most_sandboxes(memory: int, cpus: int) -> int:
    """How many sandboxes a machine has room for: one for 128 MiB, 32 for each CPU, at least 1."""
    return max(1, min(memory // _MEMORY, cpus * _PER_CPU))


def refusal(host: str, token: str | None, insecure: bool, level: str = "auto") -> str | None:
    """Why the runtime is not served like this, or None; ``level`` of isolation is insisted on."""
    if not host:
        return "--host needs an address, such as 127.0.0.1"
    if is_loopback(host):
        return None
    if token is None:
        return f"--no-token is for loopback only: whoever reaches {host} could run code here"
    if not insecure and level != "bubblewrap":
        return (
            f"{host} is open to other machines, and whoever has the token could run code as your "
            "user: say --isolation bubblewrap, which insists on walls around the sandboxes, or "
            "serve on 127.0.0.1, or say --insecure"
        )
    return None


def serve(
    host: str,
    port: int,
    token: str | None,
    most: int | None,
    preload: list[str],
    asked: standing.Asked,
    linger: float,
) -> int:
    """Serve until a signal (SIGINT, SIGTERM) says stop.

    Args:
        host, port: where; port 0 takes one that is free.
        token: that clients must give; None where none is asked for.
        most: sandboxes at most; None for what the machine has room for.
        preload: modules that are imported once, for all cells.
        asked: how sandboxes are to be isolated.
        linger: seconds that the sandboxes of a client are kept to which the connection was lost.

    Returns:
        The exit code.

    Raises:
        OSError: the address cannot be had, or no directory.
        NoIsolation: nor that isolation.
    """
    cpus = local.cpus()
    if most is None:
        most = most_sandboxes(_memory(), cpus)
    listener = _listen(host, port)
    directory, sys_path = local.new_path(), ["", *local.search_path()]
    environment = isolation.environment(os.environ, 1)
    with (
        program.own_directory(directory),
        groups.Groups(os.path.basename(directory)) as control,
        standing.zygote(directory, environment, sys_path, preload, asked) as zygote,
    ):
        from mentis_pool.runtime.server import server

        def watch(stop: Callable[[], None]) -> bool:
            stands = zygote.stand()
            if asked.level == "auto" and stands.level != walls.LEVELS[0]:
                text = walls.warning(stands.level, stands.network, stands.reasons)
                print(f"mentis-pool: {text}", file=sys.stderr, flush=True)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
            _announce(host, listener.getsockname()[1], token)
            return True

        code = program.run(
            zygote,
            control,
            directory,
            listener,
            lambda supervisor: server(
                supervisor, token=token, loopback=is_loopback(host), linger=linger
            ),
            watch,
            most,
        )
    return 1 if code else 0


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.listen(128)
    return listener


def _announce(host: str, port: int, token: str | None) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"mentis-pool serves at {url}")
    if token is not None:
        print(f"token: {token}")
        print(f"for clients that know no tokens: {url}/t/{token}")
    sys.stdout.flush()


def _memory() -> int:
    """Bytes of memory that this machine, or this container, has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(memory, int(file.read()))
    except (OSError, ValueError):
        return memory  # no limit, or no control groups
