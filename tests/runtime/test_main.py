"""The embedded runtime's program ends with its client, whoever else holds the lifeline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CLIENT = """
import os, time
from mentis_pool import SandboxExecutor
executor = SandboxExecutor(max_workers=1)
executor.submit("1").result()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux tells of the client's end")
def test_a_child_of_the_client_that_stays_does_not_keep_it(own_temp, processes, eventually):
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE) as client:
        child = int(client.stdout.readline())
        try:
            client.kill()
            eventually(lambda: processes(own_temp) == [] and os.listdir(own_temp) == [])
        finally:
            os.kill(child, signal.SIGKILL)
