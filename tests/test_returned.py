"""What a call returned or raised, as bytes: what travels, and the name of what does not."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import enum
import functools
import pickle
import threading
import urllib.parse

import pytest
from forged import read, there_and_back

from mentis_pool.errors import PayloadError
from mentis_pool.returned import pack_exception, pack_value

HERE = __name__


class Gives:
    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce__(self):
        if isinstance(self.reduced, BaseException):
            raise self.reduced
        return self.reduced

    def local(self):
        pass


class Silent(Exception):
    def __str__(self):
        raise ValueError


def local():
    def inner():
        pass

    return inner


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "x", b"x", bytearray(b"x")])
def test_the_simplest_are_their_own_pickle(value):
    assert pack_value(value) == pickle.dumps(value, 5)


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        (n for n in ()),
        lambda: 1,
        local(),
        [].append,
        Gives(ValueError("not me")),
        Gives(Silent()),
        Gives(ValueError()),
        Gives("NAME"),
        Gives(5),
        Gives(()),
        Gives((dict, (), None, None, None, setattr)),
        Gives((dict, (), None, None, None, None, None)),
    ],
    ids=str,
)
def test_what_cannot_travel_is_named_with_its_reason(value):
    with pytest.raises(PayloadError, match=r"^the result \(.+\) cannot travel from the sandbox: ."):
        pack_value(value)
    with pytest.raises(PayloadError, match=r"^the result \(list\) cannot travel"):
        pack_value([value])
    with pytest.raises(PayloadError, match=r"^the exception \(ValueError\) cannot travel"):
        pack_exception(ValueError(value))


def test_what_leaves_while_it_is_pickled_is_let_through():
    # As from the call itself: it is what the call raised.
    with pytest.raises(SystemExit):
        pack_value(Gives(SystemExit(5)))


def test_ctrl_c_is_let_through():
    with pytest.raises(KeyboardInterrupt):
        pack_value(Gives(KeyboardInterrupt()))


def test_a_function_is_written_by_its_name_and_a_partial_by_its_function():
    assert b"there_and_back" in pack_value(there_and_back)
    assert b"there_and_back" in pack_value(functools.partial(there_and_back, 1))
    for value in (there_and_back, functools.partial(there_and_back, 1), Gives((Gives, ())).local):
        with pytest.raises(PayloadError, match="not trusted"):
            there_and_back(value, HERE, "forged", "functools", "builtins")


class Shade(enum.Flag):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: object


class Keyword(Point):
    def __new__(cls, *, x):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"x": self.x}


class Old:
    def __reduce__(self):
        return object.__reduce__(self)


class OldInt(int):
    def __reduce__(self):
        return copyreg._reduce_ex(self, 1)


class AddedError(OSError):
    def __init__(self, path):
        super().__init__(2, "no", path)
        self.path = path


class ReducedError(ValueError):
    def __reduce__(self):
        return ReducedError, ("again",)


def test_an_instance_is_written_as_its_class_says():
    for value in (Point([1]), Keyword(x=1), OldInt(5), Shade.RED, Shade.RED | Shade.BLUE):
        back = there_and_back([value, value], HERE)
        assert back[0] is back[1]
        assert type(back[0]) is type(value)
        assert back[0] == value
    assert type(there_and_back(Old(), HERE)) is Old
    assert there_and_back([Point, ..., NotImplemented], HERE) == [Point, ..., NotImplemented]


def test_what_is_on_a_list_is_written_as_the_list_says():
    for value in (datetime.date(2024, 2, 29), urllib.parse.urlsplit("http://a/b")):
        assert there_and_back(value) == value
    np = pytest.importorskip("numpy")
    assert there_and_back(np.arange(3)).tolist() == [0, 1, 2]


def test_an_exception_is_written_without_its_constructor():
    exc = AddedError("file")
    back = there_and_back_exception(exc)
    assert type(back) is AddedError
    assert (back.args, back.filename, back.path) == (exc.args, "file", "file")
    assert there_and_back_exception(ValueError(1)).args == (1,)


def test_an_exception_that_says_itself_how_it_is_pickled_is_asked():
    assert there_and_back_exception(ReducedError("first")).args == ("again",)


def there_and_back_exception(exc):
    return read(pack_exception(exc), HERE)


class Registered:
    def __init__(self, x):
        self.x = x


def test_a_reducer_that_was_registered_is_asked():
    copyreg.pickle(Registered, lambda value: (Registered, (value.x + 1,)))
    try:
        assert there_and_back(Registered(1), HERE).x == 2
    finally:
        del copyreg.dispatch_table[Registered]


class Counter(collections.Counter):
    """Has the name of a type of the standard library."""


def test_a_class_with_a_known_name_is_none_of_the_known():
    Counter.__module__, before = "collections", Counter.__module__
    try:
        assert b"Counter" in pack_value(Counter("a"))
        with pytest.raises(PayloadError):
            there_and_back(Counter("a"), HERE)
    finally:
        Counter.__module__ = before
    back = there_and_back(Counter("a"), HERE)
    assert type(back) is Counter
    assert back == Counter("a")
