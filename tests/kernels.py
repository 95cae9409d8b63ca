"""A warm process that forks IPython shells, one for each connection to its Unix socket.

``python kernels.py SOCKET [COLORS]``. A shell says its pid, then answers each line
``{"code"}`` with a line ``{"stdout", "stderr", "error"}``. Standard input is the
lifeline: at its end the process ends, and all shells with it.
"""

import contextlib
import io
import json
import os
import select
import signal
import socket
import sys

import IPython
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


def serve(path, colors="Linux"):
    if IPython.version_info[0] >= 9:
        colors = colors.lower()
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config, colors=colors)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        shells = set()
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            shells -= ended()
            pid = os.fork()
            if pid == 0:
                listener.close()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                run(shell, connection)
                os._exit(0)
            shells.add(pid)
            connection.close()
        for pid in shells:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def ended():
    """The shells that are gone: others may have their pids from now on."""
    pids = set()
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            pids.add(pid)
    return pids


def run(shell, connection):
    os.setpgid(0, 0)
    file = connection.makefile("rw", encoding="utf-8")
    print(json.dumps({"pid": os.getpid()}), file=file, flush=True)
    for line in file:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            done = shell.run_cell(json.loads(line)["code"], store_history=True)
        error = done.error_before_exec or done.error_in_exec
        try:
            value = None if error is None else str(error)
        except Exception:  # noqa: BLE001 - its __str__ is the cell's
            value = ""
        answer = {
            "stdout": stdout.getvalue(),
            "stderr": stderr.getvalue(),
            "error": value,
        }
        print(json.dumps(answer), file=file, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
