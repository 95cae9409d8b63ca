"""What hostile or careless code does to its sandbox, as plain values: a cell, and what must follow.

Walls against the host and limits on what is used have tests of their own (`tests/attacks`);
here is the rest. Each is safe where a wall is missing: what multiplies is bounded, and what
would hit every process looks first whether it is alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mentis_pool import (
    CellError,
    CellResult,
    CellTimeout,
    MentisPoolError,
    PayloadError,
    ProtocolError,
    ResourceLimitExceeded,
    SandboxDied,
    SandboxError,
)
from mentis_pool.text import for_terminal
from mentis_pool.walls import LEVELS

Check = Callable[[Any], bool]

FRESH = ("fresh",)
"""In a process that is kept, what a cell leaves is there for the next, as documented."""
BOTH = ("fresh", "reuse")

MARK = "mentis_pool_attacked"
"""The attribute that code of a sandbox would set in `sys`, if it ran in the client."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        source: of a cell; of a call it defines ``attack()``, which is called.
        raises: exceptions that may be its outcome.
        gives: says of its value (of a cell, its `CellResult`) whether it is what must follow; None
            where it must raise.
        partial: says the same of the result that an exception of a cell has, where it has one.
        timeout: seconds that it may run.
        within: seconds from its submission until which its outcome must be there.
    """

    group: str
    name: str
    source: str
    raises: tuple[type[BaseException], ...] = ()
    gives: Check | None = None
    partial: Check | None = None
    kind: Literal["cell", "call", "shell"] = "cell"
    timeout: float = 20.0
    within: float = 15.0
    levels: tuple[str, ...] = LEVELS
    states: tuple[str, ...] = BOTH


def any_result(result: object) -> bool:
    return True


def value(expected: object) -> Check:
    return lambda result: type(result.value) is type(expected) and result.value == expected


def _opaque(result: CellResult) -> bool:
    return type(result.value).__name__ == "Opaque"


WHATEVER: dict[str, Any] = {"raises": (MentisPoolError,), "gives": any_result}
"""Its outcome is its own business; that there is one, and what is true afterwards, is not."""


def _group(group: str, attacks: dict[str, tuple[str, dict[str, Any]]]) -> list[Attack]:
    return [Attack(group, name, source, **must) for name, (source, must) in attacks.items()]


# ── endless ─────────────────────────────────────────────────────────────────

_ENDED: dict[str, Any] = {"raises": (CellTimeout,), "timeout": 0.2, "within": 6.0}

ENDLESS = _group(
    "endless",
    {
        "a loop": ("while True: pass", _ENDED),
        "the interrupt is ignored": (
            "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
            _ENDED,
        ),
        "every signal is ignored": (
            "import signal\n"
            "for number in range(1, 65):\n"
            "    try: signal.signal(number, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\n"
            "while True: pass",
            _ENDED,
        ),
        "every signal is blocked": (
            "import signal\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
            "while True: pass",
            _ENDED,
        ),
        "the interrupt is caught again and again": (
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            _ENDED,
        ),
        "in C, a sum": ("sum(range(10 ** 14))", _ENDED),
        "in C, a power": ("pow(7, 1 << 200_000, (1 << 200_000) - 1)", _ENDED),
        "in C, a regular expression": ("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", _ENDED),
        "in C, with the interpreter's lock held": (
            "import ctypes\nctypes.PyDLL(None).sleep(1000)",
            _ENDED,
        ),
        "asleep": ("import time\ntime.sleep(1000)", _ENDED),
        "stopped": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", _ENDED),
        "a lock that nobody gives back": (
            "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
            _ENDED,
        ),
        "a thread is waited for that does not end": (
            "import threading, time\n"
            "thread = threading.Thread(target=time.sleep, args=(1000,))\n"
            "thread.start()\nthread.join()",
            _ENDED,
        ),
        "a child in a session of its own is waited for": (
            "import subprocess\nsubprocess.run(['sleep', '1000'], start_new_session=True)",
            _ENDED,
        ),
        "a shell": ("!sleep 1000", _ENDED),
        "an await": ("import asyncio\nawait asyncio.sleep(1000)", _ENDED),
        "a pipe that nobody writes to": ("import os\nos.read(os.pipe()[0], 1)", _ENDED),
        "after all descriptors were blocked with what nobody reads": (
            "import os\nreader, writer = os.pipe()\nwhile True: os.write(writer, b'x' * 65536)",
            _ENDED,
        ),
        "the interrupt begins another loop": (
            "import signal\n"
            "def again(*_):\n    while True: pass\n"
            "signal.signal(signal.SIGINT, again)\nwhile True: pass",
            _ENDED,
        ),
        "it ends when it is interrupted, as if nothing were": (
            "try:\n    while True: pass\nexcept KeyboardInterrupt: pass\n1",
            _ENDED,
        ),
        "a finally without end": ("try:\n    1 / 0\nfinally:\n    while True: pass", _ENDED),
        "a shell command": ("trap '' INT TERM; while :; do :; done", {**_ENDED, "kind": "shell"}),
        "a call": ("def attack():\n    while True: pass", {**_ENDED, "kind": "call"}),
        "a call whose argument does not end in the sandbox": (
            "class Endless:\n"
            "    def __getstate__(self): return 1\n"
            "    def __setstate__(self, state):\n        while True: pass\n"
            "def attack(argument=Endless()): return 1",
            {**_ENDED, "kind": "call"},
        ),
    },
)

# ── exits ───────────────────────────────────────────────────────────────────

_DIES: dict[str, Any] = {"raises": (SandboxDied,)}
_RAISES: dict[str, Any] = {"raises": (CellError,)}

EXITS = _group(
    "exits",
    {
        "exit()": ("exit()", _RAISES),
        "sys.exit(3)": ("import sys\nsys.exit(3)", _RAISES),
        "sys.exit(object)": (
            "import sys\nclass A:\n    def __str__(self): sys.exit(self)\nsys.exit(A())",
            _RAISES,
        ),
        "an interrupt of its own": ("raise KeyboardInterrupt", _RAISES),
        "an interrupt from a thread": (
            "import _thread, time\n_thread.start_new_thread(_thread.interrupt_main, ())\n"
            "while True: time.sleep(0.01)",
            _RAISES,
        ),
        "GeneratorExit": ("raise GeneratorExit", _RAISES),
        "a bare BaseException": ("class A(BaseException): pass\nraise A", _RAISES),
        "StopIteration": ("raise StopIteration(1)", _RAISES),
        "os._exit(0)": ("import os\nos._exit(0)", _DIES),
        "os._exit(77)": ("import os\nos._exit(77)", _DIES),
        "os._exit in a thread": (
            "import os, threading, time\nthreading.Thread(target=os._exit, args=(1,)).start()\ntime.sleep(9)",
            _DIES,
        ),
        "os.abort()": ("import os\nos.abort()", _DIES),
        "it kills itself": ("import os\nos.kill(os.getpid(), 9)", _DIES),
        "it kills its process group": ("import os\nos.kill(0, 9)", _DIES),
        "SIGTERM": ("import signal\nsignal.raise_signal(15)", _DIES),
        "an alarm": (
            "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(9)",
            _DIES,
        ),
        "a real-time signal": ("import signal\nsignal.raise_signal(50)", _DIES),
        "a null pointer": ("import ctypes\nctypes.string_at(0)", _DIES),
        "its own memory is overwritten": (
            "import ctypes\nctypes.memset(id(None), 255, 64)\nNone",
            {"raises": (SandboxError,), "gives": any_result},
        ),
        "code that is none": (
            "def f(): pass\nf.__code__ = f.__code__.replace(co_code=bytes([100, 255] * 9), co_consts=())\nf()",
            {"raises": (SandboxDied, CellError), "gives": any_result},
        ),
        "the stack, without a limit": (
            "import sys\nsys.setrecursionlimit(50_000)\ndef f(): f()\nf()",
            {"raises": (SandboxDied, CellError)},
        ),
        "the stack, in C": (
            "import sys\nsys.setrecursionlimit(10 ** 9)\n"
            "x = []\nfor _ in range(100_000): x = [x]\nrepr(x)",
            {"raises": (SandboxDied, CellError), "gives": any_result},
        ),
        "another program in its place": ("import os\nos.execv('/bin/true', ['true'])", _DIES),
        "another program in its place, that talks": (
            "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo no more Python; exit 5'])",
            {"raises": (SandboxDied,), "partial": lambda r: r.stdout == "no more Python\n"},
        ),
        "a fork goes on in its place": (
            "import os\nif os.fork(): os._exit(3)\n1",
            {"raises": (SandboxDied,)},
        ),
        "a vfork's death": (
            "import ctypes\nctypes.CDLL(None).exit(4)",
            _DIES,
        ),
        "an exit at the end of a thread that outlives it": (
            "import os, threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.05), os._exit(9)), daemon=True).start()\n1",
            {"gives": value(1), "states": FRESH},
        ),
        "a call that exits": ("import os\ndef attack(): os._exit(1)", {**_DIES, "kind": "call"}),
        "a call that raises SystemExit": (
            "def attack(): raise SystemExit(3)",
            {"raises": (BaseException,), "kind": "call"},
        ),
        "a shell that is killed": (
            "kill -9 $$",
            {"gives": lambda r: r.exit_code == 137, "kind": "shell"},
        ),
        "a shell that kills its parent": ("kill -9 $PPID; sleep 9", {**_DIES, "kind": "shell"}),
    },
)

# ── descriptors ─────────────────────────────────────────────────────────────

SOCKETS = """\
import os, socket, stat, sys
from mentis_pool.observations import *
from mentis_pool.runtime import wire
def sockets(kind=socket.SOCK_STREAM):
    for fd in range(3, 1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                its = socket.socket(fileno=os.dup(fd))
                if its.type == kind: yield its
        except OSError: pass
def say(*messages):
    for its in sockets(): its.sendall(b''.join(map(wire.pack, messages)))
def number():
    frame = sys._getframe()
    while 'command' not in frame.f_locals: frame = frame.f_back
    return frame.f_locals['command'].number
"""
"""The beginning of cells that speak as their worker does."""

_BROKEN: dict[str, Any] = {"raises": (SandboxError,)}
_SAID: dict[str, Any] = {"raises": (SandboxError,), "gives": any_result}

DESCRIPTORS = _group(
    "descriptors",
    {
        "all are closed": ("import os\nos.closerange(0, 65536)", _BROKEN),
        "all are closed, and it goes on": (
            "import os, time\nos.closerange(0, 65536)\ntime.sleep(30)",
            _BROKEN,
        ),
        "the first three are closed": ("import os\nos.closerange(0, 3)\n5", {"gives": value(5)}),
        "all but the first three are closed": ("import os\nos.closerange(3, 65536)", _BROKEN),
        "all are another": (
            "import os\nnull = os.open('/dev/null', 2)\n"
            "for fd in range(0, 1024):\n    if fd != null: os.dup2(null, fd)",
            WHATEVER | {"timeout": 1.0},
        ),
        "garbage into each": (
            "import os\n"
            "for fd in range(0, 1024):\n"
            "    try: os.write(fd, b'\\xff' * 1000)\n"
            "    except OSError: pass",
            _BROKEN,
        ),
        "each is read": (
            "import os\n"
            "for fd in range(0, 1024):\n"
            "    try: os.set_blocking(fd, False); os.read(fd, 1 << 20)\n"
            "    except OSError: pass",
            WHATEVER,
        ),
        "each is made not to wait": (
            "import os\n"
            "for fd in range(0, 1024):\n"
            "    try: os.set_blocking(fd, False)\n"
            "    except OSError: pass\n"
            "x = ['y' * 100_000] * 50\n5",
            WHATEVER,
        ),
        "each socket is shut": (
            SOCKETS + "for kind in (1, 2, 5):\n"
            "    for its in sockets(kind):\n"
            "        try: its.shutdown(2)\n"
            "        except OSError: pass",
            _BROKEN,
        ),
        "what is to be run next is read": (
            SOCKETS + "for kind in (2, 5):\n"
            "    for its in sockets(kind):\n"
            "        try: its.recv(1 << 20, socket.MSG_DONTWAIT)\n"
            "        except OSError: pass\n1",
            {"gives": value(1)},
        ),
        "random frames": (
            SOCKETS + "import random\nchance = random.Random(1)\n"
            "for its in sockets(): its.sendall(chance.randbytes(100_000))",
            _BROKEN,
        ),
        "a frame of 4 GB is announced": (
            SOCKETS + "for its in sockets(): its.sendall(b'\\xff' * 4)",
            _BROKEN,
        ),
        "a frame is announced and never comes": (
            SOCKETS + "for its in sockets(): its.sendall((60 << 20).to_bytes(4, 'big'))",
            {"raises": (CellTimeout,), "timeout": 0.3},
        ),
        "part of a frame, and death": (
            SOCKETS + "for its in sockets(): its.sendall(wire.pack(Part(b'x' * 99))[:50])\n"
            "os._exit(3)",
            _DIES,
        ),
        "an empty frame": (SOCKETS + "for its in sockets(): its.sendall(bytes(4))", _BROKEN),
        "a frame of nothing but nesting": (
            SOCKETS + "for its in sockets():\n"
            "    its.sendall((1 << 20).to_bytes(4, 'big') + b'\\x91' * (1 << 20))",
            _BROKEN,
        ),
        "the end of its own run, before it": (
            SOCKETS + "say(wire.Done(number(), Result(value=b'\\x07'), End(0.0)))",
            {"gives": lambda r: r.value == 7, "raises": (SandboxError,), "states": FRESH},
        ),
        "the end of another run": (
            SOCKETS + "for n in range(50): say(wire.Done(number() + 1 + n, Result(), End(0.0)))",
            _BROKEN,
        ),
        "the end of its run, many times": (
            SOCKETS + "say(*[wire.Done(number(), Result(), End(0.0))] * 1000)",
            _SAID | {"states": FRESH},
        ),
        **{
            f"an error that is not its own: {kind}": (
                SOCKETS + f"say(wire.Done(number(), Error({kind!r}, 'lies'), End(0.0)))",
                _BROKEN,
            )
            for kind in ("timeout", "died", "cancelled", "rejected", "unreachable", "state")
        },
        "numbers that are none": (
            SOCKETS + "nan, inf = float('nan'), float('inf')\n"
            "say(Cut('displays', -2 ** 63), Cut('displays', 2 ** 64 - 1),\n"
            "    wire.Done(number(), Result(exit_code=-2 ** 63), End(nan, inf, -2 ** 63)))",
            WHATEVER | {"states": FRESH},
        ),
        "a value that is none": (
            SOCKETS + "say(wire.Done(number(), Result(value=b'\\xc7\\x00\\x03' * 99), End(0.0)))",
            {"raises": (ProtocolError,), "states": FRESH},
        ),
        "a value of 60 MB": (
            SOCKETS
            + "say(wire.Done(number(), Result(value=b'\\xdd\\x03\\x00\\x00\\x00' + b'\\x90' * (50 << 20)), End(0.0)))",
            {"raises": (ProtocolError,), "states": FRESH},
        ),
        "a value of nothing but nesting": (
            SOCKETS + "say(wire.Done(number(), Result(value=b'\\x91' * 1_000_000), End(0.0)))",
            {"raises": (ProtocolError,), "states": FRESH},
        ),
        "what an init says": (
            SOCKETS + "say(wire.Died(1, 9, 0.0, 0), wire.Retired(1), wire.Forked(1))",
            _BROKEN,
        ),
        "what a runtime says": (
            SOCKETS + "say(Start(0.0), Stream('stdout', b'forged'), End(0.0))",
            _BROKEN,
        ),
        "descriptors are sent along": (
            SOCKETS + "for its in sockets():\n"
            "    for _ in range(200): socket.send_fds(its, [wire.pack(wire.Idle())], [1] * 100)\n1",
            WHATEVER,
        ),
    },
)

# ── replaced ────────────────────────────────────────────────────────────────

_SPOILT: dict[str, Any] = {**WHATEVER, "states": FRESH}

REPLACED = _group(
    "replaced",
    {
        "sys.stdout is None": (
            "import sys\nsys.stdout = sys.stderr = sys.__stdout__ = None\n5",
            {"gives": value(5)},
        ),
        "sys.stdout raises": (
            "import sys\n"
            "class A:\n    def __getattr__(self, name): raise SystemExit(name)\n"
            "sys.stdout = sys.stderr = A()\n5",
            WHATEVER,
        ),
        "sys.stdout does not end": (
            "import sys\n"
            "class A:\n    def flush(self):\n        while True: pass\n"
            "sys.stdout = A()\n5",
            {"raises": (CellTimeout,), "timeout": 0.3},
        ),
        "sys.stdout is closed": (
            "import sys\nsys.stdout.close()\nsys.stderr.close()\n5",
            {"gives": value(5)},
        ),
        "sys.stdin is anything": ("import sys\nsys.stdin = 5\n5", {"gives": value(5)}),
        "builtins raise": (
            "import builtins\n"
            "def no(*a, **k): raise ZeroDivisionError\n"
            "for name in ('print', 'compile', 'exec', 'len', 'isinstance', 'open', 'getattr', 'repr'):\n"
            "    setattr(builtins, name, no)",
            _SPOILT,
        ),
        "there are no builtins": ("import builtins\nvars(builtins).clear()", _SPOILT),
        "__import__ is gone": ("import builtins\ndel builtins.__import__", _SPOILT),
        "exceptions are other classes": (
            "import builtins\nbuiltins.BaseException = builtins.Exception = int\n1 / 0",
            _SPOILT,
        ),
        "there are no modules": ("import sys\nsys.modules.clear()", _SPOILT),
        "modules are None": (
            "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
            _SPOILT,
        ),
        "signal handlers raise": (
            "import signal\n"
            "def no(*a): raise MemoryError\n"
            "for number in range(1, 65):\n"
            "    try: signal.signal(number, no)\n"
            "    except (OSError, ValueError): pass\n"
            "import os\nos.kill(os.getpid(), 10)",
            WHATEVER,
        ),
        "an audit hook that raises": (
            "import sys\ndef no(*a): raise ZeroDivisionError\nsys.addaudithook(no)",
            _SPOILT,
        ),
        "an audit hook that does not end": (
            "import sys\n"
            "def no(*a):\n    while True: pass\n"
            "sys.addaudithook(no)\nopen('/dev/null')",
            {"raises": (CellTimeout,), "timeout": 0.3},
        ),
        "a trace function that raises": (
            "import sys\n"
            "def no(*a): raise ZeroDivisionError\n"
            "frame = sys._getframe()\n"
            "while frame: frame.f_trace = no; frame = frame.f_back\n"
            "sys.settrace(no); sys.setprofile(no)",
            _SPOILT,
        ),
        "the recursion limit is small": (
            "import sys\ndepth, frame = 0, sys._getframe()\n"
            "while frame: depth, frame = depth + 1, frame.f_back\n"
            "sys.setrecursionlimit(depth + 5)",
            _SPOILT,
        ),
        "the wire": (
            "from mentis_pool.runtime import wire\nwire.pack = lambda message: b'\\xff' * 1000",
            {**_BROKEN, "states": FRESH},
        ),
        "the wire says nothing": (
            "from mentis_pool.runtime import wire\nwire.pack = lambda message: b''",
            {"raises": (CellTimeout,), "timeout": 0.3},
        ),
        "sockets": (
            "import socket\nsocket.socket.sendall = lambda *a: None",
            {**WHATEVER, "timeout": 0.5, "states": FRESH},
        ),
        "os": (
            "import os\nfor name in dir(os):\n"
            "    if name[0] != '_' and callable(getattr(os, name)): setattr(os, name, None)",
            _SPOILT,
        ),
        "IPython's shell": (
            "from IPython.core.interactiveshell import InteractiveShell\n"
            "for name in dir(InteractiveShell):\n"
            "    if name[:2] != '__':\n"
            "        try: setattr(type(get_ipython()), name, None)\n"
            "        except Exception: pass",
            _SPOILT,
        ),
        "the worker's own attributes": (
            "import sys\nframe = sys._getframe()\n"
            "while frame.f_code.co_name != '_obey': frame = frame.f_back\n"
            "vars(frame.f_locals['self']).clear()",
            _SPOILT,
        ),
        "what the callers' frames have": (
            "import sys\nframe = sys._getframe()\n"
            "while frame:\n    frame.f_globals.clear(); frame = frame.f_back",
            _SPOILT,
        ),
        "every attribute of every module": (
            "import sys\n"
            "for module in list(sys.modules.values()):\n"
            "    if getattr(module, '__name__', '').startswith(('mentis_pool', 'msgspec', 'IPython')):\n"
            "        for name in list(vars(module)): setattr(module, name, None)",
            _SPOILT,
        ),
        "hooks for what is not caught": (
            "import sys, threading\n"
            "def no(*a): raise SystemExit\n"
            "sys.excepthook = sys.unraisablehook = threading.excepthook = sys.displayhook = no\n"
            "class A:\n    def __del__(self): 1 / 0\n"
            "A()\n1 / 0",
            {**WHATEVER, "states": FRESH},
        ),
        "the garbage collector calls back": (
            "import gc\ndef no(*a): raise SystemExit\ngc.callbacks.append(no)\ngc.set_threshold(1)",
            _SPOILT,
        ),
        "events of the shell": (
            "def no(*a): raise SystemExit\n"
            "for name in ('pre_execute', 'post_execute', 'pre_run_cell', 'post_run_cell'):\n"
            "    get_ipython().events.register(name, no)",
            _SPOILT,
        ),
        "the namespace is gone": ("globals().clear()", WHATEVER),
        "the environment": (
            "import os\nos.environ.clear()\n5",
            {"gives": value(5), "states": FRESH},
        ),
    },
)

# ── outliving ───────────────────────────────────────────────────────────────

_LATER: dict[str, Any] = {"gives": value(1), "states": FRESH}
_LATE = "import sys, time\nwhile True:\n    print('late', flush=True)\n    print('late', file=sys.stderr, flush=True)\n    time.sleep(0.001)"

OUTLIVING = _group(
    "outliving",
    {
        "a child prints later": (
            f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_LATE!r}])\n1",
            _LATER,
        ),
        "a fork prints later": (f"import os\nif os.fork() == 0:\n    exec({_LATE!r})\n1", _LATER),
        "a daemon prints later": (
            "import os\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        import signal\n"
            "        for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
            f"        exec({_LATE!r})\n"
            "    os._exit(0)\n"
            "os.wait()\n1",
            _LATER,
        ),
        "a daemon speaks as the worker": (
            SOCKETS + "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    while True:\n"
            "        try: say(Display(Bundle({'text/plain': 'late'})), wire.Idle())\n"
            "        except OSError: pass\n1",
            {**WHATEVER, "states": FRESH},
        ),
        "a daemon closes all, and stays": (
            "import os, time\n"
            "if os.fork() == 0:\n"
            "    os.setsid(); os.closerange(0, 65536)\n"
            "    if os.fork() == 0: time.sleep(1000)\n"
            "    os._exit(0)\n1",
            _LATER,
        ),
        "a thread prints later": (
            f"import threading\nthreading.Thread(target=exec, args=({_LATE!r}, {{}})).start()\n1",
            _LATER,
        ),
        "a thread prints later, as a daemon": (
            f"import threading\nthreading.Thread(target=exec, args=({_LATE!r}, {{}}), daemon=True).start()\n1",
            _LATER,
        ),
        "a shell in the background": (
            "!(while :; do echo late; echo late >&2; done) &\n1",
            _LATER,
        ),
        "children that flee, one from the other": (
            "import os, time\n"
            "if os.fork() == 0:\n"
            "    for _ in range(300):\n"
            "        if os.fork(): os._exit(0)\n"
            "        os.setsid()\n"
            "    time.sleep(1000)\n1",
            _LATER,
        ),
        "twenty children": (
            "import subprocess\n"
            "for _ in range(20): subprocess.Popen(['sleep', '1000'], start_new_session=True)\n1",
            _LATER,
        ),
        "a stopped child": (
            "import os, signal, subprocess\n"
            "os.kill(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid, signal.SIGSTOP)\n1",
            _LATER,
        ),
        "a child writes files for ever": (
            "import os\n"
            "if os.fork() == 0:\n"
            "    os.setsid(); n = 0\n"
            "    while True:\n"
            "        n += 1\n"
            "        try:\n"
            "            os.makedirs(f'd{n % 50}', exist_ok=True); open(f'd{n % 50}/{n % 20}', 'w').close()\n"
            "        except OSError: pass\n1",
            _LATER,
        ),
        "an exit handler": (
            f"import atexit\natexit.register(exec, {_LATE!r}, {{}})\n1",
            _LATER,
        ),
        "a timer": (
            "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print('late', flush=True))\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\n1",
            _LATER,
        ),
        "an object that does not want to go": (
            "class A:\n    def __del__(self):\n        while True: pass\na = A()\na.a = a\n1",
            _LATER,
        ),
        "asyncio goes on": (
            "import asyncio\n"
            "async def late():\n"
            "    while True: print('late'); await asyncio.sleep(0)\n"
            "task = asyncio.ensure_future(late())\nawait asyncio.sleep(0.01)\n1",
            _LATER,
        ),
        "a process pool that is forgotten": (
            "from concurrent.futures import ProcessPoolExecutor\n"
            "pool = ProcessPoolExecutor(2)\npool.submit(pow, 2, 3).result()\n1",
            {**_LATER, "raises": (CellError,)},  # where semaphores cannot be had
        ),
        "a shell command leaves a child": (
            "(while :; do echo late; sleep 0.01; done) & setsid sleep 1000 & exit 0",
            {"gives": lambda r: r.exit_code == 0, "states": FRESH, "kind": "shell"},
        ),
    },
)

# ── killing ─────────────────────────────────────────────────────────────────

ALONE = (
    "import os, signal\n"
    "pids = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n"
    "assert os.getppid() == 1 and len(pids) < 10, 'there are others'\n"
)
"""The beginning of cells that would harm whoever is there."""
_WALLED: dict[str, Any] = {"levels": ("bubblewrap",)}

KILLING = _group(
    "killing",
    {
        "the parent": ("import os\nos.kill(os.getppid(), 9)\n1", WHATEVER),
        "the parent, with every signal": (
            "import os\n"
            "for number in (*range(1, 19), *range(23, 65)):\n"
            "    try: os.kill(os.getppid(), number)\n"
            "    except OSError: pass\n1",
            WHATEVER,
        ),
        "the parent is stopped": (
            ALONE + "os.kill(os.getppid(), signal.SIGSTOP)\n1",
            {**_WALLED, "gives": value(1)},
        ),
        "pid 1": (ALONE + "os.kill(1, 9)\n1", {**_WALLED, "gives": value(1)}),
        "every pid": (
            ALONE + "for pid in pids:\n    if pid != os.getpid(): os.kill(pid, 9)\n1",
            {**_WALLED, "gives": value(1)},
        ),
        "all at once": (
            ALONE + "try: os.kill(-1, 9)\nexcept OSError: pass\n1",
            {**_WALLED, "gives": value(1)},
        ),
        "all at once, again and again": (
            ALONE
            + "if os.fork() == 0:\n    while True:\n        try: os.kill(-1, 9)\n        except OSError: pass\n"
            "import time\ntime.sleep(5)",
            {**_WALLED, "raises": (SandboxDied,)},
        ),
        "pids that it does not see": (
            ALONE + "found = []\n"
            "for pid in range(2, 20_000):\n"
            "    if pid != os.getpid():\n"
            "        try: os.kill(pid, 0); found.append(pid)\n"
            "        except ProcessLookupError: pass\n"
            "found",
            {**_WALLED, "gives": value([])},
        ),
        "the worker is traced": (
            "import ctypes, os\n"
            "if os.fork() == 0: os._exit(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0)\n"
            "os.wait()[1]",
            {"gives": value(0), "levels": ("bubblewrap", "landlock"), "raises": (SandboxError,)},
        ),
        "its memory is protected from itself": (
            "import ctypes\nctypes.CDLL(None).munmap(ctypes.c_void_p(id(ctypes) & ~4095), 1 << 20)\n1",
            {"raises": (SandboxError,), "gives": any_result, "states": FRESH},
        ),
        "its own limits": (
            "import resource\n"
            "for name in ('NOFILE', 'FSIZE', 'DATA', 'STACK', 'NPROC', 'MEMLOCK'):\n"
            "    try: resource.setrlimit(getattr(resource, f'RLIMIT_{name}'), (0, 0))\n"
            "    except (OSError, ValueError): pass",
            _SPOILT,
        ),
    },
)

# ── floods ──────────────────────────────────────────────────────────────────

MB = 1 << 20


def _cut(result: CellResult) -> bool:
    """Whether the beginning and the end of at least 20 MB were kept."""
    return result.stdout_cut + result.stderr_cut >= 10 * MB and len(result.stdout) < 11 * MB


_FLOOD: dict[str, Any] = {"gives": _cut}
_SHOWN: dict[str, Any] = {"gives": lambda r: r.value == 1 and r.displays_cut > 0, "raises": ()}

FLOODS = _group(
    "floods",
    {
        "40 MB in lines": ("line = 'x' * 1023 + '\\n'\nfor _ in range(40_960): print(line, end='')", _FLOOD),
        "one line of 100 MB": ("print('x' * (100 << 20))", _FLOOD),
        "30 MB to stderr": (
            "import sys\nfor _ in range(30): sys.stderr.write('x' * (1 << 20))", _FLOOD,
        ),
        "30 MB in bytes that are no text": (
            "import os\nfor _ in range(480): os.write(1, b'\\xff' * 65536)", _FLOOD,
        ),
        "by threads at once": (
            "import os, threading\n"
            "threads = [threading.Thread(target=lambda: [os.write(1, b'x' * 65536) for _ in range(60)])"
            " for _ in range(8)]\n"
            "for each in threads: each.start()\nfor each in threads: each.join()",
            _FLOOD,
        ),
        "by children at once": (
            "import subprocess\n"
            "children = [subprocess.Popen('head -c 4000000 /dev/zero', shell=True) for _ in range(8)]\n"
            "for each in children: each.wait()",
            _FLOOD,
        ),
        "without end": (
            "import os\nwhile True: os.write(1, b'x' * 65536)",
            # The default limit of output is 1 GiB, which a quick machine reads in that time.
            {"raises": (CellTimeout, ResourceLimitExceeded), "timeout": 0.5},
        ),
        "empty lines without end": (
            "while True: print()", {"raises": (CellTimeout,), "timeout": 0.5},
        ),
        "by a shell": ("head -c 30000000 /dev/zero", {**_FLOOD, "kind": "shell"}),
        "50,000 displays": (
            "from IPython.display import display\n"
            "for _ in range(50_000): get_ipython().display_pub.publish({'text/plain': 'x'})\n1",
            _SHOWN,
        ),
        "displays of nothing": (
            "for _ in range(50_000): get_ipython().display_pub.publish({})\n1",
            {"gives": lambda r: r.value == 1 and len(r.displays) < 50_000},
        ),
        "displays of 20 MB": (
            "for _ in range(2): get_ipython().display_pub.publish({'text/html': 'x' * (20 << 20)})\n1",
            _SHOWN,
        ),
        "one display of 100 MB": (
            "get_ipython().display_pub.publish({'image/png': b'x' * (100 << 20)})\n1", _SHOWN,
        ),
        "a value with a form of 100 MB": (
            "class A:\n    def _repr_html_(self): return 'x' * (100 << 20)\nA()",
            {"gives": lambda r: _opaque(r) and r.displays_cut > 0},
        ),
        "updates that find nothing": (
            SOCKETS + "shown = [Display(Bundle({'text/plain': 'x'}), str(n)) for n in range(15_000)]\n"
            "say(*shown)\n"
            "say(*[Display(Bundle({'text/plain': 'x'}), 'no', True)] * 15_000)\n1",
            {"gives": value(1), "within": 5.0},
        ),
        "displays with names of 30 MB": (
            SOCKETS + "for _ in range(3): say(Display(Bundle({'x' * (30 << 20): ''})))\n1",
            {"gives": lambda r: r.value == 1 and sum(map(len, r.displays)) < 2, "raises": (SandboxError,)},
        ),
        "displays with ids of 30 MB": (
            SOCKETS + "for _ in range(3): say(Display(Bundle({}), 'x' * (30 << 20)))\n1",
            {"gives": lambda r: r.value == 1 and len(r.displays) < 2, "raises": (SandboxError,)},
        ),
        "frames that say nothing": (
            SOCKETS + "its = next(sockets())\n"
            "for _ in range(30): its.sendall(wire.pack(wire.Idle()) * 10_000)\n1",
            WHATEVER,
        ),
        "frames that say nothing, when it is interrupted": (
            SOCKETS + "import signal\nits = next(sockets())\n"
            "def idle(*a):\n"
            "    while True: its.sendall(wire.pack(wire.Idle()) * 10_000)\n"
            "signal.signal(signal.SIGINT, idle)\nwhile True: pass",
            {"raises": (CellTimeout, SandboxError), "timeout": 0.3},
        ),
        "frames that say nothing, by a child": (
            SOCKETS + "import time\nits = next(sockets())\n"
            "if os.fork() == 0:\n"
            "    while True: its.sendall(wire.pack(wire.Idle()) * 1000)\n"
            "time.sleep(0.1)\nos._exit(3)",
            _DIES,
        ),
        "parts of a result, of a cell": (
            SOCKETS + "for _ in range(40): say(Part(b'x' * (8 << 20)))",
            {"raises": (SandboxError, PayloadError)},
        ),
        "empty parts of a result": (
            SOCKETS + "def attack():\n"
            "    its = next(sockets())\n"
            "    for _ in range(400): its.sendall(wire.pack(Part(b'')) * 10_000)",
            {"raises": (SandboxError, PayloadError), "kind": "call"},
        ),
        "a traceback of 100 MB": (
            "raise ValueError('x' * (100 << 20))",
            {"raises": (CellError,), "partial": lambda r: len(str(r.error)) < 2 * MB},
        ),
    },
)  # fmt: skip

# ── objects that lie about themselves ───────────────────────────────────────

_SMALL: dict[str, Any] = {"gives": lambda r: _opaque(r) and len(r.text) < 2 * MB}


def _repr_is(body: str) -> str:
    return f"class A:\n    def __repr__(self):\n        {body}\nA()"


REPRS = _group(
    "reprs",
    {
        "hangs": (_repr_is("while True: pass"), {"raises": (CellTimeout,), "timeout": 0.2}),
        "raises": (_repr_is("1 / 0"), _SMALL),
        "exits": (_repr_is("raise SystemExit"), WHATEVER),
        "dies": (_repr_is("import os; os._exit(1)"), _DIES),
        "is no text": (_repr_is("return 5"), _SMALL),
        "is 100 MB": (_repr_is("return 'x' * (100 << 20)"), _SMALL),
        "is a text that lies": (
            "class S(str):\n"
            "    def __len__(self): return 1\n"
            "    def __getitem__(self, at): return self\n"
            "    def encode(self, *a): raise SystemExit\n"
            "    def isascii(self): return True\n"
            + _repr_is("return S('é' * (3 << 20))"),
            {"gives": lambda r: len(r.text or "") < 4 * MB, "raises": (MentisPoolError,)},
        ),
        "never ends to nest": (
            "x = []\nfor _ in range(100_000): x = [x]\nx",
            {"gives": _opaque, "raises": (CellError, SandboxDied)},
        ),
        "holds itself": ("x = {}\nx[1] = x\nx", {"gives": _opaque}),
        "has every attribute": (
            "class A:\n"
            "    def __getattr__(self, name): return lambda *a, **k: self\n"
            "    def __repr__(self): return 'a'\nA()",
            {"gives": _opaque},
        ),
        "forms that raise": (
            "class A:\n"
            "    def _repr_mimebundle_(self, **k): raise SystemExit\n"
            "    def _ipython_display_(self): 1 / 0\n"
            "    def _repr_html_(self): return 5\nA()",
            WHATEVER,
        ),
        "a display of itself without end": (
            "class A:\n    def _ipython_display_(self): display(self)\nA()",
            WHATEVER,
        ),
        "a class that lies": (
            "class A:\n    @property\n    def __class__(self): return int\nA()",
            {"gives": _opaque},
        ),
        "a metaclass that lies": (
            "class M(type):\n"
            "    def __eq__(cls, other): return True\n"
            "    def __hash__(cls): return hash(int)\n"
            "    def __instancecheck__(cls, other): return True\n"
            "    @property\n    def __mro__(cls): raise SystemExit\n"
            "class A(metaclass=M): pass\nA()",
            {"gives": _opaque, "raises": (CellError,)},
        ),
        "a class with a name of 10 MB": (
            "type('x' * (10 << 20), (), {})()",
            {"gives": lambda r: _opaque(r) and len(r.value.type_name) < 2000},
        ),
        "a number with more digits than can be shown": (
            "1 << 10_000_000",
            {"gives": any_result, "raises": (CellError,)},
        ),
        "a dict that changes": (
            "class A(dict):\n"
            "    def items(self): raise SystemExit\n"
            "    def __len__(self): return -1\n"
            "A(a=1)",
            WHATEVER,
        ),
        "an exception whose text hangs": (
            "class A(Exception):\n    def __str__(self):\n        while True: pass\nraise A",
            {"raises": (CellTimeout,), "timeout": 0.2},
        ),
        "an exception whose text raises": (
            "class A(Exception):\n    def __str__(self): raise SystemExit\nraise A", _RAISES,
        ),
        "an exception whose text is no text": (
            "class A(Exception):\n    def __str__(self): return 5\nraise A", _RAISES,
        ),
        "an exception with a name that moves the cursor": (
            "raise type('\\x1b[2J\\x00', (Exception,), {})('\\x1b]0;title\\x07')", _RAISES,
        ),
        "a syntax error that lies": (
            "e = SyntaxError('x')\n"
            "e.msg, e.text, e.lineno, e.offset, e.filename = object(), 'x' * (10 << 20), -1, 10 ** 9, 5\nraise e",
            _RAISES,
        ),
        "a chain of 5,000 exceptions": (
            "e = None\n"
            "for _ in range(5_000):\n"
            "    new = ValueError(); new.__cause__ = e; e = new\nraise e",
            {"raises": (CellError, SandboxDied)},
        ),
        "exceptions that are each other's cause": (
            "a, b = ValueError(), KeyError()\na.__cause__, b.__cause__ = b, a\nraise a", _RAISES,
        ),
        "a group within a group, 1,000 times": (
            "e = ValueError()\n"
            "for _ in range(1000): e = ExceptionGroup('x', [e])\nraise e",
            {"raises": (CellError, SandboxDied)},
        ),
        "an exception with notes of 100 MB": (
            "e = ValueError()\ne.__notes__ = ['x' * (100 << 20), 5, object()]\nraise e", _RAISES,
        ),
        "a call returns what hangs when pickled": (
            "class A:\n    def __reduce__(self):\n        while True: pass\n"
            "def attack(): return A()",
            {"raises": (CellTimeout,), "timeout": 0.3, "kind": "call"},
        ),
        "a call returns what exits when pickled": (
            "class A:\n    def __reduce__(self): raise SystemExit\ndef attack(): return A()",
            {"raises": (BaseException,), "kind": "call"},
        ),
        "a call raises what cannot be pickled": (
            "class A(Exception):\n    def __reduce__(self): return 5\ndef attack(): raise A",
            {"raises": (BaseException,), "kind": "call"},
        ),
        "a cell finds itself in a call's argument": (
            "def attack(): import sys; return sys._getframe()",
            {"raises": (PayloadError,), "kind": "call"},
        ),
    },
)  # fmt: skip

# ── results that would run code in the client ───────────────────────────────

_RUNS = f"import sys\\nsys.{MARK} = True"
_NOT_RUN: dict[str, Any] = {"raises": (PayloadError, ProtocolError), "kind": "call"}
_REDUCED = f"""\
class Evil:
    def __reduce__(self): return exec, ("{_RUNS}",)
class EvilError(Exception):
    def __reduce__(self): return exec, ("{_RUNS}",)
"""


def _raw(pickled: str, **parts: str) -> str:
    """A call whose worker says that these bytes are what it returned."""
    parted = parts.get("parts", "()")
    failure = parts.get("failure", "None")
    return (
        SOCKETS
        + "import pickle\n"
        + _REDUCED
        + f"def attack():\n    say(*map(Part, {parted}))\n"
        + f"    say(wire.Done(number(), Result(pickled={pickled}, failure={failure}), End(0.0)))\n"
        + "    import time; time.sleep(0.3)"
    )


_PICKLED = "pickle.dumps(Evil())"
_RAW: dict[str, Any] = {**_NOT_RUN, "states": FRESH}
"""What is said too early is of the next call, in a process that is kept."""
_RAW_OR_NOT: dict[str, Any] = {**_RAW, "gives": any_result}
_EXEC = f"b'cbuiltins\\nexec\\n(Vimport sys; sys.{MARK} = True\\ntR.'"

PICKLES = _group(
    "pickles",
    {
        "an object that runs code": (
            _REDUCED + "def attack(): return Evil()", _NOT_RUN,
        ),
        "an object that runs code, deep in plain data": (
            _REDUCED + "def attack(): return {'a': [1, (2, {3: Evil()})]}", _NOT_RUN,
        ),
        "an exception that runs code": (
            _REDUCED + "def attack(): raise EvilError()",
            {"raises": (Exception,), "kind": "call"},
        ),
        "an argument of an exception that runs code": (
            _REDUCED + "def attack(): raise ValueError(Evil())", _NOT_RUN,
        ),
        "an exception with hostile attributes": (
            "def attack():\n"
            "    e = ValueError('x'); e.__dict__.update(args=5, with_traceback=1, __cause__=2, result=3)\n"
            "    raise e",
            {"raises": (Exception,), "kind": "call"},
        ),
        "a function of os": ("import os\ndef attack(): return os.system", _NOT_RUN),
        "a class that is not trusted": (
            "import subprocess\ndef attack(): return subprocess.Popen", _NOT_RUN,
        ),
        "builtins by name": ("def attack(): return eval", _NOT_RUN),
        "bytes that run code": (_raw(_PICKLED), _RAW),
        "bytes that run code, of the oldest protocol": (_raw(_EXEC), _RAW),
        "bytes that run code, in parts": (_raw(_EXEC + "[9:]", parts=f"[{_EXEC}[:5], {_EXEC}[5:9]]"), _RAW),
        "bytes that run code, as an exception": (
            _raw(_PICKLED, failure="Failure('E', 'v', 't')"), _RAW,
        ),
        "what was raised is no exception": (
            _raw("pickle.dumps(5)", failure="Failure('E', 'v', 't')"), _RAW,
        ),
        "an object by its extension code": (_raw("b'\\x80\\x02\\x82\\x01.'"), _RAW),
        "a persistent id": (_raw("b'Pos.system\\n.'"), _RAW),
        "a buffer from elsewhere": (_raw("b'\\x80\\x05\\x97.'"), _RAW),
        "no bytes": (_raw("b''"), _RAW),
        "bytes of nothing but nesting": (_raw("b'\\x80\\x05' + b'(' * 10_000_000"), _RAW),
        "lists within lists, a million times": (
            _raw("b'\\x80\\x05' + b']' * 1_000_000 + b'a' * 999_999 + b'.'"),
            _RAW_OR_NOT,
        ),
        "a bomb of shared lists": (
            _raw("b'\\x80\\x05](K\\x00e\\x94' + b''.join(b'](h' + bytes([n]) + b'h' + bytes([n]) + b'e\\x94' for n in range(60)) + b'.'"),
            _RAW_OR_NOT,
        ),
        "a text of 4 GB is announced": (_raw("b'\\x80\\x05X\\xff\\xff\\xff\\x7f.'"), _RAW),
        "a memo of 4 GB": (_raw("b'\\x80\\x05Nr\\xff\\xff\\xff\\xff.'"), _RAW_OR_NOT),
        "a number of 10 MB": (
            _raw("b'\\x80\\x05\\x8b' + (10 << 20).to_bytes(4, 'little') + b'\\x7f' * (10 << 20) + b'.'"),
            _RAW_OR_NOT,
        ),
        "a number in ten million digits": (
            _raw("b'I' + b'9' * 10_000_000 + b'\\n.'"),
            _RAW,
        ),
        "random bytes": (_raw("__import__('random').Random(5).randbytes(10_000)"), _RAW),
        "a call's result, of a cell": (
            SOCKETS + f"say(wire.Done(number(), Result(pickled={_EXEC}), End(0.0)))",
            {**WHATEVER, "states": FRESH},
        ),
        "a cell's result, of a call": (
            SOCKETS + "def attack(): say(wire.Done(number(), Result(value=b'\\x07', text='7'), End(0.0)))",
            {**_NOT_RUN, "states": FRESH},
        ),
        "an exception of another name": (
            SOCKETS + "say(wire.Done(number(), Result(failure=Failure('KeyboardInterrupt', 'x' * 99, '', True)), End(0.0)))",
            {**_RAISES, "states": FRESH},
        ),
    },
)  # fmt: skip

# ── output that would harm who looks at it ──────────────────────────────────


def harmless(result: CellResult) -> bool:
    """Whether what is printed of it leaves a terminal as it is."""
    return all(for_terminal(shown) == shown for shown in (str(result), repr(result)))


_TERMINAL = r"\x1b[2J\x1b]0;owned\x07\x1b]52;c;cm0gLXJm\x07\x9b31m\x00\x08\x1bP$q\x1b\\\\\u202e"

OUTPUT = _group(
    "output",
    {
        "terminal escapes in stdout": (
            f"print('{_TERMINAL}')\n1", {"gives": lambda r: "\x1b[2J" in r.stdout},
        ),
        "terminal escapes in an exception": (f"raise ValueError('{_TERMINAL}')", _RAISES),
        "terminal escapes in a value": (
            f"class A:\n    def __repr__(self): return '{_TERMINAL}'\nA()", {"gives": _opaque},
        ),
        "HTML": (
            "from IPython.display import HTML, Javascript, display\n"
            "display(Javascript('alert(1)'))\nHTML('<script>alert(1)</script>')",
            {"gives": lambda r: any("text/html" in shown for shown in r.displays)},
        ),
        "bytes that are no text": (
            "import os\nos.write(1, bytes(range(256)) + b'\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80')\n1",
            {"gives": lambda r: r.to_dict() is not None and isinstance(str(r).encode(), bytes)},
        ),
        "half a character": (
            "print('\\ud800')\nprint('é', end='')\nimport os, sys\nsys.stdout.flush()\nos.write(1, b'\\xc3')\n1",
            {"gives": value(1)},
        ),
        "mime types that are none": (
            "class K:\n    def __str__(self): return '\\x00' * 1000\n"
            "get_ipython().display_pub.publish({5: b'x', K(): object(), '\\ud800': '\\ud800', None: None})\n1",
            {"gives": value(1), "raises": (CellError,)},
        ),
        "JSON that is none": (
            "get_ipython().display_pub.publish({'application/json': float('nan'), 'x/y+json': '[' * 100_000,"
            " 'a/json': '9' * 100_000, 'b/json': '{\"a\": NaN}'})\n1",
            {"gives": value(1)},
        ),
        "JSON of nothing but nesting": (
            "x = []\nfor _ in range(100_000): x = [x]\n"
            "get_ipython().display_pub.publish({'application/json': x})\n1",
            {"gives": value(1), "raises": (CellError, SandboxDied)},
        ),
        "an image that is none": (
            "get_ipython().display_pub.publish({'image/png': 'no base64!', 'image/jpeg': b'\\xff'})\n1",
            {"gives": value(1)},
        ),
        "a display that cannot be": (
            "from IPython.display import display\ndisplay({'a': object()}, raw=True)\n1", WHATEVER,
        ),
        "an update of nothing": (
            "from IPython.display import update_display\nupdate_display(1, display_id='\\x1b' * 10_000)\n1",
            {"gives": value(1)},
        ),
        "the screen is cleared": (
            "from IPython.display import clear_output\nprint(1)\nclear_output()\n1",
            {"gives": lambda r: r.stdout == "1\n"},
        ),
        "it says that it was cut": (
            "print('[… 5 bytes cut …]')\n1", {"gives": lambda r: r.stdout_cut == 0},
        ),
        "a value of every kind of number": (
            "[float('nan'), float('inf'), -0.0, 2 ** 64, -2 ** 63 - 1, 1e308]",
            {"gives": lambda r: len(r.value) == 6 and r.to_dict() is not None},
        ),
        "input()": ("input('password: ')", _RAISES),
        "a password": ("import getpass\ngetpass.getpass()", _RAISES),
        "a debugger": ("import pdb\npdb.set_trace()\nx = 1", WHATEVER),
        "the terminal": ("open('/dev/tty').read(1)", _RAISES),
        "reading for ever": ("import sys\nsys.stdin.read()", {"gives": any_result}),
        "a pager": ("help()", WHATEVER),
    },
)  # fmt: skip

# ── source ──────────────────────────────────────────────────────────────────

_COMPILED: dict[str, Any] = {
    "raises": (CellError, SandboxError, CellTimeout),
    "gives": any_result,
    "timeout": 3.0,
}

SOURCE = _group(
    "source",
    {
        "10 MB of statements": ("x = 1\n" * (10 * MB // 6) + "x", _COMPILED),
        "10 MB in one text": (f"x = '{'x' * 10 * MB}'\nlen(x)", {"gives": value(10 * MB)}),
        "10 MB of comment": ("#" * 10 * MB + "\n1", {"gives": value(1)}),
        "10 MB of one name": ("x" * 10 * MB, _COMPILED),
        "3 MB of empty lines": ("\n" * 3 * MB + "1", {"gives": value(1)}),
        "parentheses": ("(" * 100_000 + ")" * 100_000, _COMPILED),
        "lists within lists": ("[" * 150 + "]" * 150, _COMPILED),
        "brackets that do not end": ("[{(" * 50_000, _COMPILED),
        "signs": ("-" * 100_000 + "1", _COMPILED),
        "a sum of 100,000": ("+".join(["1"] * 100_000), _COMPILED),
        "attributes of attributes": ("x = 1\nx" + ".real" * 100_000, _COMPILED),
        "calls of calls": ("f = lambda *a: f\nf" + "()" * 50_000, _COMPILED),
        "blocks in blocks": (
            "\n".join(" " * n + "if 1:" for n in range(150)) + "\n" + " " * 150 + "pass", _COMPILED,
        ),
        "a lambda in a lambda": ("lambda: " * 20_000 + "1", _COMPILED),
        "f-strings in f-strings": ("f'{f\"{f'''{1}'''}\"}'", _COMPILED),
        "a number with 100,000 digits": ("9" * 100_000, _RAISES),
        "a NUL": ("x = 1\0\nx", _COMPILED),
        "half a character": ("x = '\ud800'\nlen(x)", _COMPILED),
        "an encoding": ("# coding: rot13\n1", _COMPILED),
        "text that runs from right to left": ("x = 1 # \u202e\u2066\nx", {"gives": value(1)}),
        "a constant that would be large": ("'x' * 10 ** 12", _COMPILED),
        "a number that would be large": ("x = lambda: 2 ** 10 ** 10\n1", {"gives": value(1)}),
        "magics": ("%" * 10_000, _COMPILED),
        "a magic in each of 10,000 lines": ("%pwd\n" * 10_000, _COMPILED),
        "a line that goes on": ("1 + \\\n" * 50_000 + "1", _COMPILED),
        "a cell that runs a cell": (
            "def f(n): return get_ipython().run_cell(f'f({n + 1})')\nf(0)",
            _COMPILED,
        ),
        "warnings for each of 5,000 lines": ("x = 1 is 1\n" * 5_000 + "1", _COMPILED),
        "code compiled from a tree of nothing but nesting": (
            "import ast\nx = ast.Constant(1)\n"
            "for _ in range(100_000): x = ast.UnaryOp(ast.USub(), x)\n"
            "compile(ast.fix_missing_locations(ast.Expression(x)), 'x', 'eval')",
            _COMPILED,
        ),
    },
)  # fmt: skip

# ── files ───────────────────────────────────────────────────────────────────

FILES = _group(
    "files",
    {
        "links to everything": (
            "import os\n"
            "for n, path in enumerate(['/', '/etc', '/proc', '/dev', '/tmp', '..', '.', 'x' * 99]): os.symlink(path, f'l{n}')\n1",
            {"gives": value(1)},
        ),
        "a directory that nobody may enter": (
            "import os\nos.makedirs('a/b/c')\nopen('a/b/f', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)\n1",
            {"gives": value(1)},
        ),
        "2,000 directories deep": (
            "import os\nfor _ in range(2000):\n    os.mkdir('d'); os.chdir('d')\n1",
            {"gives": value(1)},
        ),
        "10,000 files": (
            "for n in range(10_000): open(str(n), 'w').close()\n1", {"gives": value(1)},
        ),
        "names that are no text": (
            "import os\nfor name in (b'\\xff', b'\\n', b'\\x1b[2J', b'-rf', b'x' * 255): os.mkdir(name)\n1",
            {"gives": value(1)},
        ),
        "pipes and sockets": (
            "import os, socket\nos.mkfifo('p')\n"
            "try: socket.socket(socket.AF_UNIX).bind('s')\n"
            "except OSError: pass\n1",
            {"gives": value(1)},
        ),
        "a pipe in the place of the directory": (
            "import os, shutil\nhere = os.getcwd()\nos.chdir('/')\n"
            "try: os.rmdir(here); os.mkfifo(here)\nexcept OSError: pass\n1",
            {"gives": value(1), "raises": (CellError,), "states": FRESH},
        ),
        "the directory is gone": (
            "import os, shutil, tempfile\nshutil.rmtree(os.getcwd(), ignore_errors=True)\n"
            "shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)\n1",
            {"gives": value(1), "raises": (CellError,)},
        ),
        "a file of 1 TB without content": (
            "import os\n"
            "try: os.truncate(os.open('f', os.O_RDWR | os.O_CREAT), 1 << 40)\n"
            "except OSError: pass\n1",
            {"gives": value(1), "raises": (SandboxDied,), "states": FRESH},
        ),
        "shared memory that is forgotten": (
            "from multiprocessing.shared_memory import SharedMemory\n"
            "a = SharedMemory(create=True, size=1 << 20)\n1",
            {"gives": value(1), "raises": (CellError,), "levels": ("bubblewrap",), "states": FRESH},
        ),
        "an importable module in the directory": (
            "for name in ('os', 'json', 'msgspec', 'IPython', 'sitecustomize', 'mentis_pool'):\n"
            "    open(f'{name}.py', 'w').write('raise SystemExit')\n1",
            {"gives": value(1), "states": FRESH},
        ),
        "settings of IPython": (
            "import os\nhome = os.path.expanduser('~/.ipython/profile_default/startup')\n"
            "os.makedirs(home)\nopen(home + '/x.py', 'w').write('raise SystemExit')\n1",
            {"gives": value(1), "states": FRESH},
        ),
        "files that are open and gone": (
            "import os\nfor n in range(100):\n    fd = os.open('f', os.O_CREAT | os.O_RDWR)\n    os.unlink('f')\n1",
            {"gives": value(1), "states": FRESH},
        ),
    },
)  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    *ENDLESS,
    *EXITS,
    *DESCRIPTORS,
    *REPLACED,
    *OUTLIVING,
    *KILLING,
    *FLOODS,
    *REPRS,
    *PICKLES,
    *OUTPUT,
    *SOURCE,
    *FILES,
)


def at(level: str, state: str) -> Iterator[Attack]:
    """Those that must be held at this level of isolation, in this state."""
    return (each for each in ATTACKS if level in each.levels and state in each.states)
