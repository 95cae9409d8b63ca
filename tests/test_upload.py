"""Files are read as they are wanted, a piece at a time; what cannot be read is named."""

from __future__ import annotations

import os

import pytest

from mentis_pool import upload as module
from mentis_pool.files import PIECE
from mentis_pool.pool_stream import Piece, Put
from mentis_pool.upload import Upload


def all_of(upload):
    puts = [upload.next()]
    while not puts[-1].last:
        assert puts[-1].failed is None
        puts.append(upload.next())
    return puts


def files_of(puts):
    files, begun = [], b""
    for piece in (piece for put in puts for piece in put.pieces):
        begun += piece.data
        if piece.last:
            files.append(begun)
            begun = b""
    assert begun == b""
    return files


def test_small_files_go_together():
    assert all_of(Upload(7, {"a": b"1", "b": b"", "c": b"3"})) == [
        Put(7, [Piece(b"1", True), Piece(b"", True), Piece(b"3", True)], last=True)
    ]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_a_file_comes_whole_whatever_its_size(size, kind, tmp_path):
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    given = content if kind == "bytes" else str(tmp_path / "f")
    puts = all_of(Upload(7, {"a": given, "b": b"next"}))
    assert files_of(puts) == [content, b"next"]
    assert all(len(piece.data) <= PIECE for put in puts for piece in put.pieces)
    assert all(sum(len(p.data) for p in put.pieces) < 2 * PIECE for put in puts)


def test_so_many_go_together_at_most(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    puts = all_of(Upload(7, dict.fromkeys("abc", b"")))
    assert [len(put.pieces) for put in puts] == [2, 1]


def test_nothing_is_read_before_it_is_wanted(tmp_path):
    path = tmp_path / "f"
    upload = Upload(7, {"first": bytes(PIECE), "second": str(path)})
    assert upload.next() == Put(7, [Piece(bytes(PIECE), False)])
    path.write_bytes(b"late")
    assert files_of([Put(7, [Piece(bytes(PIECE), False)]), *all_of(upload)])[1] == b"late"


def test_what_cannot_be_read_is_named_with_the_reason(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (
        ("none", "No such file"),
        ("fifo", "no regular file"),
        (".", "Is a directory"),
    ):
        path = str(tmp_path / name)
        put = Upload(7, {"data.csv": path}).next()
        assert put.pieces == []
        assert f"'data.csv' cannot be read from {path!r}" in put.failed
        assert reason in put.failed


def test_all_together_have_a_limit(monkeypatch):
    monkeypatch.setattr(module, "MAX_RUN", 10)
    assert Upload(7, {"a": bytes(5), "b": bytes(5)}).next().failed is None
    put = Upload(7, {"a": bytes(5), "b": bytes(6)}).next()
    assert "'b' is over the limit of 10 bytes" in put.failed


def test_a_file_that_is_not_read_to_its_end_is_closed(tmp_path):
    (tmp_path / "f").write_bytes(bytes(2 * PIECE))
    before = len(os.listdir("/proc/self/fd"))
    upload = Upload(7, {"a": str(tmp_path / "f")})
    upload.next()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del upload
    assert len(os.listdir("/proc/self/fd")) == before
