"""A dozen programs such as people and models write, each with what it must give."""

from __future__ import annotations

import textwrap

import pytest

PROGRAMS = {
    "a word count of its input": (
        """
        import collections, sys
        counts = collections.Counter(sys.stdin.read().split())
        for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            print(n, word)
        """,
        "b a b\nc a b\n", "3 b\n2 a\n1 c\n", None,
    ),
    "a dialogue": (
        """
        name = input("name? ")
        while (line := input("number? ")) != "end":
            print(f"{name}: {int(line) ** 2}")
        """,
        "Ada\n3\n4\nend\n", "name? number? Ada: 9\nnumber? Ada: 16\nnumber? ", None,
    ),
    "linear algebra": (
        """
        import numpy as np
        a = np.array([[4.0, 1.0], [1.0, 3.0]])
        x = np.linalg.solve(a, [1.0, 2.0])
        print(np.allclose(a @ x, [1, 2]))
        [round(float(v), 4) for v in np.linalg.eigvalsh(a)]
        """,
        None, "True\n", [2.382, 4.618],
    ),
    "a table": (
        """
        import io
        import pandas as pd
        frame = pd.read_csv(io.StringIO("who,n\\na,1\\nb,2\\na,3\\n"))
        print(frame.groupby("who")["n"].sum().to_dict())
        frame
        """,
        None, "{'a': 4, 'b': 2}\n", "displays a table",
    ),
    "a figure": (
        """
        import matplotlib.pyplot as plt
        fig, ax = plt.subplots()
        ax.plot([1, 4, 9])
        plt.savefig("figure.pdf")
        plt.show()
        import os
        os.path.getsize("figure.pdf") > 1000
        """,
        None, "", "displays a figure",
    ),
    "threads": (
        """
        import queue, threading
        tasks, results = queue.Queue(), []
        def work():
            while (n := tasks.get()) is not None:
                results.append(n * n)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads: t.start()
        for n in range(20): tasks.put(n)
        for _ in threads: tasks.put(None)
        for t in threads: t.join()
        sum(results)
        """,
        None, "", 2470,
    ),
    "a pool of processes": (
        """
        import concurrent.futures, multiprocessing
        def cube(n): return n ** 3
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            r = list(pool.map(cube, range(5)))
        r
        """,
        None, "", [0, 1, 8, 27, 64],
    ),
    "subprocesses": (
        """
        import subprocess, sys
        print(subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout, end="")
        subprocess.run("echo to stdout; cat", shell=True, input=b"through a pipe\\n")
        subprocess.run(["false"]).returncode
        """,
        None, "42\nto stdout\nthrough a pipe\n", 1,
    ),
    "top-level await": (
        """
        import asyncio
        async def slow(n):
            await asyncio.sleep(0.02 * (3 - n))
            print(n)
            return n
        await asyncio.gather(*(slow(n) for n in range(3)))
        """,
        None, "2\n1\n0\n", [0, 1, 2],
    ),
    "asyncio.run": (
        """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_shell("echo from a child")
            await process.wait()
            return process.returncode
        asyncio.run(main())
        """,
        None, "from a child\n", 0,
    ),
    "files and a database": (
        """
        import json, pathlib, sqlite3, tempfile
        pathlib.Path("data.json").write_text(json.dumps({"k": [1, 2]}))
        with tempfile.TemporaryDirectory() as d, sqlite3.connect(f"{d}/db") as db:
            db.execute("create table t(n)")
            db.executemany("insert into t values (?)", [(n,) for n in range(10)])
            total = db.execute("select sum(n) from t").fetchone()[0]
        total, json.loads(open("data.json").read())
        """,
        None, "", (45, {"k": [1, 2]}),
    ),
    "a server and its client": (
        """
        import http.server, threading, urllib.request
        class Hello(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.end_headers(); self.wfile.write(b"hello")
            def log_message(self, *args): pass
        server = http.server.HTTPServer(("127.0.0.1", 0), Hello)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(f"http://127.0.0.1:{server.server_port}").read()
        """,
        None, "", b"hello",
    ),
    "classes, generators, dates and a dataclass": (
        """
        import dataclasses, datetime, functools, itertools
        @dataclasses.dataclass(order=True)
        class Event:
            at: datetime.date
            what: str = dataclasses.field(compare=False)
        events = sorted(Event(datetime.date(2024, 1, d), w) for d, w in ((3, "c"), (1, "a"), (2, "b")))
        @functools.lru_cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        print(*(e.what for e in events))
        {"first": events[0].at, "fib": fib(90), "set": set(itertools.chain("aab", "c"))}
        """,
        None, "a b c\n", "a dict",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_what_it_must(executor, name):
    import datetime

    source, stdin, stdout, value = PROGRAMS[name]
    result = executor.options(stdin=stdin).submit(textwrap.dedent(source)).result()
    assert (result.stdout, result.stderr) == (stdout, "")
    if value == "displays a table":
        assert "<table" in result.displays[0]["text/html"]
        assert result.value.type_name.endswith("DataFrame")
    elif value == "displays a figure":
        assert result.displays[0]["image/png"].startswith(b"\x89PNG")
        assert result.value is True
    elif value == "a dict":
        assert result.value == {
            "first": datetime.date(2024, 1, 1),
            "fib": 2880067194370816120,
            "set": {"a", "b", "c"},
        }
    else:
        assert result.value == value
