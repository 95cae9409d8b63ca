"""A task's files in its worker: put where they belong, fetched as far as they may be."""

from __future__ import annotations

import os
import socket
import time

import pytest

from mentis_pool.files import LEFT, PIECE, Fetched
from mentis_pool.observations import File, Left
from mentis_pool.pool_stream import Piece
from mentis_pool.runtime import task_files
from mentis_pool.runtime.task_files import Environment, Fetching, NotPut, Putting


def put(directory, **files):
    putting = Putting(str(directory), list(files))
    for content in files.values():
        putting.take(Piece(content, True))
    return putting


def fetch(directory, *patterns, stopped=lambda: False):
    """What is fetched as the other side takes it, what is left out, and what was over a limit."""
    fetched = Fetched(patterns)
    over = Fetching(fetched.take, stopped).fetch(str(directory), patterns)
    fetched.end()
    assert fetched.wrong is None
    return fetched.files, fetched.left, over


# ── before ──────────────────────────────────────────────────────────────────


def test_a_file_is_there_with_all_its_pieces(tmp_path):
    putting = Putting(str(tmp_path), ["a", "new/deep/b"])
    for piece in (Piece(b"1", False), Piece(b"2", True), Piece(b"", True)):
        putting.take(piece)
    assert (tmp_path / "a").read_bytes() == b"12"
    assert (tmp_path / "new/deep/b").read_bytes() == b""


def test_a_file_whose_end_does_not_come_is_closed_and_can_be_removed(tmp_path):
    before = os.listdir("/proc/self/fd")
    putting = Putting(str(tmp_path), ["a"])
    putting.take(Piece(b"1", False))
    for _ in range(2):
        putting.close()
    putting.remove()
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == []


def test_what_was_there_is_replaced_and_no_link_followed(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    (tmp_path / "b").write_text("longer than before")
    put(tmp_path, a=b"1", b=b"2")
    assert (tmp_path / "other").read_text() == "other"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "b").read_bytes() == b"2"


def test_what_cannot_be_put_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("")
    with pytest.raises(NotPut, match="'a' cannot be put into the sandbox: "):
        put(tmp_path, a=b"1")
    with pytest.raises(NotPut, match="'b/c' cannot be put into the sandbox: "):
        put(tmp_path, **{"b/c": b"1"})


def test_what_was_put_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "there").mkdir()
    putting = put(
        tmp_path, **{"a": b"", "gone": b"", "there/b": b"", "new/c": b"", "used/d": b"", "odd": b""}
    )
    (tmp_path / "gone").unlink()
    (tmp_path / "used/kept").write_text("")
    (tmp_path / "odd").unlink()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/kept").write_text("")
    putting.remove()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == ["odd", "odd/kept", "there", "used", "used/kept"]


def test_variables_are_set_and_then_as_they_were(monkeypatch):
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("NEW", raising=False)
    environment = Environment({"KEPT": "now", "NEW": ""})
    assert (os.environ["KEPT"], os.environ["NEW"]) == ("now", "")
    os.environ["ANOTHER"] = "1"
    environment.restore()
    assert (os.environ["KEPT"], os.environ.get("NEW")) == ("before", None)
    assert os.environ.pop("ANOTHER") == "1"


def test_a_time_zone_counts_at_once(monkeypatch):
    monkeypatch.delenv("TZ", raising=False)
    before = time.tzname
    environment = Environment({"TZ": "XYZ-5"})
    assert time.tzname[0] == "XYZ"
    environment.restore()
    assert time.tzname == before


# ── after ───────────────────────────────────────────────────────────────────


def test_what_matches_comes_and_nothing_else(tmp_path):
    for name in ("a.txt", "b.png", "out/c.png", "out/deep/d.png", "other/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert fetch(tmp_path, "*.txt", "out/**/*.png") == (
        {n: n.encode() for n in ("a.txt", "out/c.png", "out/deep/d.png")},
        {},
        None,
    )
    assert fetch(tmp_path, "out") == ({}, {"out": LEFT["missing"]}, None)
    assert fetch(tmp_path) == ({}, {}, None)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_a_file_comes_whole_whatever_its_size(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    files, _, _ = fetch(tmp_path, "a")
    assert files == {"a": content}


def test_a_file_that_was_asked_for_by_name_and_is_not_there_is_said(tmp_path):
    assert fetch(tmp_path, "a", "b/c", "*.png")[1] == dict.fromkeys(("a", "b/c"), LEFT["missing"])


def test_links_and_what_is_no_file_are_left_out(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/s").write_text("secret")
    work = tmp_path / "work"
    work.mkdir()
    (work / "a").symlink_to(tmp_path / "secret/s")
    (work / "broken").symlink_to("nowhere")
    (work / "d").symlink_to(tmp_path / "secret")
    (work / "loop").symlink_to(".")
    (work / "itself").symlink_to("itself")
    os.mkfifo(work / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        before = os.getcwd()
        os.chdir(work)
        try:
            sock.bind("sock")
        finally:
            os.chdir(before)
    link, special = LEFT["link"], LEFT["special"]
    everything = {
        **dict.fromkeys(("a", "broken", "d", "itself", "loop"), link),
        **dict.fromkeys(("fifo", "sock"), special),
    }
    assert fetch(work, "**") == ({}, everything, None)
    assert fetch(work, "d/*") == ({}, {"d": link}, None)
    assert fetch(work, "i*/s") == ({}, {}, None)
    assert fetch(work, "d/s") == ({}, {"d": link, "d/s": LEFT["missing"]}, None)


def test_a_file_that_turned_into_a_link_or_a_pipe_meanwhile_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "b")
    # What the walk saw was a file still.
    monkeypatch.setattr(task_files, "_wrong", lambda name, entry: None)
    assert fetch(tmp_path, "*")[:2] == (
        {},
        {"a": LEFT["unreadable"], "b": LEFT["special"]},
    )


def test_what_cannot_be_read_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "a").write_text("")
    real = os.scandir

    def scandir(path):
        if path.endswith("/d"):
            raise PermissionError(13, "no")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert fetch(tmp_path, "**") == ({"a": b""}, {"d": LEFT["unreadable"]}, None)


def test_a_name_that_cannot_travel_is_said_as_well_as_can_be(tmp_path):
    open(os.path.join(os.fsencode(tmp_path), b"\xff"), "w").close()
    assert fetch(tmp_path, "*") == ({}, {"\\udcff": LEFT["name"]}, None)


def test_a_name_that_is_too_long_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(task_files, "MAX_NAME", 16)
    (tmp_path / ("x" * 20)).write_text("")
    said = []
    Fetching(said.append).fetch(str(tmp_path), ["*"])
    assert said == [Left("xxxx", "name")]


def test_what_is_over_the_limit_is_named_and_smaller_files_still_come(tmp_path, monkeypatch):
    monkeypatch.setattr(task_files, "MAX_FETCHED", 10)
    for name, size in (("a", 4), ("b", 7), ("c", 6), ("d", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    files, left, over = fetch(tmp_path, "*")
    assert list(files) == ["a", "c"]
    assert left == dict.fromkeys("bd", LEFT["large"])
    assert over == f"the file 'b' is not fetched: {LEFT['large']}"


def test_what_are_too_many_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(task_files, "MAX_FILES", 2)
    for name in "abcd":
        (tmp_path / name).write_text("")
    files, left, over = fetch(tmp_path, "*")
    assert (list(files), left) == (["a", "b"], {"c": LEFT["many"]})
    assert over == f"the file 'c' is not fetched: {LEFT['many']}"


def test_no_more_is_left_out_than_may_be_said(tmp_path, monkeypatch):
    monkeypatch.setattr(task_files, "MAX_FILES", 2)
    for name in "abcd":
        (tmp_path / name).symlink_to("x")
    assert list(fetch(tmp_path, "*")[1]) == ["a", "b"]


def test_when_it_is_stopped_the_rest_is_left_out(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("")
    answers = iter([False, True])
    assert fetch(tmp_path, "*", stopped=lambda: next(answers)) == (
        {"a": b""},
        {"b": LEFT["stopped"]},
        None,
    )


def test_of_a_file_that_grows_as_much_comes_as_there_was(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(PIECE + 5))
    said = []

    def say(piece):
        said.append(piece)
        with open(path, "ab") as file:
            file.write(bytes(PIECE))

    Fetching(say).fetch(str(tmp_path), ["a"])
    assert said == [File("a", bytes(PIECE), False), File("a", bytes(5), True)]


def test_a_deep_tree_is_walked(tmp_path):
    deep = tmp_path
    for _ in range(200):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x").write_text("x")
    files, _, _ = fetch(tmp_path, "**/x")
    assert list(files.values()) == [b"x"]
