"""What a sandbox may see and use: its environment and its directories.

This is the level "process": own process group, own directories, nothing
inherited but what is named here. It is no wall against hostile code.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping

from mentis_pool.text import printable, to_text

WORK, TEMP, HOME = "work", "tmp", "home"
_DIRECTORIES = (WORK, TEMP, HOME)

_KEPT = 64 * 1024
"""Bytes kept of what an initializer writes: the last."""

# The variables of the client's environment that cells get as well.
_PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

# Each of these starts a thread per CPU unless told otherwise, in every sandbox.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)


def environment(given: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment of the zygote, from the client's.

    Args:
        given: the client's environment.
        threads: how many threads BLAS and OpenMP may start; a number that the
            client's environment names itself goes before.
    """
    names = (*_PASSED, *_THREADS)
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONIOENCODING": "utf-8:surrogatepass",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **dict.fromkeys(_THREADS, str(threads)),
        **{name: given[name] for name in names if name in given},
    }


def sandbox_environment(directory: str) -> dict[str, str]:
    """What the environment of one sandbox has besides: where its files go."""
    return {
        "HOME": os.path.join(directory, HOME),
        "TMPDIR": os.path.join(directory, TEMP),
        "PWD": os.path.join(directory, WORK),
    }


def prepare(directory: str) -> None:
    """Make the directories of a sandbox, empty: work (where cells begin), tmp and home."""
    for name in _DIRECTORIES:
        os.makedirs(os.path.join(directory, name), mode=0o700)


def take_initializer_output(fd: int) -> str:
    """Read what the initializer wrote in this file, and close it: the end of the text."""
    try:
        size = os.fstat(fd).st_size
        written = os.pread(fd, _KEPT, max(0, size - _KEPT))
    except OSError:  # it closed it, and may have put something else there
        return ""
    os.close(fd)
    return printable(to_text(written))


def empty(directory: str) -> None:
    """Remove all that was left in the directories of a sandbox.

    Raises:
        OSError: something cannot be removed.
    """
    for name in os.listdir(directory):
        if name not in _DIRECTORIES:
            remove(os.path.join(directory, name))
    for name in _DIRECTORIES:
        path = os.path.join(directory, name)
        if _is_directory(path) and not os.listdir(path):
            continue
        remove(path)
        os.mkdir(path, mode=0o700)


def remove(path: str) -> None:
    """Remove a tree, however deep it is and whatever its permissions are.

    Raises:
        OSError: something is left.
    """
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    except (OSError, RecursionError):
        # A directory without permissions, or one too deep for rmtree before Python 3.13.
        subprocess.run(["chmod", "-R", "u+rwx", path], check=False, capture_output=True)
        done = subprocess.run(["rm", "-rf", path], check=False, capture_output=True)
        if os.path.lexists(path):
            reason = done.stderr.decode(errors="replace").strip()
            raise OSError(f"cannot remove {path}: {reason}") from None


def _is_directory(path: str) -> bool:
    """One as it was made, not a link to one: what a cell puts in its place is not followed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(mode) and stat.S_IMODE(mode) == 0o700
