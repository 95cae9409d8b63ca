"""Start the embedded runtime, connect to it, hold its lifeline, stop it.

Used by the client. The runtime listens on a Unix socket in a directory that
only this user may enter. This process listens first and hands the socket down,
so a connection waits for the runtime and is reset if that dies: there is
nothing to poll for.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import tenacity

from mentis_pool.errors import RuntimeUnavailable
from mentis_pool.runtime import isolation, program
from mentis_pool.runtime.action import signal_name

_RUNTIME = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from mentis_pool.runtime.__main__ import main\n"
    "main()\n"
)
_SWEEP_AGE = 60.0
"""Seconds: a directory younger than this may be about to get its owner."""

_PATIENCE = 5.0
"""Seconds within which a runtime's directory can be removed; otherwise it is swept later."""


class LocalRuntime:
    """One embedded runtime: its process, its directory, its lifeline.

    Args:
        preload: modules that the zygote imports.
        threads: how many threads BLAS and OpenMP may start in a sandbox.
        token: None to be reached by `connect` alone. Otherwise it listens on TCP,
            on loopback, at `url`, for whoever has this token.

    Raises:
        RuntimeUnavailable: it cannot be started here, and why.
    """

    def __init__(self, preload: list[str], threads: int, token: str | None = None) -> None:
        if sys.platform == "win32":
            raise RuntimeUnavailable(
                "the embedded runtime needs fork(), which Windows has not: give the address "
                "of a runtime on another machine, SandboxExecutor(runtime='http://…')"
            )
        where = base()
        sweep(where)
        self._directory, self._lock = new_directory(where)
        self._path = os.path.join(self._directory, "socket")
        # Without a name: it can be read when the runtime has removed the directory.
        self._log = tempfile.TemporaryFile()
        try:
            self._process = self._start(preload, threads, token)
        except OSError as exc:
            self._release()
            raise RuntimeUnavailable(
                f"the embedded runtime cannot be started with {sys.executable!r}: {exc}"
            ) from exc

    def _start(
        self, preload: list[str], threads: int, token: str | None
    ) -> subprocess.Popen[bytes]:
        path, here = search_path(), working_directory()
        environment = isolation.environment(os.environ, threads)
        with socket.socket(socket.AF_UNIX if token is None else socket.AF_INET) as listener:
            listener.bind(self._path if token is None else ("127.0.0.1", 0))
            listener.listen(16)
            self._address = listener.getsockname()
            process = subprocess.Popen(
                [sys.executable, "-c", _RUNTIME, json.dumps(path)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                cwd=self._directory,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the client alone
            )
            config = {
                "client": os.getpid(),
                "directory": self._directory,
                "listener": listener.fileno(),
                "environment": environment,
                # Cells find their own files first, as a script does; and what lies beside them
                # last, where sys.path has the directory of a script that is elsewhere.
                "sys_path": ["", *path, *([] if here is None or here in path else [here])],
                "preload": preload,
                "token": token,
            }
            self._lifeline = process.stdin
            assert self._lifeline is not None
            try:
                self._lifeline.write(json.dumps(config).encode() + b"\n")
                self._lifeline.flush()
            except BrokenPipeError:
                pass  # it died at once; whoever connects hears of it
        return process

    @property
    def pid(self) -> int:
        """The process that serves."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens, when it was given a token."""
        return f"http://127.0.0.1:{self._address[1]}"

    def connect(self) -> socket.socket:
        """A connection to it; the other end answers when it is ready, or resets it.

        Raises:
            RuntimeUnavailable: it is gone, with its last words.
        """
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path)
        except OSError as exc:
            sock.close()
            raise RuntimeUnavailable(self.last_words()) from exc
        return sock

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
        if code is not None and code < 0:
            return f"the embedded runtime {ended}"
        return (
            f"the embedded runtime {ended} without a word; see what this says: "
            f"{sys.executable} -c 'import mentis_pool.runtime.server, mentis_pool.runtime.zygote'"
        )

    def stop(self) -> None:
        """End it, with all its sandboxes, and wait for that; its directory goes as well."""
        assert self._lifeline is not None
        try:
            # A word, not only the end: a forked child of this process may hold the pipe open.
            if not self._lifeline.closed:
                self._lifeline.write(b"stop\n")
            self._lifeline.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        os.close(self._lock)
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


def new_directory(base: str) -> tuple[str, int]:
    """A new directory for a runtime, and the descriptor that holds its lock.

    Raises:
        RuntimeUnavailable: it cannot be made.
    """
    try:
        directory = tempfile.mkdtemp(prefix=_prefix(), dir=base)
        return directory, program.lock(directory)
    except OSError as exc:
        raise RuntimeUnavailable(
            f"no directory for the runtime can be made in {base}: {exc}; "
            "set TMPDIR to a directory that can be written"
        ) from exc


def base() -> str:
    """Where the directory goes; a socket's path has room for about 100 bytes (unix(7))."""
    directory = tempfile.gettempdir()
    return directory if len(os.fsencode(directory)) < 60 else "/tmp"


def _prefix() -> str:
    return f"mentis-pool-{os.getuid()}-"


def sweep(base: str) -> None:
    """Remove the directories of runtimes that are gone, as are their clients.

    Both hold a lock on theirs while they live, however they end.
    """
    for entry in os.scandir(base):
        if not entry.name.startswith(_prefix()) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _SWEEP_AGE:
                continue
            lock = os.open(os.path.join(entry.path, "lock"), os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            isolation.remove(entry.path)
        except OSError:
            pass  # somebody lives there, or removes it at the same time
        finally:
            os.close(lock)
