"""Start the zygote at the level of isolation that was asked for, or at the strongest that can be had.

What can be had is known by trying: each zygote makes one sandbox and ends it, before it says
that it stands (see `mentis_pool.runtime.grounds`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mentis_pool import walls
from mentis_pool.pool_stream import Standing
from mentis_pool.runtime import bubblewrap, kernel, landlock

if TYPE_CHECKING:
    from mentis_pool.runtime.grounds import Plan

_ZYGOTE = (
    "import json, sys\n"
    "path, fd, log, plan, preload = map(json.loads, sys.argv[1:])\n"
    "sys.path[:] = path\n"
    "from mentis_pool.runtime import forks\n"
    "forks.load()\n"
    "from mentis_pool.runtime.zygote import main\n"
    "main(fd, log, plan, preload)\n"
)
_STANDS_WITHIN = 20.0
"""Seconds within which it is known whether a level of isolation can be had; it takes a Python's start."""


class Asked(NamedTuple):
    """How sandboxes are to be isolated, and what they need."""

    level: str = "auto"
    """One of `walls.LEVELS`, or "auto" for the strongest that can be had."""
    network: str = "none"
    expose: Sequence[str] = ()
    """Paths to be shown read-only, besides Python and what is imported from."""
    home: str = ""
    """Of the user: never shown."""


class NoIsolation(Exception):
    """The level that was asked for cannot be had; the message says what is missing."""


class Zygote:
    """A zygote at the strongest level of isolation that can be had, of those asked for.

    It is started at once, and gets warm while this process does something else; `stand` waits
    until it is known at which level.

    Raises:
        NoIsolation: none can be had.
    """

    def __init__(
        self,
        directory: str,
        environment: dict[str, str],
        sys_path: list[str],
        preload: list[str],
        asked: Asked,
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._sys_path = sys_path
        self._preload = preload
        self._asked = asked
        self._levels = list(walls.LEVELS) if asked.level == "auto" else [asked.level]
        self._reasons: list[str] = []
        self._stands: Standing | None = None
        self._start_next()

    def stand(self) -> Standing:
        """Wait until it is known that what it stands on holds; start a weaker one where it does not.

        Raises:
            NoIsolation: none is left.
        """
        while self._stands is None:
            self.socket.settimeout(_STANDS_WITHIN)
            try:
                stands = self.socket.recv(1)
            except OSError:
                stands = b""
            if stands:
                self.socket.settimeout(None)
                self._stands = Standing(
                    self._level, self._asked.network, self._reasons, kernel.landlock_version()
                )
                break
            self._end()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            self._errors.close()
            said = lines[-1] if lines else f"it ended with {self._process.returncode}"
            remedy = f"; {bubblewrap.remedy()}" if self._level == "bubblewrap" else ""
            self._reasons.append(f"{self._level}: {said}{remedy}")
            self._start_next()
        return self._stands

    def close(self) -> None:
        """End it."""
        self._end()
        self._errors.close()

    def _end(self) -> None:
        self.socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start_next(self) -> None:
        while self._levels:
            self._level = self._levels.pop(0)
            try:
                self._start()
                return
            except bubblewrap.NoWall as exc:
                self._reasons.append(f"{self._level}: {exc}")
        reasons = "; ".join(self._reasons)
        raise NoIsolation(
            f"isolation={self._asked.level!r} cannot be had here. {reasons} "
            "(see 'mentis-pool doctor')"
        )

    def _start(self) -> None:
        network = self._asked.network
        # Its own package first, which `sys_path` may not lead to.
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        wanted = bubblewrap.of_python(
            sys.executable,
            [sys.prefix, sys.base_prefix],
            [package, *filter(None, self._sys_path), *self._asked.expose],
        )
        its: bubblewrap.Wall | None = None
        shown: list[str] = []
        if self._level == "bubblewrap":
            its = bubblewrap.Wall(wanted, self._asked.home, network)
            shown = its.in_rooms
        elif self._level == "landlock":
            if kernel.landlock_version() == 0:
                raise bubblewrap.NoWall(landlock.MISSING)
            shown = bubblewrap.readable(wanted, self._asked.home, network)
        plan: Plan = {"level": self._level, "network": network, "shown": shown}
        self._errors = tempfile.TemporaryFile()
        self.socket, theirs = socket.socketpair()
        # Not 2 itself, which is another file there at first.
        log = os.dup(sys.stderr.fileno())
        fds = (theirs.fileno(), log)
        words = [self._sys_path, *fds, plan, self._preload]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        *(its.words if its else ()),
                        *(sys.executable, "-c", _ZYGOTE, *map(json.dumps, words)),
                    ],
                    pass_fds=[*fds, *(its.fds if its else ())],
                    preexec_fn=its.prepare if its else None,
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    env=self._environment,
                    cwd="/" if its else self._directory,
                    start_new_session=True,  # Ctrl-C is for this process alone
                )
            except (OSError, subprocess.SubprocessError) as exc:
                self.socket.close()
                self._errors.close()
                raise bubblewrap.NoWall(f"it cannot be started: {exc}") from exc
            finally:
                os.close(log)
                if its:
                    its.close()


@contextlib.contextmanager
def zygote(
    directory: str,
    environment: dict[str, str],
    sys_path: list[str],
    preload: list[str],
    asked: Asked,
) -> Iterator[Zygote]:
    """A zygote; afterwards it is gone."""
    its = Zygote(directory, environment, sys_path, preload, asked)
    try:
        yield its
    finally:
        its.close()
