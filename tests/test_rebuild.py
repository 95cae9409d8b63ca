"""What may be rebuilt from a sandbox's bytes, and that nothing else happens, whatever they say."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import enum
import fractions
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import traceback
import types
from typing import NamedTuple

import pytest
from forged import Ask, cls, forge, read, there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st
from test_opcodes import plain, unhurried

from mentis_pool import boxes, errors
from mentis_pool.errors import PayloadError
from mentis_pool.payload import pack_call
from mentis_pool.rebuild import rebuild
from mentis_pool.returned import pack_exception, pack_value
from mentis_pool.trust import Trust

HERE = __name__
RAN: list[object] = []
"""What a forgery would write into."""


@pytest.fixture(autouse=True)
def nothing_ran():
    before, module = attributes(), dict(globals())
    RAN.clear()
    yield
    assert not RAN
    assert attributes() == before
    assert globals() == module


def attributes():
    """Of every class here; but for what pickling itself leaves in one."""
    return {
        name: {key: value for key, value in vars(found).items() if key != "__slotnames__"}
        for name, found in globals().items()
        if isinstance(found, type)
    }


def ran(*args, **kwargs):
    RAN.append(args)


class Point:
    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None

    @classmethod
    def extend(cls, items):
        RAN.append(items)

    append = add = extend

    class Inner:
        pass


class Slotted:
    __slots__ = ("_Slotted__hidden", "x")

    def __init__(self, x):
        self.x = x
        self.__hidden = -x

    def __eq__(self, other):
        return (self.x, self.__hidden) == (other.x, other.__hidden)

    __hash__ = None

    @property
    def setter(self):
        return self.x

    @setter.setter
    def setter(self, value):
        RAN.append(value)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object


class Pair(NamedTuple):
    left: object
    right: object


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Texts(list):
    pass


class Table(dict):
    pass


class Names(set):
    pass


class Bytes(bytes):
    pass


class Number(int):
    pass


class Missing(ImportError):
    pass


class Word(str):
    pass


class Share(fractions.Fraction):
    pass


class Row(tuple):
    pass


class Queue(collections.deque):
    pass


class Own:
    """Says itself how it is pickled."""

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return Own, (self.x,), {"more": 1}


class Stateful:
    def __init__(self):
        self.x = 1

    def __getstate__(self):
        return ("x", self.x)

    def __setstate__(self, state):
        self.x = state[1]


class Keyword:
    def __new__(cls, *, x):
        made = super().__new__(cls)
        made.x = x
        return made

    def __getnewargs_ex__(self):
        return (), {"x": self.x}


class Old:
    def __reduce__(self):
        return object.__reduce__(self)


class OldInt(int):
    def __reduce__(self):
        return copyreg._reduce_ex(self, 1)


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


class ItsModule(types.ModuleType):
    pass


class ItsOther:
    """Gives what was there before."""

    def __new__(cls):
        return Point


class Exits:
    def __setstate__(self, state):
        raise SystemExit(state)


class SaysNothing(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class RaisesWhatSaysNothing:
    def __setstate__(self, state):
        raise SaysNothing


class OwnName:
    pass


OwnName.__qualname__ = "MODULE_ATTRIBUTE.x"
MODULE_ATTRIBUTE = Point(1)
alias = os.system


# ── what comes back ─────────────────────────────────────────────────────────


@unhurried
@given(plain)
def test_plain_data_comes_back_as_it_was(value):
    assert picture(there_and_back(value)) == picture(value)


def picture(value):
    """A value as what is equal for equal values of equal types, in the same order."""
    if isinstance(value, (list, tuple)):
        return type(value), [picture(element) for element in value]
    if isinstance(value, dict):
        return type(value), [(picture(key), picture(value[key])) for key in value]
    return type(value), value


def test_plain_data_may_have_any_byte():
    for value in [bytes([n]) for n in range(256)]:
        assert there_and_back([value]) == [value]


def test_what_is_shared_stays_shared_and_cycles_stay_cycles():
    shared, cycle = [1], {}
    cycle["self"] = (cycle, shared)
    back, other = there_and_back([cycle, shared])
    assert back["self"][0] is back
    assert back["self"][1] is other


def test_a_tuple_in_itself_with_objects():
    point = Point(1)
    value = (point, [])
    value[1].append(value)
    point.y = value
    back = there_and_back(value, HERE)
    assert back[1][0] is back
    assert back[0].y is back


@pytest.mark.parametrize(
    "value",
    [
        Point(1, [2, Point(3)]),
        Slotted(5),
        Frozen((1, Frozen(2))),
        Pair(Point(1), [Pair(1, 2)]),
        Color.RED,
        [Color.BLUE, Color.BLUE],
        Access.READ | Access.WRITE,
        Access(0),
        Texts([1, Frozen(2)]),
        Table({1: Frozen(2)}),
        {Frozen(1): {Frozen(2)}},
        Names({1, Frozen(2)}),
        Bytes(b"x"),
        Number(5),
        OldInt(5),
        Point,
        Point.Inner,
        [Point, Point],
        collections.defaultdict(Point, {1: Point(2)}),
    ],
    ids=repr,
)
def test_an_object_of_the_callables_own_package_comes_back(value):
    back = there_and_back(value, HERE)
    assert back == value
    assert type(back) is type(value)


def test_objects_that_know_the_containers_they_are_in_come_back():
    first, second = Frozen(1), Frozen(2)
    for made in ([first, second], {first: second, second: first}, {first, second}):
        owner = Point(made)
        if isinstance(made, list):
            made[:] = [owner, second, (second, [owner])]
        elif isinstance(made, dict):
            made.update(owner=owner, other=second, more=[Frozen(3)])
        back = there_and_back([owner, made, Frozen(4)], HERE)
        assert back[0].x is back[1]
        assert len(back[1]) == len(made)
        assert "_Box" not in repr(back)
    # Each of a family knows all.
    family = [Point(n) for n in range(5)]
    for one in family:
        one.y = {"all": family, "by": dict(enumerate(family))}
    back = there_and_back(family, HERE)
    assert all(one.y["all"] is back for one in back)
    assert [one.x for one in back[3].y["by"].values()] == list(range(5))


@pytest.mark.parametrize("make", [lambda: Slotted(1), Stateful, lambda: Point(1)])
def test_an_object_of_any_state_may_know_its_list(make):
    made = make()
    made.x = [made, Frozen(2)]
    for back in (there_and_back(made, HERE), there_and_back(made.x, HERE)[0]):
        assert back.x[0] is back
        assert back.x[1] == Frozen(2)


def test_a_tuple_of_a_class_that_is_in_its_own_list_comes_back():
    inside: list[object] = [Frozen(1)]
    pair = Pair(inside, (inside, Frozen(2)))
    inside += [pair, Frozen(3)]
    back = there_and_back([pair], HERE)[0]
    assert back.left is back.right[0]
    assert back.left[1] is back
    assert back.left[::2] == [Frozen(1), Frozen(3)]


class Hashed(Point):
    """In a set that it knows."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def test_objects_that_know_the_sets_they_are_keys_of_come_back():
    members, keys = set(), {}
    for n in range(5):
        one = Hashed(members, keys)
        members.add(one)
        keys[one] = (n, one)
    back = there_and_back(members, HERE)
    assert {type(one) for one in back} == {Hashed}
    for one in back:
        assert one.x is back
        assert set(one.y) == back
        assert one.y[one][1] is one


def test_each_way_to_be_pickled_works():
    assert vars(there_and_back(Own(1), HERE)) == {"x": 1, "more": 1}
    assert there_and_back(Stateful(), HERE).x == 1
    assert there_and_back(Keyword(x=5), HERE).x == 5
    assert type(there_and_back(Old(), HERE)) is Old
    table = Texts([1])
    table.note = table
    assert (back := there_and_back(table, HERE)).note is back


def test_a_class_that_travelled_by_value_comes_back_by_name():
    def local():
        class Local:
            def __eq__(self, other):
                return type(other) is type(self)

        return Local

    ours = local()
    made = types.new_class("Made")
    made.__module__ = "no_such_module"
    call = pack_call(len, (ours(), made), {})
    theirs_instance, theirs_made = pickle.loads(call.pickled)[1]
    back = rebuild(pack_value([theirs_instance, theirs_made]), call, Trust.of(()))
    assert type(back[0]) is ours
    assert back[1] is made


def test_a_long_chain_of_objects_comes_back():
    chain = None
    for n in range(150):
        chain = Point(n, chain)
    back = there_and_back(chain, HERE)
    for n in reversed(range(150)):
        assert back.x == n
        back = back.y


def test_large_results_are_not_copied_to_pieces():
    assert there_and_back(b"x" * 10_000_000) == b"x" * 10_000_000


# ── exceptions ──────────────────────────────────────────────────────────────


class Picky(Exception):
    def __init__(self, code, *, why):
        RAN.append(code)
        super().__init__(f"{code}: {why}")
        self.code = code


class PickyDecode(UnicodeDecodeError):
    def __init__(self, text):
        super().__init__("utf-8", b"\xff", 0, 1, text)


class PickyValue(ValueError):
    def __init__(self):
        super().__init__(1, 2, 3)
        self.args = ("other", "arguments")


class PickySyntax(SyntaxError):
    def __init__(self):
        self.args = (1, 2)


class Reduced(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b

    def __reduce__(self):
        return Reduced, (self.args[0], self.b)


def error_there_and_back(exc, *packages, **kwargs):
    return read(pack_exception(exc), *packages, **kwargs)


BUILTIN_ERRORS = [
    ValueError("x", 1),
    KeyError("k"),
    StopIteration(5),
    SystemExit(3),
    KeyboardInterrupt(),
    OSError(2, "no", "file"),
    FileNotFoundError(2, "no", "file", None, "other"),
    BlockingIOError(11, "again", 5),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    UnicodeEncodeError("ascii", "ü", 0, 1, "bad"),
    SyntaxError("bad", ("file", 1, 2, "text", 1, 3)),
    ImportError("no", name="n", path="p"),
    MemoryError(),
    RecursionError("deep"),
    json.JSONDecodeError("bad", "doc", 1),
    subprocess.CalledProcessError(1, ["x"], b"out"),
    PayloadError("cannot travel"),
]
if sys.version_info >= (3, 11):
    BUILTIN_ERRORS.append(ExceptionGroup("both", [ValueError(1), KeyError(2)]))  # noqa: F821 - not in 3.10


@pytest.mark.parametrize("exc", BUILTIN_ERRORS, ids=repr)
def test_an_exception_comes_back_as_it_was(exc):
    back = error_there_and_back(exc)
    assert type(back) is type(exc)
    assert (repr(back), str(back)) == (repr(exc), str(exc))
    assert vars(back) == vars(exc)
    for name in (
        "errno",
        "filename",
        "filename2",
        "lineno",
        "name",
        "path",
        "value",
        "code",
        "end",
    ):
        assert getattr(back, name, None) == getattr(exc, name, None)


def test_an_exception_whose_constructor_takes_other_arguments_comes_back():
    exc = Picky(5, why="so")
    exc.note = [exc]
    RAN.clear()
    back = error_there_and_back(exc, HERE)
    assert (type(back), back.args, back.code) == (Picky, ("5: so",), 5)
    assert back.note == [back]
    back = error_there_and_back(PickyDecode("odd"), HERE)
    assert (str(back), back.start) == (str(PickyDecode("odd")), 0)
    assert error_there_and_back(PickyValue(), HERE).args == ("other", "arguments")
    assert error_there_and_back(PickySyntax(), HERE).args == (1, 2)


def test_an_exception_that_says_itself_how_it_is_pickled_is_made_so():
    back = error_there_and_back(Reduced("a", "b"), HERE)
    assert (back.args, back.b) == (("a",), "b")


def test_notes_stay_and_causes_go():
    try:
        raise ValueError(1) from KeyError(2)
    except ValueError as raised:
        exc = raised
    exc.__dict__["__notes__"] = ["while testing"]
    back = error_there_and_back(exc)
    assert back.__notes__ == ["while testing"]
    assert back.__cause__ is back.__context__ is back.__traceback__ is None


def test_what_a_newer_python_tells_of_an_attribute_error_is_kept():
    forged = Ask("exception", cls(AttributeError), ("x",), state={"name": "n", "args": ("y",)})
    back = read(forge(forged))
    assert (back.name, back.args) == ("n", ("y",))


@pytest.mark.parametrize(
    "ask",
    [
        Ask("exception", cls(int), ()),
        Ask("exception", "ValueError", ()),
        Ask("exception", cls(ValueError), Ask("range", 0, 10**10, 1)),
        Ask("exception", cls(SyntaxError), ("x", Ask("range", 0, 10**10, 1))),
        Ask("exception", cls(SyntaxError), ("x", Ask("ip", "IPv6Network", "::/0"))),
        Ask("exception", cls(ValueError), (), state={"args": Ask("range", 0, 10**10, 1)}),
        Ask("exception", cls(ValueError), (), state=[1]),
        Ask("exception", cls(ValueError), (), items=[1]),
        Ask("exception", cls(errors.SandboxDied), ("killed",)),
        Ask("exception", cls(errors.MentisPoolError), ()),
        Ask("call", cls(ValueError), (1,)),
        Ask("new", cls(json.JSONDecodeError), (1,), {}),
        Ask("exception", Ask("class", "subprocess", "Popen"), ()),
    ],
    ids=repr,
)
def test_a_forged_exception_is_refused(ask):
    with pytest.raises(PayloadError):
        read(forge(ask), HERE)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no exception groups")
@pytest.mark.parametrize("name", ["ExceptionGroup", "BaseExceptionGroup"])
@pytest.mark.parametrize(
    "content", [Ask("range", 0, 10**10, 1), Ask("ip", "IPv6Network", "::/0")], ids=repr
)
def test_a_group_of_endless_exceptions_is_refused(name, content):
    with pytest.raises(PayloadError):
        read(forge(Ask("exception", Ask("class", "builtins", name), ("x", content))))


@pytest.mark.parametrize("kind", ["exception", "new"])
def test_whoever_prints_an_import_error_imports_nothing(kind):
    told = {"name": "antigravity", "name_from": "x", "path": "/x", "msg": "m"}
    parts = (("x",),) if kind == "exception" else (("x",), {})
    back = read(forge(Ask(kind, cls(Missing), *parts, state=told)), HERE)
    assert (back.name, back.path) == ("antigravity", "/x")
    text = "".join(traceback.format_exception(type(back), back, None))
    assert "Missing" in text
    # From Python 3.12 on it looks there for a better name.
    assert "antigravity" not in sys.modules


def test_only_an_import_error_has_a_state_that_is_changed():
    told = {"name_from": "x"}
    for ask in (
        Ask("exception", cls(ValueError), (), state=told),
        Ask("new", cls(Point), (), {}, state=told),
    ):
        assert vars(read(forge(ask), HERE)) == told


def test_an_exceptions_dunders_stay_in_its_dict():
    forged = Ask("exception", cls(ValueError), (1,), state={"__class__": 5, "__cause__": 5})
    back = read(forge(forged))
    assert type(back) is ValueError
    assert back.__cause__ is None


# ── what does not ───────────────────────────────────────────────────────────


def test_an_unknown_type_is_named_with_the_remedy():
    with pytest.raises(PayloadError) as caught:
        there_and_back(Point(1))
    assert str(caught.value) == (
        "test_rebuild.Point came out of the sandbox and is not trusted; "
        "if it should be rebuilt here, name it: SandboxExecutor(trust=[…])"
    )


def test_of_a_function_it_is_the_package_that_has_to_be_trusted():
    with pytest.raises(PayloadError, match=r"name its package .*SandboxExecutor\(trust=\[…\]\)$"):
        there_and_back(ran, HERE)


def test_where_no_trust_would_help_something_else_is_advised():
    class Local:
        pass

    made, gone = {}, type("Gone", (), {"__module__": HERE})
    exec("class FromText: pass", made)
    for value, trust, name in [
        (Local(), (), f"{HERE}.{Local.__qualname__}"),
        (Local(), [Point], f"{HERE}.{Local.__qualname__}"),
        (Local(), [HERE], f"{HERE}.{Local.__qualname__}"),
        (made["FromText"](), (), "builtins.FromText"),
        (gone(), (), f"{HERE}.Gone"),
        (gone(), "all", f"{HERE}.Gone"),
        ([OwnName], (), f"{HERE}.MODULE_ATTRIBUTE.x"),
    ]:
        with pytest.raises(PayloadError) as caught:
            there_and_back(value, *([HERE] if trust == () else []), trust=trust)
        assert str(caught.value) == (
            f"{name} came out of the sandbox, and nothing here has that name: it was made there, "
            "or in a function. Return plain data in its place, or define it at the top level of a "
            "module that can be imported here too"
        )


class Runs:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "function", [os.system, ran, eval, subprocess.Popen, getattr, __import__, pickle.loads, Point]
)
def test_a_plain_pickle_calls_nothing(protocol, function, tmp_path):
    target = tmp_path / "ran"
    for value in (Runs(function, f"touch {target}"), [{"x": Runs(function, "1")}], function):
        with pytest.raises(PayloadError):
            read(pickle.dumps(value, protocol), HERE, "os", "subprocess", "posix", "builtins")
    assert not target.exists()


FUNCTION = Ask("function", HERE, "ran")
LONG = Ask("range", 0, 10**10, 1)
NETWORK = Ask("ip", "IPv6Network", "::/0")
HUGE = Ask("Decimal", "1E+999999999")
SHARED = []
for _ in range(40):
    SHARED = [SHARED, SHARED]  # as text, or gone through, it never ends

FORGED = {
    "function": FUNCTION,
    "function as class": Ask("class", HERE, "ran"),
    "function called": Ask("call", FUNCTION, (1,)),
    "text called": Ask("call", "x", (1,)),
    "object called": Ask("call", Ask("new", cls(Point), (), {}), (1,)),
    "method": Ask("class", HERE, "Point.extend"),
    "dunder": Ask("class", HERE, "Point.__init__"),
    "step over an object": Ask("class", HERE, "MODULE_ATTRIBUTE.__class__"),
    "module's import": Ask("class", HERE, "os"),
    "module's import of a class": Ask("class", HERE, "PayloadError"),
    "alias": Ask("class", HERE, "alias"),
    "instance": Ask("class", HERE, "MODULE_ATTRIBUTE"),
    "metaclass": Ask("class", HERE, "Meta"),
    "metaclass called": Ask("call", cls(Meta), ("x", (), {})),
    "type": Ask("class", "builtins", "type"),
    "name of another": Ask("class", HERE, "WithMeta.Point"),
    "no text": Ask("class", HERE, 5),
    "no module": Ask("class", 5, "x"),
    "no such": Ask("class", HERE, "NoSuch"),
    "empty": Ask("class", HERE, ""),
    "not imported": Ask("class", HERE + ".no_such", "x"),
    "antigravity": Ask("class", "antigravity", "x"),
    "Popen": Ask("call", cls(subprocess.Popen), (["touch", "x"],)),
    "Popen as a value": cls(subprocess.Popen),
    "Thread": Ask("new", cls(threading.Thread), (), {}),
    "enum called": Ask("call", cls(Color), (1,)),
    "enum made": Ask("call", cls(Color), ("New", {"A": 1})),
    "enum state": Ask("member", cls(Color), "RED", state={"_value_": 5}),
    "flags state": Ask("flags", cls(Access), 1, state={"_value_": 5}),
    "no member": Ask("member", cls(Color), "_member_map_"),
    "member of none": Ask("member", cls(Point), "x"),
    "other flags": Ask("flags", cls(Access), 1 << 60),
    "flags of none": Ask("flags", cls(Color), 1),
    "flags of text": Ask("flags", cls(Access), "x"),
    "state of a class": Ask("class", HERE, "Point", state={"x": 1}),
    "slots of a class": Ask("class", HERE, "Point", state=(None, {"x": 1})),
    "items of a class": Ask("class", HERE, "Point", items=[1, 2]),
    "item of a class": Ask("class", HERE, "Point", items=[1]),
    "pairs of a class": Ask("class", HERE, "Point", pairs=[(1, 2)]),
    "state of what was there": Ask("call", cls(ItsOther), (), state={"x": 1}),
    "items of what was there": Ask("call", cls(ItsOther), (), items=[1, 2]),
    "no attributes": Ask("new", cls(Point), (), {}, state=5),
    "attributes of numbers": Ask("new", cls(Point), (), {}, state={1: 2}),
    "__class__": Ask("new", cls(Point), (), {}, state=(None, {"__class__": cls(Pair)})),
    "property": Ask("new", cls(Slotted), (), {}, state=(None, {"setter": 5})),
    "size": Ask("new", cls(Bytes), (10**11,), {}),
    "size called": Ask("call", cls(Bytes), (10**11,)),
    "size by name": Ask("new", cls(Bytes), (), {"source": 10**11}),
    "endless": Ask("call", cls(Texts), (LONG,)),
    "endless new": Ask("new", cls(Row), (LONG,), {}),
    "endless arguments": Ask("call", cls(Point), LONG),
    "endless arguments new": Ask("new", cls(Point), NETWORK, {}),
    "endless network": Ask("call", cls(Texts), (NETWORK,)),
    "endless range of pandas": Ask(
        "call", cls(Texts), (Ask("pandas.RangeIndex", 0, 10**12, 1, None),)
    ),
    "endless chain": Ask("call", cls(Queue), (Ask("ChainMap", items=[LONG]),)),
    "endless set": Ask("call", cls(Names), (NETWORK,)),
    "endless dict": Ask("call", cls(Table), (NETWORK,)),
    "endless pair": Ask("call", cls(Table), ([NETWORK],)),
    "endless text": Ask("new", cls(Word), (SHARED,), {}),
    "huge number": Ask("call", cls(Number), (HUGE,)),
    "huge fraction": Ask("call", cls(Share), ("1E999999999",)),
    "huge offset": Ask("numpy.dtype", ([("x", None, "i4", HUGE)], 4, False)),
    "huge itemsize": Ask("numpy.dtype", ([("x", None, "i4", 0)], HUGE, False)),
    "endless flags": Ask("flags", cls(Access), SHARED),
    "endless member": Ask("member", cls(Color), SHARED),
    "endless safe": Ask("UUID", 1, SHARED),
    "endless storage": Ask("pandas.dtype", "StringDtype", SHARED, None),
    "endless closed": Ask("pandas.Interval", 1, 2, SHARED),
    "endless level": Ask(
        "pandas.MultiIndex",
        [Ask("pandas.RangeIndex", 0, 10**9, 1, None)],
        [Ask("numpy.array", "<i8", (0,), False, b"")],
        [None],
    ),
    "endless intervals": Ask(
        "pandas.array",
        Ask("pandas.dtype", "IntervalDtype", "int64", "left"),
        *[Ask("pandas.RangeIndex", 0, 10**9, 1, None)] * 2,
    ),
    "no arguments": Ask("new", cls(Point), 5, {}),
    "kind": Ask(5),
    "kind of none": Ask("no such kind"),
    "kind of numpy": Ask("numpy.no such kind"),
    "too few parts": Ask("class"),
    "exits": Ask("new", cls(Exits), (), {}, state=1),
    "says nothing": Ask("new", cls(RaisesWhatSaysNothing), (), {}, state=1),
}


@pytest.mark.parametrize("ask", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize(
    "around", [lambda ask: ask, lambda ask: {(1,): [ask]}, lambda ask: {"x": (ask,)}]
)
def test_a_forgery_is_refused_and_runs_nothing(ask, around):
    with pytest.raises(PayloadError):
        read(
            forge(around(ask)),
            HERE,
            "os",
            "posix",
            "subprocess",
            "threading",
            "builtins",
            "antigravity",
        )
    assert "antigravity" not in sys.modules


BOX = b"\x80\x05\x8c\x11mentis_pool.boxes\x8c\x03box\x93\x94"
POINT = BOX + b"\x8c\x05class\x8c\x0ctest_rebuild\x8c\x05Point\x87R"

BY_HAND = {
    "the name itself": BOX,
    "the name in a list": b"\x80\x05](" + BOX[2:] + b"e",
    "state of the name": BOX + b"}\x8c\x03log]sb",
    "slots of the name": BOX + b"N}\x8c\x03log]s\x86b",
    "items of the name": BOX + b"K\x01a",
    "pairs of the name": BOX + b"NNs",
    "the name twice": BOX + b"0" + BOX[2:],
    "no kind": BOX + b")R",
    "arguments that are none": BOX + b"NR",
    "slots of a class": POINT + b"N}\x8c\x06extendNs\x86b",
    "state of a class": POINT + b"}\x8c\x06extendNsb",
    "items of a class": POINT + b"(K\x01K\x02e",
    "elements of a class": POINT + b"(K\x01K\x02\x90",
    "pairs of a class": POINT + b"(K\x01K\x02u",
    "state of a number": b"K\x01}\x8c\x01xNsb",
    "state of a list": b"]}\x8c\x01xNsb",
    "class of a list": b"]N}\x8c\x09__class__Ns\x86b",
    "called list": b"])R",
    "called text": b"\x8c\x01x)R",
    "another name": b"\x8c\x02os\x8c\x06system\x93",
    "a name of ours": b"\x8c\x11mentis_pool.boxes\x8c\x05boxed\x93",
    "a box in itself": BOX + b"\x8c\x05slice]\x94NN\x87R\x94h\x01h\x02aR",
    "a state from later": BOX
    + b"\x8c\x0fSimpleNamespace\x85R}\x94\x8c\x01xNsb0h\x01\x8c\x01xh\x00\x8c\x04date\x85Rs",
    "slots from later": BOX
    + b"\x8c\x03new"
    + POINT[len(BOX) :]
    + b")}tR]\x94N}\x8c\x01xh\x01s\x86b",
    "a part from later": BOX + b"\x8c\x05slice]\x94NN(1t",
    "a name in that": b"\x8c\x11mentis_pool.boxes\x8c\x0fbox.__globals__\x93",
    "a name that is none": b"NN\x93",
}


@pytest.mark.parametrize("pickled", BY_HAND.values(), ids=BY_HAND)
def test_opcodes_by_hand_change_nothing(pickled):
    with pytest.raises(PayloadError):
        read(pickled + b".", HERE)


def test_a_name_from_copyregs_cache_is_not_given():
    copyreg.add_extension("os", "system", 0xF0)
    try:
        pickle.loads(pickle.dumps(os.system, 2).replace(b"cposix\nsystem\n", b"\x82\xf0"))
        with pytest.raises(PayloadError):
            read(b"\x80\x02\x82\xf0.")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("length", [*range(60), 200, 10**6, 1 << 40])
def test_a_frame_that_lies_hides_no_opcode(length):
    # The frame may end within a text; read on from there it would be a memo index of 2**31, …
    inner = b"Nr\x7f\x7f\x7f\x7f(cos\nsystem\n."
    text = b"\x8c" + bytes([len(inner)]) + inner
    pickled = b"\x80\x05\x95" + length.to_bytes(8, "little") + b"]" + text + b"a."
    try:
        back = read(pickled)
    except PayloadError:
        assert length > len(pickled) - 11
    else:
        assert back == [inner.decode()]


def test_nobody_calls_a_box():
    with pytest.raises(TypeError):
        boxes.box("class")


def test_a_name_is_shown_in_part():
    with pytest.raises(PayloadError) as caught:
        read(forge(Ask("class", "m" * 10**6, "n" * 10**6)))
    assert len(str(caught.value)) < 1000


def test_a_module_that_answers_for_any_name_is_not_asked():
    class Answers(types.ModuleType):
        def __getattr__(self, name):
            RAN.append(name)

    sys.modules["answers"] = Answers("answers")
    try:
        with pytest.raises(PayloadError):
            read(forge(Ask("class", "answers", "x")), "answers")
        sys.modules["answers"] = Point(1)
        with pytest.raises(PayloadError):
            read(forge(Ask("class", "answers", "x")), "answers")
    finally:
        del sys.modules["answers"]


def test_what_is_nested_too_deep_is_refused():
    ask = Ask("date", 2024, 1, 1)
    deep = b"\x80\x05" + b"](" * 10**5 + forge(ask)[11:-1] + b"e" * 10**5 + b"."
    with pytest.raises(PayloadError):
        read(deep)


def test_containers_with_objects_in_them_are_so_deep_and_no_deeper():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        for depth in (1999, 2001):
            deep = (
                b"\x80\x05" + b"](" * depth + forge(Ask("date", 2024, 1, 1))[11:-1] + b"e" * depth
            )
            if depth < 2000:
                assert type(read(deep + b".")) is list
            else:
                with pytest.raises(PayloadError, match="containers in each other"):
                    read(deep + b".")
    finally:
        sys.setrecursionlimit(limit)


def test_what_is_nested_too_deep_is_refused_whatever_pythons_own_limit():
    # In a process of its own: without a limit the C stack ends, and the process with it.
    script = """
import sys
sys.setrecursionlimit(10**6)
from mentis_pool.errors import PayloadError
from forged import Ask, forge, read
try:
    read(b"\\x80\\x05" + b"](" * 10**5 + forge(Ask("date", 2024, 1, 1))[11:-1] + b"e" * 10**5 + b".")
except PayloadError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "the value has more than 2000 containers in each other\n"


def test_numbers_and_texts_of_ones_own_classes_come_back():
    values = [Number(7), Word("x"), Share(1, 3), Row((1, range(3))), Queue([1]), Bytes(b"x")]
    values += [Pair(range(3), collections.ChainMap()), Table(x=range(3)), Texts([range(3)])]
    back = there_and_back(values, HERE)
    assert back == values
    assert list(map(type, back)) == list(map(type, values))


def test_attributes_are_given_to_what_may_have_them():
    for value in (types.SimpleNamespace(x=[Point(1)]), collections.OrderedDict(x=1)):
        value.more = value
        back = there_and_back([value], HERE)[0]
        assert vars(back).keys() == vars(value).keys()
        assert back.more is back


def test_an_instance_of_a_class_made_from_an_array_is_not_made():
    np = pytest.importorskip("numpy")

    class OwnArray(np.ndarray):
        pass

    classes = {(HERE, "OwnArray"): OwnArray}
    assert read(forge(Ask("class", HERE, "OwnArray")), classes=classes) is OwnArray
    with pytest.raises(PayloadError, match="OwnArray came out of the sandbox in no way that is"):
        read(forge(Ask("new", Ask("class", HERE, "OwnArray"), ((1,),), {})), classes=classes)


def test_a_module_of_ones_own_class_is_its_own():
    back = read(forge(Ask("call", cls(ItsModule), ("x",))), HERE)
    assert type(back) is ItsModule
    with pytest.raises(PayloadError):
        read(forge(Ask("call", cls(ItsModule), ("x",), state={"a": 1})), HERE)


# ── trust ───────────────────────────────────────────────────────────────────


def test_a_trusted_type_comes_back_and_nothing_else_of_its_package():
    assert there_and_back(Point(1), trust=[Point]) == Point(1)
    assert there_and_back(Color.RED, trust=[Color]) is Color.RED
    with pytest.raises(PayloadError, match="Slotted"):
        there_and_back([Point(1), Slotted(1)], trust=[Point])
    completed = subprocess.CompletedProcess([], 0)
    assert read(forge(Ask("new", cls(type(completed)), (), {})), trust=[type(completed)])


@pytest.mark.parametrize("trust", [[HERE], "all", ["x", HERE]])
def test_of_a_trusted_package_functions_come_back_too(trust):
    assert there_and_back([Point(1), ran, Point], trust=trust) == [Point(1), ran, Point]
    read(forge(Ask("call", Ask("function", HERE, "ran"), (1,))), trust=trust)
    assert RAN == [(1,)]
    RAN.clear()


def test_a_trusted_package_is_imported():
    sys.modules.pop("this_is_trusted", None)
    for trust, works in (("json", True), ("json.tool", True), ("json.tools", False)):
        ask = Ask("function", "json.tool", "main")
        if works:
            assert read(forge(ask), trust=[trust]).__name__ == "main"
        else:
            with pytest.raises(PayloadError):
                read(forge(ask), trust=[trust])
    with pytest.raises(PayloadError, match="ModuleNotFoundError"):
        read(forge(Ask("class", "no_such_module", "X")), trust="all")


def test_with_trust_in_a_package_its_lambdas_do_not_come():
    with pytest.raises(PayloadError):
        read(forge(Ask("function", HERE, "MODULE_ATTRIBUTE")), trust="all")
    with pytest.raises(PayloadError):
        read(forge(Ask("function", HERE, "Point")), trust="all")


@pytest.mark.parametrize(
    ("trust", "error"),
    [
        (5, TypeError),
        (None, TypeError),
        (Point, TypeError),
        ([5], TypeError),
        ([Point(1)], TypeError),
        ("numpy", ValueError),
        (["a b"], ValueError),
        ([""], ValueError),
        (["a..b"], ValueError),
    ],
)
def test_what_is_no_trust_is_refused_at_once(trust, error):
    with pytest.raises(error, match="trust"):
        Trust.of(trust)


def test_trust_in_nothing_is_the_default():
    assert Trust.of(()) == Trust(False, frozenset(), {})
    assert Trust.of({"a.b", int}).packages == {"a.b"}


# ── anything at all ─────────────────────────────────────────────────────────


def survives(pickled):
    try:
        read(pickled, HERE, "os", "subprocess")
    except PayloadError:
        pass


@unhurried
@given(st.binary())
def test_any_bytes_are_refused_or_harmless(data):
    survives(data)
    survives(data + b".")
    survives(BOX + data + b".")


SEEDS = [
    pack_value(value)
    for value in (
        [Point(1, {"x": (1, 2)}), Color.RED, Access(3), Slotted(1)],
        {(1, 2): {3}, "x": [1.5, b"x", 1j], 5: collections.OrderedDict(a=1)},
        ValueError("x"),
        [Pair(1, Texts([1])), Table({1: 2}), Point],
    )
]
SYMBOLS = [bytes([n]) for n in b"()\x85\x86\x87tR\x93b]}ueas0\x94h\x00h\x01N\x88K\x010\x8f\x90\x91"]


@settings(unhurried, max_examples=300)
@given(st.sampled_from(SEEDS), st.data())
def test_changed_pickles_are_refused_or_harmless(pickled, data):
    changed = bytearray(pickled)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        until = at + data.draw(st.integers(0, 3))
        changed[at:until] = data.draw(st.binary(max_size=3) | st.sampled_from(SYMBOLS))
    survives(bytes(changed))
    RAN.clear()  # Point's own __init__ and extend may be called: of an instance they are its own


@settings(unhurried, max_examples=300)
@given(st.lists(st.sampled_from(SYMBOLS), max_size=60).map(b"".join), st.sampled_from([BOX, POINT]))
def test_any_order_of_opcodes_is_refused_or_harmless(ops, start):
    survives(start + ops + b".")
    assert not RAN


def test_no_few_bytes_take_much_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pickled in (
        b"\x80\x05Nr\xff\xff\xff\x7f.",
        b"\x80\x05Np99999999999\n.",
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x05\x95" + (1 << 62).to_bytes(8, "little") + b"N.",
        forge(Ask("call", cls(Texts), (LONG,))),
        forge(Ask("new", cls(Bytes), (10**11,), {})),
    ):
        survives(pickled)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
