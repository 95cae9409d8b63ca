"""Latency, throughput, start and memory of cells: SandboxExecutor beside ipykernel.

The kernels are driven by jupyter_client's blocking client: execute, then the
reply and every message on iopub until the kernel is idle. The rounds
alternate, after a warm-up of each, and each ratio is of two measurements that
ran one after the other.

latency     one cell at a time, one sandbox or kernel: submit to result.
throughput  as many cells as the latency is taken from, two sandboxes or kernels.
start       in a new Python process each: a new executor (two workers, fresh)
            until its first result; a new kernel until its first result.
memory      of a sandbox that is open and idle. "unshared" is the uss of psutil,
            pages that no other process has, summed over the init and the workers
            of a sandbox; the server and the zygote, one of each for all
            sandboxes, are shown apart. Pages that only an init and its worker
            share are in no uss, so there is also what each further sandbox adds
            to the pss of the whole runtime, where every page counts once.
            Read from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import table
from mentis_pool import CellResult, SandboxExecutor

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]
    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

CELL = "print('x')\n1"
"""A line of output and a value."""
WORKERS = 2
PATIENCE = 60.0
"""Seconds that anything may take before the benchmark gives up."""
WARM_UP = 1
"""Rounds before those that count."""
REST = 0.4
"""Seconds without a process that begins or ends after which memory has come to rest."""
MEGABYTE = 1e6

FIRST_CELL = f"""
import json, time
began = time.perf_counter()
from mentis_pool import SandboxExecutor
imported = time.perf_counter()
with SandboxExecutor({WORKERS}) as executor:
    assert executor.submit({CELL!r}).result({PATIENCE}).value == 1
    done = time.perf_counter()
print(json.dumps([done - imported, done - began]))
"""
# By itself: what this file imports is no part of a kernel's start.
FIRST_KERNEL_CELL = f"""
import json, subprocess, time
began = time.perf_counter()
from jupyter_client.manager import start_new_kernel
imported = time.perf_counter()
manager, client = start_new_kernel(
    {PATIENCE}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
try:
    said = []
    client.execute_interactive({CELL!r}, timeout={PATIENCE}, output_hook=said.append)
    done = time.perf_counter()
    assert "execute_result" in [message["msg_type"] for message in said], said
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(json.dumps([done - imported, done - began]))
"""

State = Literal["fresh", "reuse"]
STATES: tuple[State, State] = ("fresh", "reuse")
WHOSE = (*STATES, "ipykernel")
Times = dict[str, list[float]]
"""What was measured in each round, by whose it is."""


def add_arguments(
    parser: argparse.ArgumentParser, at_least: Callable[[int], Callable[[str], int]]
) -> None:
    parser.add_argument(
        "--count", type=at_least(2), default=200, help="cells a round (default: %(default)s)"
    )
    parser.add_argument(
        "--sandboxes",
        type=at_least(2),
        default=8,
        help="how many are open when memory is measured (default: %(default)s)",
    )


def measure(arguments: argparse.Namespace) -> table.Report:
    """Run all rounds.

    Raises:
        SystemExit: this is not Linux, or a cell did not give what it must.
        ModuleNotFoundError: jupyter_client, ipykernel or psutil is not installed.
    """
    import ipykernel  # noqa: F401 - only that it is there
    import jupyter_client  # noqa: F401
    import psutil  # noqa: F401

    if not sys.platform.startswith("linux"):
        sys.exit("cells reads memory from /proc, which only Linux has")
    machine = table.machine()
    rounds = arguments.rounds
    p50, p99, throughput = warm_rounds(rounds, arguments.count)
    first, first_imported = start_rounds(rounds)
    unshared, added, shared = memory_rounds(rounds, arguments.sandboxes)
    ratios = {
        f"{state} / ipykernel": table.Figure(p50[state]).over(table.Figure(p50["ipykernel"]))
        for state in STATES
    }
    groups = [
        group("latency p50", "ms", p50),
        group("latency p99", "ms", p99),
        table.Group("latency p50, pair by pair", "", ratios),
        group("throughput", "cells/s", throughput),
        group("start to first result, imports done", "s", first),
        group("start to first result, with imports", "s", first_imported),
        group("unshared memory (uss) per idle sandbox", "MB", unshared),
        group("added by one more idle sandbox (pss of all)", "MB", added),
        group("unshared memory, one for all sandboxes", "MB", shared),
    ]
    return table.Report(
        benchmark="cells",
        settings={
            "rounds": rounds,
            "count": arguments.count,
            "workers": WORKERS,
            "sandboxes": arguments.sandboxes,
        },
        groups=groups,
        targets=[
            table.Target(
                "fresh p50 / ipykernel p50", ratios["fresh / ipykernel"].median, "under", 1
            ),
            table.Target(
                "reuse p50 / ipykernel p50", ratios["reuse / ipykernel"].median, "at most", 0.25
            ),
            table.Target(
                "start to first result",
                statistics.median(first["mentis_pool"]),
                "at most",
                0.7,
                "s",
            ),
            *(
                table.Target(
                    f"unshared per idle sandbox, {state}",
                    statistics.median(unshared[state]),
                    "under",
                    6,
                    "MB",
                )
                for state in STATES
            ),
        ],
        notes=[f"1 MB is {MEGABYTE:.0f} bytes. Each value is of one round; a cell: {CELL!r}"],
        machine=machine,
    )


def group(name: str, unit: str, times: Times) -> table.Group:
    return table.Group(name, unit, {who: table.Figure(values) for who, values in times.items()})


# ── latency and throughput ──────────────────────────────────────────────────


def warm_rounds(rounds: int, count: int) -> tuple[Times, Times, Times]:
    """p50 and p99 of the latency, in milliseconds, and cells a second, of all that is warm.

    Executors and kernels stay for all rounds; those that are not measured are idle.
    """
    p50: Times = {who: [] for who in WHOSE}
    p99: Times = {who: [] for who in WHOSE}
    throughput: Times = {who: [] for who in WHOSE}
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(kernel())[1] for _ in range(WORKERS)]
        threads = stack.enter_context(ThreadPoolExecutor(WORKERS))
        one = {state: stack.enter_context(SandboxExecutor(1, state=state)) for state in STATES}
        all_ = {
            state: stack.enter_context(SandboxExecutor(WORKERS, state=state)) for state in STATES
        }
        single: dict[str, Callable[[], None]] = {
            "fresh": lambda: check(one["fresh"].submit(CELL).result(PATIENCE)),
            "reuse": lambda: check(one["reuse"].submit(CELL).result(PATIENCE)),
            "ipykernel": lambda: ask(clients[0]),
        }
        many: dict[str, Callable[[int], None]] = {
            "fresh": lambda count: map_cells(all_["fresh"], count),
            "reuse": lambda count: map_cells(all_["reuse"], count),
            "ipykernel": lambda count: map_kernels(threads, clients, count),
        }
        warm_up = min(count, 20)
        for who in WHOSE:
            latencies(single[who], warm_up)
            many[who](warm_up)
        for _ in range(rounds):
            for who in WHOSE:
                took = latencies(single[who], count)
                p50[who].append(statistics.median(took) * 1e3)
                p99[who].append(table.percentile(took, 99) * 1e3)
            for who in WHOSE:
                began = time.perf_counter()
                many[who](count)
                throughput[who].append(count / (time.perf_counter() - began))
    return p50, p99, throughput


def latencies(run: Callable[[], None], count: int) -> list[float]:
    """Seconds of each of so many calls."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return took


def check(result: CellResult) -> None:
    """That `CELL` gave what it must.

    Raises:
        SystemExit: it did not.
    """
    if (result.stdout, result.value) != ("x\n", 1):
        sys.exit(f"mentis_pool: {CELL!r} gave {result.to_dict()!r}")


def map_cells(executor: SandboxExecutor, count: int) -> None:
    for result in executor.map([CELL] * count, timeout=PATIENCE):
        check(result)


def map_kernels(
    threads: ThreadPoolExecutor, clients: list[BlockingKernelClient], count: int
) -> None:
    """So many cells, shared out evenly, with a thread for each kernel."""
    shares = [count // len(clients) + (n < count % len(clients)) for n in range(len(clients))]

    def ask_often(client: BlockingKernelClient, share: int) -> None:
        for _ in range(share):
            ask(client)

    list(threads.map(ask_often, clients, shares))


# ── kernels ─────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """One ipykernel that is ready; it is gone at the end, however that comes."""
    from jupyter_client.manager import KernelManager

    # As start_new_kernel does; that one forgets the kernel when Ctrl-C comes early.
    manager = KernelManager()
    try:
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=PATIENCE)
            yield manager, client
        finally:
            client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)


def ask(client: BlockingKernelClient, cell: str = CELL, gives: str = "x\n1") -> None:
    """Run a cell in a kernel, until all was said about it.

    Raises:
        SystemExit: it did not give what it must: its output, and the text of its value.
    """
    request = client.execute(cell)
    said: list[str] = []
    while True:
        message = client.get_iopub_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        # IPython also warns on stderr, now and then, that it forgets old values.
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            said.append(content["text"])
        elif message["msg_type"] == "execute_result":
            said.append(content["data"]["text/plain"])
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
    while client.get_shell_msg(timeout=PATIENCE)["parent_header"].get("msg_id") != request:
        pass
    if (text := "".join(said)) != gives:
        sys.exit(f"ipykernel: {cell!r} gave {text[:200]!r}")


# ── start ───────────────────────────────────────────────────────────────────


def start_rounds(rounds: int) -> tuple[Times, Times]:
    """Seconds to the first result, without and with the imports."""
    scripts = {"mentis_pool": FIRST_CELL, "ipykernel": FIRST_KERNEL_CELL}
    bare: Times = {who: [] for who in scripts}
    imported: Times = {who: [] for who in scripts}
    for number in range(-WARM_UP, rounds):
        for who, script in scripts.items():
            without, with_imports = in_new_process(script)
            if number >= 0:
                bare[who].append(without)
                imported[who].append(with_imports)
    return bare, imported


def in_new_process(script: str) -> list[float]:
    """Run a script; what it printed as JSON.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=2 * PATIENCE
    )
    if done.returncode:
        sys.exit(f"a new Python process failed:\n{done.stderr}")
    figures: list[float] = json.loads(done.stdout)
    return figures


# ── memory ──────────────────────────────────────────────────────────────────


def memory_rounds(rounds: int, sandboxes: int) -> tuple[Times, Times, Times]:
    """Megabytes: unshared by sandbox, added by a sandbox, and unshared of what there is one of."""
    unshared: Times = {who: [] for who in WHOSE}
    added: Times = {state: [] for state in STATES}
    shared: Times = {f"{what}, {state}": [] for state in STATES for what in ("server", "zygote")}
    for _ in range(rounds):
        for state in STATES:
            idle = idle_runtime(state, sandboxes)
            unshared[state].append(idle.sandboxes / sandboxes)
            added[state].append(idle.added / (sandboxes - 1))
            shared[f"server, {state}"].append(idle.server)
            shared[f"zygote, {state}"].append(idle.zygote)
        unshared["ipykernel"].append(idle_kernel())
    return unshared, added, shared


@dataclasses.dataclass(frozen=True)
class Idle:
    """Memory of an idle runtime, in megabytes; unshared, but for the last."""

    server: float
    zygote: float
    sandboxes: float
    """All of them together."""
    added: float
    """By which the pss of all processes grew from one sandbox to all."""


def idle_runtime(state: State, sandboxes: int) -> Idle:
    """Open so many sandboxes and let them rest.

    Raises:
        SystemExit: not all of them are open.
    """
    import psutil

    before = set(psutil.Process().children())
    with SandboxExecutor(sandboxes, state=state) as executor:
        check(executor.submit(CELL).result(PATIENCE))
        (server,) = set(psutil.Process().children()) - before
        with_one = pss(settled(server))
        # At once, and long enough for none to be done before the last begins.
        futures = [executor.submit("import time\ntime.sleep(0.3)") for _ in range(sandboxes)]
        for future in futures:
            future.result(PATIENCE)
        everything = settled(server)
        inits = server.children()
        chain = []
        # What is below the server is one process, or that in a wrapper, until it forks the inits.
        while len(inits) == 1:
            chain += inits
            inits = inits[0].children()
        # One stands by for the next sandbox, and has no worker.
        chain += [init for init in inits if not init.children()]
        inits = [init for init in inits if init not in chain]
        if len(inits) != sandboxes:
            sys.exit(f"{len(inits)} sandboxes are open, not {sandboxes}")
        return Idle(
            server=uss([server]),
            zygote=uss(chain),
            sandboxes=uss([p for init in inits for p in (init, *init.children(recursive=True))]),
            added=pss(everything) - with_one,
        )


def idle_kernel() -> float:
    """The unshared memory of one ipykernel that has run a cell, in megabytes."""
    import psutil

    with kernel() as (manager, client):
        ask(client)
        provisioner: Any = manager.provisioner
        return uss(settled(psutil.Process(provisioner.pid)))


def settled(process: psutil.Process) -> list[psutil.Process]:
    """This process and all below it, when none has begun or ended for a while.

    Raises:
        SystemExit: that does not come.
    """
    deadline = time.monotonic() + PATIENCE
    before: list[psutil.Process] = []
    while (now := [process, *process.children(recursive=True)]) != before:
        if time.monotonic() > deadline:
            sys.exit(f"what is below process {process.pid} does not come to rest")
        before = now
        time.sleep(REST)
    return now


def uss(processes: list[psutil.Process]) -> float:
    """Megabytes that each of these has alone, summed."""
    total: int = sum(process.memory_full_info().uss for process in processes)
    return total / MEGABYTE


def pss(processes: list[psutil.Process]) -> float:
    """Megabytes that these have together: a page shared by n processes is 1/n of each."""
    total: int = sum(process.memory_full_info().pss for process in processes)
    return total / MEGABYTE
