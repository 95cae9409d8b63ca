"""Which names files may have, which are asked for, and how much of them is taken."""

from __future__ import annotations

import io
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool import files
from mentis_pool.files import (
    LEFT,
    MAX_NAME,
    PIECE,
    Bound,
    Fetched,
    Patterns,
    check_environment,
    check_name,
    check_names,
    is_plain,
)
from mentis_pool.observations import File, Left, LeftKind

# ── names ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a", "a/b.csv", ".hidden", "a..b", "...", "é/ü", "a b\n", "~"])
def test_a_name_below_the_directory_is_one(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./a", "a//b", "a/", "a\0b"],
)
def test_a_name_that_leads_elsewhere_is_none(name):
    with pytest.raises(ValueError, match="must be relative"):
        check_name(name)


def test_a_name_has_an_encoding_and_a_length():
    with pytest.raises(ValueError, match=r"'\\udcff' .* no UTF-8"):
        check_name("\udcff")
    check_name("é" * (MAX_NAME // 2))
    with pytest.raises(ValueError, match=f"it has {MAX_NAME + 2} bytes"):
        check_name("é" * (MAX_NAME // 2 + 1))


def test_what_is_a_file_has_none_in_it():
    check_names(["a/b", "a/c", "ab", "a/d/e"])
    with pytest.raises(ValueError, match="'a' cannot be a file and have 'a/b/c' in it"):
        check_names(["a/b/c", "a"])
    with pytest.raises(ValueError, match="relative"):
        check_names(["a", "../a"])


def test_there_are_not_too_many(monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 2)
    check_names(["a", "b"])
    with pytest.raises(ValueError, match="3 files are over the limit of 2"):
        check_names(["a", "b", "c"])


def test_what_cannot_be_in_an_environment_is_refused():
    check_environment({"A": "", "é": "ü=\n"})
    for wrong in ({"": "a"}, {"A=": "a"}, {"A": "a\0"}, {"\0": "a"}):
        with pytest.raises(ValueError, match="cannot be set in the environment: a name"):
            check_environment(wrong)
    with pytest.raises(ValueError, match="'A' cannot be set in the environment: no UTF-8"):
        check_environment({"A": "\ud800"})


# ── patterns ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a", ["a"], ["b", "a/a", "aa", "A"]),
        ("*.png", ["a.png", ".png"], ["a.jpg", "out/a.png"]),
        ("out/*.png", ["out/a.png"], ["a.png", "out/b/a.png", "in/a.png", "out"]),
        ("?/[ab]", ["x/a", "x/b"], ["x/c", "xy/a"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("**/c", ["c", "a/c", "a/b/c"], ["a", "c/a"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/b/c", "a/c/c"], ["c", "b/c", "a/b"]),
        ("**/b/**/*.c", ["b/x.c", "a/b/x.c", "b/a/b/x.c"], ["x.c", "a/x.c", "b/x.d"]),
        ("a**/b", ["a/b", "ax/b"], ["a/x/b"]),
    ],
)
def test_a_pattern_matches_part_by_part(pattern, yes, no):
    patterns = Patterns([pattern])
    assert [name for name in [*yes, *no] if patterns.match(name)] == yes


def test_a_name_is_asked_for_where_one_of_the_patterns_does():
    patterns = Patterns(["a/*", "b"])
    assert [n for n in ("a/x", "b", "a", "b/x") if patterns.match(n)] == ["a/x", "b"]
    assert not Patterns([]).match("a")


def test_only_directories_that_may_have_something_are_gone_into():
    patterns = Patterns(["a/*/c", "d"])
    below = patterns.step(patterns.start, "a")
    assert patterns.go_on(patterns.start)
    assert patterns.go_on(below)
    assert patterns.go_on(patterns.step(below, "x"))
    assert not patterns.go_on(patterns.step(patterns.start, "b"))
    assert not patterns.go_on(patterns.step(patterns.start, "d"))
    deep = Patterns(["**/x"])
    assert deep.go_on(deep.step(deep.start, "any"))


def test_no_pattern_takes_long():
    patterns = Patterns(["**/" * 30 + "x", "*a" * 30 + "b"])
    assert not patterns.match("/".join(["a" * 5] * 300))
    assert not patterns.match("a" * 250)


def test_a_plain_name_has_no_signs():
    assert is_plain("out/a.b")
    assert not any(map(is_plain, ("*", "a?", "[a]", "**/a")))


# ── what comes back ─────────────────────────────────────────────────────────


def whole(name, data=b""):
    return File(name, data, True)


def test_files_come_one_after_the_other_in_pieces():
    bound = Bound(["*"])
    full = bytes(PIECE)
    for piece in (whole("a"), File("b", full, False), whole("b", b"x"), whole("c", full)):
        assert bound.wrong(piece) is None


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([whole("../a")], "must be relative"),
        ([whole("/a")], "must be relative"),
        ([whole("a\0")], "must be relative"),
        ([whole("b/c")], "'b/c' was not asked for"),
        ([whole("a"), whole("a")], "'a' was not asked for"),
        ([File("a", bytes(PIECE), False), whole("b")], "'a' has no end"),
        ([File("a", b"", False)], "'a' has 0 bytes"),
        ([whole("a", bytes(PIECE + 1))], f"'a' has {PIECE + 1} bytes"),
    ],
)
def test_what_is_not_believed(pieces, reason):
    bound = Bound(["*"])
    *before, last = pieces
    assert [bound.wrong(piece) for piece in before] == [None] * len(before)
    assert reason in bound.wrong(last)


def test_all_files_together_have_a_limit(monkeypatch):
    monkeypatch.setattr(files, "MAX_FETCHED", 10)
    bound = Bound(["*"])
    assert bound.wrong(whole("a", b"12345")) is None
    assert bound.wrong(whole("b", b"12345")) is None
    assert bound.wrong(whole("c")) is None
    assert "'d' is over the limit" in bound.wrong(whole("d", b"1"))


def test_so_do_their_number_and_that_of_what_is_left_out(monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 2)
    bound = Bound(["*"])
    assert [bound.wrong(whole(n)) for n in "ab"] == [None, None]
    assert "more files" in bound.wrong(whole("c"))
    assert [bound.wrong(Left(n, "link")) for n in "ab"] == [None, None]
    assert "left out more" in bound.wrong(Left("c", "link"))
    assert "left out more" in Bound(["*"]).wrong(Left("x" * (MAX_NAME + 1), "link"))


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 20))
def test_files_are_put_together_from_their_pieces(contents, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE", piece)
        fetched = Fetched(["*"])
        for number, content in enumerate(contents):
            for at in range(0, len(content) + 1, piece):
                data = content[at : at + piece]
                fetched.take(File(str(number), data, len(data) < piece))
        fetched.end()
    assert fetched.wrong is None
    assert list(fetched.files.values()) == contents
    assert fetched.left == {}


names = st.text(st.sampled_from("ab/.*\0\\\n é"), max_size=6)


@given(
    st.lists(st.sampled_from(["*", "a", "**/b", "a/*", "[ab"]), max_size=3),
    st.lists(
        st.builds(File, names, st.binary(max_size=9), st.booleans())
        | st.builds(Left, names, st.sampled_from(get_args(LeftKind))),
        max_size=8,
    ),
)
def test_whatever_is_said_of_files_gives_none_that_was_not_asked_for(patterns, said):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE", 4)
        fetched = Fetched(patterns)
        for each in said:
            fetched.take(each)
        fetched.end()
    for name in fetched.files:
        assert Patterns(patterns).match(name)
        assert not {"", ".", ".."} & set(name.split("/"))


def test_a_file_is_given_out_without_being_copied(monkeypatch):
    """It is what keeps a large one from being in memory twice."""
    made = []

    class Watched(io.BytesIO):
        def getvalue(self):
            made.append(super().getvalue())
            assert made[-1] is super().getvalue(), "the buffer itself"
            return made[-1]

    monkeypatch.setattr(io, "BytesIO", Watched)
    fetched = Fetched(["*"])
    fetched.take(File("a", bytes(PIECE), False))
    fetched.take(whole("a", b"end"))
    assert fetched.files["a"] is made[0]
    assert fetched.files["a"] == bytes(PIECE) + b"end"


def test_what_is_left_out_is_said_with_its_reason():
    fetched = Fetched(["*"])
    for kind in get_args(LeftKind):
        fetched.take(Left(kind, kind))
    assert fetched.left == LEFT
    assert set(get_args(LeftKind)) == set(LEFT)


def test_a_file_without_an_end_is_left_out():
    fetched = Fetched(["*"])
    fetched.take(whole("a", b"a"))
    fetched.take(File("b", bytes(PIECE), False))
    assert fetched.files == {"a": b"a"}
    fetched.end()
    assert fetched.left == {"b": LEFT["stopped"]}


def test_after_what_is_not_believed_nothing_is():
    fetched = Fetched(["a"])
    fetched.take(whole("b"))
    fetched.take(whole("a"))
    fetched.take(Left("c", "link"))
    assert fetched.files == fetched.left == {}
    assert "'b' was not asked for" in fetched.wrong
