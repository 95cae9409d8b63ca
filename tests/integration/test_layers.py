"""The layers: each file imports only from files above it, and the first import stays small."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mentis_pool

PACKAGE = Path(mentis_pool.__file__).parent

# Each file imports only from files above it; those of one group not from each other.
PURE = [
    "_version",
    "limits",
    "text",
    "errors",
    "observations",
    "files",
    "output",
    "values",
    "walls",
    "results",
    "address",
    "mentis_v1",
    "pool_stream",
    "boxes",
    "standard_types",
    "array_types",
    "by_value",
    "payload",
    "returned",
    "opcodes",
    "trust",
    "rebuild",
    "lanes",
    "original",
    "slot",
    "task",
    "pool",
]
LAYERS = [
    *([name] for name in PURE),
    ["spinning"],
    ["events", "stream", "upload"],
    ["client", "threads"],
    ["v1_connection"],
    ["connection"],
    ["dispatcher"],
    ["follower"],
    ["future"],
    ["engine"],
    ["session"],
    ["executor"],
    ["collect"],
    ["sandbox"],
    ["pytest_plugin"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# The runtime is a program of its own.
FOR_RUNTIME = {
    "_version",
    "address",
    "array_types",
    "boxes",
    "errors",
    "files",
    "lanes",
    "limits",
    "mentis_v1",
    "observations",
    "output",
    "payload",
    "pool_stream",
    "returned",
    "spinning",
    "standard_types",
    "text",
    "values",
    "walls",
}
STARTS_RUNTIME = {
    "connection": ("local",),
    "executor": ("local",),
    "sandbox": ("local",),
    "cli": ("serve", "standing", "probe"),
}
RUNTIME_PURE = {"wire", "action", "registry", "seccomp", "wall"}

IMPURE = {
    "_thread",
    "asyncio",
    "concurrent.futures.thread",
    "fcntl",
    "logging",
    "multiprocessing",
    "os",
    "select",
    "selectors",
    "signal.signal",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tenacity",
    "threading",
    "time",
    "websocket",
}

FILES = sorted(PACKAGE.glob("*.py"))
RUNTIME_FILES = sorted((PACKAGE / "runtime").glob("*.py"))


def imports(path):
    """What a file imports, anywhere in it, but for its annotations: absolute, with the name."""

    def walk(node):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                yield from walk(child)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    return set(walk(ast.parse(path.read_text("utf-8"))))


def of_package(path):
    """Which files of the package a file imports: "task", "runtime.wire"; "" for the package itself."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "mentis_pool":
            continue
        if parts[1:2] == ["runtime"]:
            found.add(".".join(parts[1:3]))
        else:
            found.add(parts[1] if len(parts) > 1 and parts[1] in LEVEL else "")
    return found


def run(code):
    """Run this in a new interpreter; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ── the rule ────────────────────────────────────────────────────────────────


def test_every_file_has_its_place():
    names = {path.stem for path in FILES} - {"__init__"}
    assert names <= set(LEVEL), "a new file: say in LAYERS where it belongs"
    assert set(PURE) <= names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_imports_only_from_files_above_it(path):
    if path.stem == "__init__":
        assert of_package(path) == {"_version"}
        return
    for name in of_package(path):
        if name.startswith("runtime"):
            assert path.stem in STARTS_RUNTIME
            assert name.removeprefix("runtime").strip(".") in ("", *STARTS_RUNTIME[path.stem])
        else:
            assert name, "a file imports from the files of the package, not from its front"
            assert LEVEL[name] < LEVEL[path.stem], f"{path.stem} imports {name}, which is below it"


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=lambda p: p.stem)
def test_the_runtime_imports_only_itself_and_what_both_sides_need(path):
    for name in of_package(path):
        if name.startswith("runtime"):
            assert name == "runtime" or (PACKAGE / f"{name.replace('.', '/')}.py").exists()
        else:
            assert name in FOR_RUNTIME, f"runtime/{path.name} imports {name or 'mentis_pool'}"


def test_the_files_of_the_runtime_import_each_other_in_one_direction():
    needs = {
        path.stem: {n.split(".")[1] for n in of_package(path) if n.startswith("runtime.")}
        for path in RUNTIME_FILES
    }
    while needs:
        free = {name for name, others in needs.items() if not others & needs.keys()}
        assert free, f"these import each other: {sorted(needs)}"
        needs = {name: others for name, others in needs.items() if name not in free}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.stem in PURE] + [p for p in RUNTIME_FILES if p.stem in RUNTIME_PURE],
    ids=lambda p: p.stem,
)
def test_a_pure_file_has_no_socket_thread_process_clock_or_log(path):
    for name in imports(path) - {"subprocess.CompletedProcess"}:  # a value: it runs nothing
        parts = name.split(".")
        prefixes = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        assert not prefixes & IMPURE, f"{path.name} imports {name}"
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not called & {"open", "print", "input", "datetime.now", "date.today", "__import__"}


@pytest.mark.parametrize("path", [*FILES, *RUNTIME_FILES], ids=lambda p: p.stem)
def test_every_file_opens_with_what_it_is_for(path):
    module = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(module), f"{path.name} has no docstring"


# ── the first import ────────────────────────────────────────────────────────

HEAVY = [
    "IPython",
    "asyncio",
    "cloudpickle",
    "mentis_pool.executor",
    "msgspec",
    "rich",
    "starlette",
    "structlog",
    "tenacity",
    "urllib3",
    "uvicorn",
    "websocket",
    "websockets",
]


def test_the_package_alone_imports_nothing_heavy():
    loaded = run("import sys, mentis_pool; print('\\n'.join(sys.modules))").split()
    assert not set(HEAVY) & set(loaded)


def test_the_executor_imports_nothing_of_the_runtimes_side():
    # The runtime is another process: what it needs is imported there.
    code = "import sys; from mentis_pool import SandboxExecutor; print('\\n'.join(sys.modules))"
    loaded = set(run(code).split())
    theirs = {"IPython", "uvicorn", "starlette", "websockets"}
    assert not (theirs | {"cloudpickle", "urllib3"}) & loaded
    assert "websocket" in loaded, "the test looks at the right names"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_can_be_imported_alone(name):
    run(f"import mentis_pool.{name}")


# ── the public names ────────────────────────────────────────────────────────

PUBLIC = {
    "__version__",
    "BrokenSandboxPool",
    "CallFuture",
    "CellError",
    "CellFuture",
    "CellResult",
    "CellTimeout",
    "ConcurrentTask",
    "Cut",
    "DeadlineExceeded",
    "IsolationWarning",
    "Wall",
    "Display",
    "End",
    "Error",
    "Limits",
    "MentisPoolError",
    "MentisSandbox",
    "Opaque",
    "OutcomeUnknown",
    "Part",
    "PayloadError",
    "ProtocolError",
    "QueueFull",
    "QueueTimeout",
    "ResourceLimitExceeded",
    "Result",
    "RuntimeRejected",
    "RuntimeUnavailable",
    "SandboxDied",
    "SandboxError",
    "SandboxExecutor",
    "SandboxUsage",
    "Session",
    "Space",
    "SpaceManager",
    "Start",
    "StateLost",
    "Stream",
    "Usage",
    "sandbox_session",
}


def test_these_are_the_public_names():
    assert set(mentis_pool.__all__) == PUBLIC
    assert len(mentis_pool.__all__) == len(PUBLIC)


def test_every_error_is_public():
    from mentis_pool import errors

    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MentisPoolError)
    }
    assert {name for name in defined if not name.startswith("_")} <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_there_and_is_itself(name):
    assert name in dir(mentis_pool)
    value = getattr(mentis_pool, name)
    if isinstance(value, type):
        assert value.__name__ == name
        assert getattr(sys.modules[value.__module__], name) is value
        assert getattr(mentis_pool, name) is value


def test_a_type_checker_is_told_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    told = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in node.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert told | {"__version__"} == PUBLIC


def test_all_public_names_can_be_imported_at_once():
    code = "from mentis_pool import *; print(' '.join(sorted(set(dir()) & set(__all__))))"
    assert set(run("from mentis_pool import __all__; " + code).split()) == PUBLIC


def test_there_is_no_other_name():
    with pytest.raises(AttributeError, match="module 'mentis_pool' has no attribute 'nothing'"):
        mentis_pool.nothing  # noqa: B018 - looking is what is tested
    with pytest.raises(ImportError):
        from mentis_pool import nothing  # noqa: F401


def test_the_version_is_one():
    assert run("from mentis_pool._version import __version__; print(__version__, end='')") == (
        mentis_pool.__version__
    )


def test_the_package_says_that_it_is_typed():
    assert os.path.exists(PACKAGE / "py.typed")
