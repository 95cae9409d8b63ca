"""A program that stands in for the zygote behind a wall: makes slots and runs cells in them.

Its argument is JSON: what the rooms are made of, and the steps to go, each of which has a result
(what the cell left in the variable `result`) that is written to standard output at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import sys
import time
import traceback

from mentis_pool.runtime import namespaces, seccomp


def answer(sock, value):
    sock.send(json.dumps(value).encode())


def be_worker(rooms, sock, said, code, walls):
    sock.close()
    if walls:
        rooms.give_up(seccomp.program(platform.machine()))
    os.chdir("/work")
    names = {}
    try:
        exec(code, names)
        result = names.get("result")
    except BaseException:  # noqa: BLE001 - whatever a cell raises
        result = traceback.format_exc()
    os.write(said, json.dumps(result).encode())


def await_all():
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def be_init(rooms, room, sock, walls, limited):
    rooms.settle()
    rooms.furnish(*room)
    answer(sock, namespaces.limit_processes(20) if limited else os.getpid())
    while said := sock.recv(65536):
        step, code = json.loads(said)
        if step == "cell":
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                be_worker(rooms, sock, writer, code, walls)
                os._exit(0)
            # Once it is gone, so that what is looked at next is what it left.
            os.waitpid(pid, 0)
            sock.send(os.read(reader, 65536))
            os.close(reader)
            os.close(writer)
        else:
            rooms.end_all()
            await_all()
            rooms.renew()
            answer(sock, None)


def main(shown, steps, size=64 << 20, files=1000, network="none", walls=True, limited=False):
    own = namespaces.enter()
    rooms = namespaces.Rooms(("/work", "/tmp", "/dev/shm"), shown, network)
    slots, results = {}, []
    for step, name, code in steps:
        began = time.perf_counter()
        if step == "slot":
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = namespaces.fork(own)
            if pid == 0:
                ours.close()
                for its, _ in slots.values():
                    its.close()
                try:
                    be_init(rooms, (size, files), theirs, walls, limited)
                except BaseException:  # noqa: BLE001 - its last words
                    answer(theirs, traceback.format_exc())
                os._exit(0)
            theirs.close()
            slots[name] = ours, pid
            results.append(json.loads(ours.recv(65536)))
        elif step == "kill":
            os.kill(slots[name][1], signal.SIGKILL)
            os.waitpid(slots[name][1], 0)
            results.append(sorted(int(each) for each in os.listdir("/proc") if each.isdigit()))
        elif step == "zygote":
            names = {}
            exec(code, names)
            results.append(names["result"])
        else:
            slots[name][0].send(json.dumps((step, code)).encode())
            results.append(json.loads(slots[name][0].recv(65536)))
        results[-1] = (results[-1], (time.perf_counter() - began) * 1e3)
    print(json.dumps(results))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
