"""Attacks a pool, and looks at what is true meanwhile and afterwards.

``python -m benchmarks.attack_run LEVEL STATE`` attacks with all that must be held there, and
writes a line of JSON for each: its group and name, what went wrong (empty: it was held), seconds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import glob
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

from benchmarks import attack_catalog
from benchmarks.attack_catalog import MB, Attack
from mentis_pool import CallFuture, CellFuture, CellResult, SandboxExecutor

PATIENCE = 60.0
"""Seconds for what must come; far more than it takes."""
SLOW = 5.0
"""Seconds that a neighbour's cell may take at most while there is an attack."""
_BETWEEN = 0.05
"""Seconds between two cells of the neighbour."""
_GONE = 5.0
"""Seconds within which the processes of an attack must be gone."""

_NEIGHBOUR = """\
import time
n += 1
time.sleep(0.01)
[n, open('mine').read(), sum(range(1000))]
"""
_LATER = """\
import os, signal, sys, tempfile, threading
print('mine')
looked = {'blocked': len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), 'threads': threading.active_count()}
for path in (os.getcwd(), tempfile.gettempdir(), *(['/dev/shm'] if os.getppid() == 1 else [])):
    looked[path] = os.listdir(path)
if os.getppid() == 1:
    looked['processes'] = [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]
{name: found for name, found in looked.items() if found not in ([], 0)}
"""
"""Says what it finds in its sandbox that is not its own."""


class Pool:
    """A pool to be attacked, and a session in the same runtime, which is its neighbour.

    Args:
        max_output: as for the executor.
    """

    def __init__(self, level: str, state: str, max_output: int = 10 * MB) -> None:
        self._fresh = state == "fresh"
        self._attacks = 0
        self._neighbours = 0
        self._executor = SandboxExecutor(
            2,
            isolation=level,  # type: ignore[arg-type]
            state=state,  # type: ignore[arg-type]
            max_output=max_output,
        )
        self._session = self._executor.session()
        self._session.submit("n = 0\nprint(open('mine', 'w').write('mine'))").result(PATIENCE)
        self._executor.submit("1").result(PATIENCE)
        self._executor.submit(abs, -1).result(PATIENCE)
        time.sleep(0.2)
        self._processes = len(descendants())
        # What the wall shows in the directories of its own.
        self._clean = self._executor.submit(_LATER).result(PATIENCE).value

    @property
    def level(self) -> str:
        """At which sandboxes are."""
        standing = self._executor._engine.standing()
        return standing.level if standing else "process"

    def close(self) -> None:
        """End all."""
        self._executor.kill_workers()
        self._executor.shutdown()

    def attack(self, attack: Attack) -> str:
        """What was not as it must be; nothing where all was held."""
        begun = time.monotonic()
        future = self._submit(attack)
        wrong = self._meanwhile(future, begun + attack.within)
        if not wrong:
            with contextlib.suppress(BaseException):
                future.result()
            wrong = _outcome(attack, future) or self._later(attack.kind)
        return wrong or self._leftover()

    def _submit(self, attack: Attack) -> CellFuture | CallFuture:
        view = self._executor.options(timeout=attack.timeout)
        if attack.kind == "cell":
            return view.submit(attack.source)
        if attack.kind == "shell":
            return view.shell(attack.source)
        # Of no module that the sandbox could import: it travels by value.
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(attack.source, names)
        return view.submit(names["attack"])

    def _meanwhile(self, future: CellFuture | CallFuture, deadline: float) -> str:
        """A neighbour at work, again and again until the attack is over."""
        while True:
            over = future.done()
            begun = time.monotonic()
            self._neighbours += 1
            said = self._session.submit(_NEIGHBOUR).result(PATIENCE)
            took = time.monotonic() - begun
            if said.value != [self._neighbours, "mine", 499500] or said.stdout:
                return f"its neighbour gave {said!r}"
            if took > SLOW:
                return f"its neighbour took {took:.1f} s"
            if over:
                return ""
            if time.monotonic() > deadline:
                future.kill()
                return "it did not end in time"
            # Its neighbour is to be at hand, and no load for it.
            concurrent.futures.wait([future], _BETWEEN)

    def _later(self, kind: Literal["cell", "call", "shell"]) -> str:
        """What comes next in the same place finds its own, and nothing else."""
        if kind == "call" and self._executor.submit(divmod, 7, 2).result(PATIENCE) != (3, 1):
            return "the next call gave another result"
        later = self._executor.submit(_LATER).result(PATIENCE)
        if (later.stdout, later.stderr) != ("mine\n", ""):
            return f"the next cell's output was {later.stdout[:99]!r}, {later.stderr[:99]!r}"
        if self._fresh and later.value != self._clean:
            return f"the next cell found {later.value!r}"
        return ""

    def _leftover(self) -> str:
        if hasattr(sys, attack_catalog.MARK):
            delattr(sys, attack_catalog.MARK)
            return "code of the sandbox ran in the client"
        if not self._fresh:
            return ""
        deadline = time.monotonic() + _GONE
        while len(found := descendants()) > self._processes:
            if time.monotonic() > deadline:
                return f"there are {len(found)} processes, not {self._processes}"
            time.sleep(0.01)
        return ""


def _outcome(attack: Attack, future: CellFuture | CallFuture) -> str:
    """What of its outcome was not as it must be."""
    error = future.exception()
    result: Any = future.result() if error is None else getattr(error, "result", None)
    if error is not None and not isinstance(error, attack.raises):
        return f"it raised {error!r}"[:300]
    if error is None and attack.gives is None:
        return f"it gave {result!r}"[:300]
    check: Callable[[Any], bool] | None = attack.gives if error is None else attack.partial
    if check is not None and not check(result):
        return f"it gave {result!r}"[:300]
    if isinstance(result, CellResult):
        if not attack_catalog.harmless(result):
            return "what a terminal is shown of it would move its cursor"
        json.dumps(result.to_dict(), allow_nan=False).encode()
    return ""


def descendants() -> list[int]:
    """The processes below this one."""
    found: list[int] = []
    below = [os.getpid()]
    while below:
        below = [child for pid in below for child in _children(pid)]
        found += below
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            found += map(int, file.read().split())
    return found


def main(level: str, state: str, *names: str) -> None:
    """Run all attacks (or those that are named), each of which is told of as soon as it is over."""
    warnings.simplefilter("ignore")
    pool = Pool(level, state)
    for attack in attack_catalog.at(level, state):
        if names and attack.name not in names and attack.group not in names:
            continue
        begun = time.monotonic()
        try:
            wrong = pool.attack(attack)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, this attack brought it about
            wrong = f"{type(exc).__name__}: {exc}"
        took = round(time.monotonic() - begun, 2)
        print(json.dumps([attack.group, attack.name, wrong[:300], took]), flush=True)
        if wrong:
            pool.close()
            pool = Pool(level, state)
    pool.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
