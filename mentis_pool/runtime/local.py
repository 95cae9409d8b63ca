"""Start the embedded runtime, connect to it, hold its lifeline, stop it.

Used by the client. The runtime listens on a Unix socket in a directory that
only this user may enter, and says so on its lifeline, a pair of sockets; where
it dies instead, that ends: there is nothing to poll for.

The client makes no file, so it may be killed at any moment. It names the
directory; the runtime makes it, once it holds the lifeline and was told all, and
removes it at its end. Where the runtime is killed, the client removes it. Where
both are, at once, the next runtime sweeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

import tenacity

from mentis_pool.errors import RuntimeUnavailable
from mentis_pool.runtime import program
from mentis_pool.runtime.action import signal_name
from mentis_pool.runtime.isolation import environment as client_environment

_RUNTIME = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from mentis_pool.runtime.__main__ import main\n"
    "main()\n"
)
_LISTENS_WITHIN = 60.0
"""Seconds within which a runtime must listen; it takes a Python's start."""

_PATIENCE = 5.0
"""Seconds within which a runtime's directory can be removed; otherwise it is swept later."""


class LocalRuntime:
    """One embedded runtime: its process, its directory, its lifeline.

    Args:
        preload: modules that the zygote imports.
        threads: how many threads BLAS and OpenMP may start in a sandbox.
        token: None to be reached by `connect` alone. Otherwise it listens on TCP,
            on loopback, at `url`, for whoever has this token.
        isolation, network, expose: as for the executor.

    Raises:
        RuntimeUnavailable: it cannot be started here, and why.
    """

    def __init__(
        self,
        preload: list[str],
        threads: int,
        token: str | None = None,
        *,
        isolation: str = "auto",
        network: str = "none",
        expose: Sequence[str] = (),
    ) -> None:
        if sys.platform == "win32":
            hopeless = RuntimeUnavailable(
                "the embedded runtime needs fork(), which Windows has not: give the address "
                "of a runtime on another machine, SandboxExecutor(runtime='http://…')"
            )
            hopeless.passing = False
            raise hopeless
        self._directory = new_path()
        self._port: int | None = None
        path, here = search_path(), working_directory()
        environment = client_environment(os.environ, threads)
        with contextlib.ExitStack() as undo:
            try:
                self._log = undo.enter_context(_unnamed_file())
                self._lifeline, theirs = socket.socketpair()
                undo.enter_context(self._lifeline)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-c", _RUNTIME, json.dumps(path)],
                        stdin=theirs.fileno(),
                        stdout=self._log,
                        stderr=self._log,
                        env=environment,
                        cwd="/",  # no file there is taken for a module before it has its path
                        start_new_session=True,  # Ctrl-C is for the client alone
                    )
            except OSError as exc:
                raise RuntimeUnavailable(
                    f"the embedded runtime cannot be started with {sys.executable!r}: {exc}; "
                    "sys.executable must be a Python that can be run, and there must be room for "
                    "files (ulimit -n), processes (ulimit -u) and memory"
                ) from exc
            undo.pop_all()
        config = {
            "client": os.getpid(),
            "directory": self._directory,
            "environment": environment,
            # Cells find their own files first, as a script does; and what lies beside them
            # last, where sys.path has the directory of a script that is elsewhere.
            "sys_path": ["", *path, *([] if here is None or here in path else [here])],
            "preload": preload,
            "token": token,
            "asked": {
                "level": isolation,
                "network": network,
                "expose": list(expose),
                "home": os.path.expanduser("~"),
            },
        }
        try:
            self._lifeline.sendall(json.dumps(config).encode() + b"\n")
        except OSError:
            pass  # it died at once; whoever connects hears of it

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, when it was given a token; waits until it does.

        Raises:
            RuntimeUnavailable: it is gone, with its last words.
        """
        return f"http://127.0.0.1:{self._listens()}"

    def connect(self) -> socket.socket:
        """A connection to it; the other end answers when it is ready, or resets it.

        Raises:
            RuntimeUnavailable: it is gone, with its last words.
        """
        self._listens()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(program.socket_in(self._directory))
        except OSError as exc:
            sock.close()
            raise self.unavailable() from exc
        return sock

    def _listens(self) -> int:
        """Wait until it does; its port, or 0 where it has none."""
        port = self._port
        if port is None:
            self._lifeline.settimeout(_LISTENS_WITHIN)
            try:
                said = self._lifeline.recv(64)  # a line, written at once
            except OSError:
                said = b""
            if not said:
                raise self.unavailable()
            port = self._port = int(said)
        return port

    def last_words(self, patience: float = 5.0) -> str:
        """Why it ended, in its own words; waits for its end so many seconds."""
        try:
            code: int | None = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        self._log.seek(0)
        words = self._log.read().decode(errors="replace")[-4000:].strip()
        ended = "did not answer" if code is None else _ended(code)
        if words:
            return f"the embedded runtime {ended}; its last words:\n{words}"
        return f"the embedded runtime {ended}" + (
            "" if code is None or code < 0 else " without a word"
        )

    def unavailable(self) -> RuntimeUnavailable:
        """The error for one that cannot be had: its last words, and what to do."""
        words = self.last_words()
        code = self._process.returncode
        if code != program.HOPELESS:
            words += ("\n" if "\n" in words else "; ") + _remedy(code)
        error = RuntimeUnavailable(words)
        error.passing = code != program.HOPELESS
        return error

    def stop(self, patience: float = 10.0) -> None:
        """End it, with all its sandboxes, and wait for that; its directory goes as well.

        Args:
            patience: seconds that it has to end by itself.
        """
        try:
            # Not only closed: a forked child of this process may hold it open.
            self._lifeline.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
        self._lifeline.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        self._log.close()
        # Where it was killed its sandboxes are on their way out, and still write there.
        gone = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda left: left),
            stop=tenacity.stop_after_delay(_PATIENCE),
            wait=tenacity.wait_fixed(0.02),
            retry_error_callback=lambda _: None,
        )
        gone(self._remove)

    def _remove(self) -> bool:
        """Remove its directory; whether something is left."""
        shutil.rmtree(self._directory, ignore_errors=True)
        return os.path.lexists(self._directory)


def _remedy(code: int | None) -> str:
    """What to do about a runtime that ended so, or that did not answer."""
    if code is None:
        return "this machine may be too busy: try it again, or with fewer workers"
    if code == -signal.SIGKILL:
        return (
            "who did not kill it has too little memory (see the kernel's log, dmesg): "
            "preload less, or take fewer workers"
        )
    return (
        f"see what this says: {sys.executable} "
        "-c 'import mentis_pool.runtime.server, mentis_pool.runtime.zygote'"
    )


def _ended(code: int) -> str:
    """How a process ended, from what subprocess makes of its status."""
    return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def search_path() -> list[str]:
    """Where this process finds modules, for others that run elsewhere; its own directory at last."""
    entries = [os.path.abspath(entry) for entry in sys.path]
    try:
        return list(dict.fromkeys([*entries, os.getcwd()]))
    except FileNotFoundError:  # it was removed
        return entries


def working_directory() -> str | None:
    """Where this process is; None where that was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def new_path() -> str:
    """The path of a directory for a runtime that is to be: nothing is there yet."""
    return os.path.join(_base(), f"{program.prefix()}{os.urandom(6).hex()}")


def _base() -> str:
    """Where tempfile would make it, but without the file that it tries a directory with.

    A socket's path has room for about 100 bytes (unix(7)).
    """
    if tempfile.tempdir is not None:
        wanted = [os.fsdecode(tempfile.tempdir)]
    else:
        named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
        wanted = [*map(os.path.abspath, named), "/tmp", "/var/tmp", "/usr/tmp"]
    usable = [path for path in wanted if os.access(path, os.W_OK | os.X_OK)]
    # Where there is none, whoever makes the directory hears why.
    directory = (usable or wanted)[0]
    return directory if len(os.fsencode(directory)) < 60 else "/tmp"


def _unnamed_file() -> IO[bytes]:
    """A file that is nowhere on the disk."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("mentis-pool-log"), "w+b")
    return tempfile.TemporaryFile(dir=_base())
