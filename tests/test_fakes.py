"""The scripted runtimes leave nothing behind, whatever becomes of their test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, time
from fakes import OriginalRuntime, kernels
from mentis_pool.client import Client
from mentis_pool.address import parse
from mentis_pool.mentis_v1 import RunCell
with OriginalRuntime() as runtime:
    client = Client(parse(runtime.url))
    for code in ("1", "import time; time.sleep(60)", "import os; os.system('sleep 60')"):
        client.run_cell("default", client.create_sandbox("default"), RunCell(code))
    time.sleep(0.5)
    pids = [sandbox._pid for sandbox in runtime.sandboxes.values()]
    print(json.dumps([kernels()._process.pid, *pids]), flush=True)
    time.sleep(60)
"""


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_original_whose_process_is_killed_takes_its_shells_along(eventually):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process.stdout:
        pids = [int(word) for word in process.stdout.readline().strip(b"[]\n").split(b",")]
    assert len(pids) == 4
    assert all(alive(pid) for pid in pids)
    process.kill()
    process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids))
