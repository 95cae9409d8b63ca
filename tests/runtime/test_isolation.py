"""What a sandbox sees of the environment, and that nothing stays in its directories."""

from __future__ import annotations

import os
import stat

import pytest

from mentis_pool.runtime.isolation import (
    empty,
    environment,
    prepare,
    remove,
    sandbox_environment,
)

THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def tree(directory):
    return sorted(
        os.path.relpath(os.path.join(d, n), directory)
        for d, ds, fs in os.walk(directory)
        for n in ds + fs
    )


@pytest.fixture
def sandbox(tmp_path):
    directory = tmp_path / "s"
    directory.mkdir(mode=0o700)
    prepare(str(directory))
    return directory


# ── the environment ─────────────────────────────────────────────────────────


def test_nothing_is_inherited_that_is_not_named():
    secrets = {"AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root", "PYTHONPATH": "/x", "LD_PRELOAD": "x"}
    given = {**secrets, "PATH": "/bin", "TZ": "UTC", "LANG": "de_DE.UTF-8", "LC_ALL": "C"}
    made = environment(given, 2)
    assert not secrets.keys() & made.keys()
    assert "x" not in made.values()
    assert {name: made[name] for name in ("PATH", "TZ", "LANG", "LC_ALL")} == {
        "PATH": "/bin",
        "TZ": "UTC",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C",
    }


def test_an_empty_environment_is_enough():
    made = environment({}, 3)
    assert made["PATH"] == os.defpath
    assert made["LANG"] == "C.UTF-8"
    assert {made[name] for name in THREADS} == {"3"}
    assert all(type(v) is str for v in made.values())


@pytest.mark.parametrize("name", THREADS)
def test_the_number_of_threads_is_the_users_where_it_is_set(name):
    made = environment({name: "17"}, 1)
    assert made[name] == "17"
    assert [made[other] for other in THREADS].count("1") == len(THREADS) - 1


def test_what_was_given_is_not_changed():
    given = {"PATH": "/bin"}
    environment(given, 1)["PATH"] = "/other"
    assert given == {"PATH": "/bin"}


def test_every_path_of_a_sandbox_is_in_its_directory():
    made = sandbox_environment("/run/s")
    assert made == {"HOME": "/run/s/home", "TMPDIR": "/run/s/tmp", "PWD": "/run/s/work"}


# ── directories ─────────────────────────────────────────────────────────────


def test_the_directories_are_there_empty_and_private(sandbox):
    assert tree(sandbox) == ["home", "tmp", "work"]
    assert {mode(sandbox / name) for name in ("home", "tmp", "work")} == {0o700}
    for path in sandbox_environment(str(sandbox)).values():
        assert os.path.isdir(path)


def test_the_directories_of_a_sandbox_are_made_once(sandbox):
    with pytest.raises(FileExistsError):
        prepare(str(sandbox))


def test_the_umask_does_not_open_them(tmp_path):
    before = os.umask(0)
    try:
        prepare(str(tmp_path))
    finally:
        os.umask(before)
    assert {mode(tmp_path / name) for name in ("home", "tmp", "work")} == {0o700}


def test_empty_directories_stay_the_same(sandbox):
    before = os.stat(sandbox / "work").st_ino
    empty(str(sandbox))
    assert os.stat(sandbox / "work").st_ino == before


@pytest.mark.parametrize("name", ["home", "tmp", "work"])
def test_whatever_a_cell_left_is_removed(sandbox, name):
    place = sandbox / name
    (place / "file").write_text("x")
    (place / ".hidden").write_text("x")
    (place / os.fsdecode(b"\xff\n-rf")).write_text("x")
    (place / "sub" / "sub").mkdir(parents=True)
    (place / "read-only").mkdir()
    (place / "read-only" / "file").write_text("x")
    (place / "read-only" / "file").chmod(0)
    (place / "read-only").chmod(0o500)
    (place / "closed").mkdir(mode=0)
    os.mkfifo(place / "fifo")
    os.symlink("/", place / "root")
    os.symlink("loop", place / "loop")
    empty(str(sandbox))
    assert tree(sandbox) == ["home", "tmp", "work"]
    assert mode(place) == 0o700


def test_a_directory_that_was_removed_is_there_again(sandbox):
    os.rmdir(sandbox / "work")
    empty(str(sandbox))
    assert tree(sandbox) == ["home", "tmp", "work"]
    assert mode(sandbox / "work") == 0o700


def test_what_was_put_in_the_place_of_a_directory_is_replaced(sandbox):
    os.rmdir(sandbox / "work")
    (sandbox / "work").write_text("a file")
    os.rmdir(sandbox / "tmp")
    os.mkfifo(sandbox / "tmp")
    empty(str(sandbox))
    assert all(os.path.isdir(sandbox / name) for name in ("home", "tmp", "work"))


@pytest.mark.parametrize("to", ["outside", "."])
def test_a_link_in_the_place_of_a_directory_is_not_followed(sandbox, tmp_path, to):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    os.rmdir(sandbox / "work")
    os.symlink(outside if to == "outside" else to, sandbox / "work")
    (sandbox / "tmp" / "x").write_text("x")
    os.symlink(outside, sandbox / "tmp" / "link")
    empty(str(sandbox))
    assert (outside / "precious").read_text() == "x"
    assert not os.path.islink(sandbox / "work")
    assert tree(sandbox) == ["home", "tmp", "work"]


@pytest.mark.parametrize("changed", [0, 0o500, 0o777, 0o1777, 0o2700])
@pytest.mark.parametrize("full", [False, True])
def test_what_a_cell_did_to_the_permissions_is_undone(sandbox, changed, full):
    if full:
        (sandbox / "work" / "file").write_text("x")
    os.chmod(sandbox / "work", changed)
    empty(str(sandbox))
    assert mode(sandbox / "work") == 0o700
    assert tree(sandbox) == ["home", "tmp", "work"]


def test_a_file_beside_the_directories_is_removed_too(sandbox):
    # A cell begins in work: open("../left", "w") is as easy as open("left", "w").
    (sandbox / "left").write_text("x")
    empty(str(sandbox))
    assert tree(sandbox) == ["home", "tmp", "work"]


def deep(path, depth):
    """A tree deeper than Python's recursion and longer than PATH_MAX."""
    path.mkdir()
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 10, dir_fd=here)
        there = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)


def test_a_tree_of_any_depth_is_removed(tmp_path):
    deep(tmp_path / "deep", 1500)
    remove(str(tmp_path / "deep"))
    assert os.listdir(tmp_path) == []


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "precious").mkdir()
    os.symlink(tmp_path / "precious", tmp_path / "link")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    remove(str(tmp_path / "link"))
    remove(str(tmp_path / "dangling"))
    assert os.listdir(tmp_path) == ["precious"]


def test_what_is_not_there_needs_no_removing(tmp_path):
    remove(str(tmp_path / "nothing"))


@pytest.mark.skipif(not os.path.exists("/proc/self/comm"), reason="needs a file nobody can remove")
def test_what_cannot_be_removed_is_told():
    with pytest.raises(OSError, match="cannot remove /proc/self/comm: "):
        remove("/proc/self/comm")


def test_what_cannot_be_removed_without_permission_is_told(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may remove anything")
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "file").write_text("x")
    (tmp_path / "parent").chmod(0o500)
    try:
        with pytest.raises(OSError, match="cannot remove"):
            remove(str(tmp_path / "parent" / "file"))
    finally:
        (tmp_path / "parent").chmod(0o700)
