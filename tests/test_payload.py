"""Variables and calls as pickles: any that can travel, and the name of what cannot."""

from __future__ import annotations

import datetime
import enum
import functools
import importlib.util
import keyword
import math
import operator
import pickle
import subprocess
import sys
import textwrap
import threading
import timeit
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool import payload
from mentis_pool.errors import PayloadError
from mentis_pool.payload import Call, pack_call, pickle_variables, unpack_call

simple = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.binary().map(bytearray)
)
plain = st.recursive(simple, lambda inner: st.lists(inner) | st.tuples(inner))


def rebuilt(value):
    return pickle.loads(pickle_variables({"x": value})["x"])


names = st.from_regex(r"[a-z_]\w*", fullmatch=True).filter(
    lambda name: name.isidentifier() and not keyword.iskeyword(name)
)


@given(st.dictionaries(names, plain))
def test_every_variable_is_a_pickle_of_its_own(variables):
    pickles = pickle_variables(variables)
    assert list(pickles) == list(variables)
    assert all(type(data) is bytes for data in pickles.values())
    back = {name: pickle.loads(data) for name, data in pickles.items()}
    assert back == variables
    assert [type(v) for v in back.values()] == [type(v) for v in variables.values()]


@pytest.mark.parametrize("name", ["", "1", "a b", "a-b", "\ud800", "_²", "class", "None"])
def test_what_can_be_no_name_is_refused(name):
    with pytest.raises(PayloadError, match="cannot be the name of a variable"):
        pickle_variables({name: 1})


def test_no_variables_are_no_pickles():
    assert pickle_variables({}) == {}


def test_a_function_travels_by_its_code():
    local = 2
    assert rebuilt(lambda x: x + local)(3) == 5


def test_what_can_be_imported_travels_by_its_name():
    assert b"threading" in pickle_variables({"x": threading.Thread})["x"]
    assert rebuilt(threading.Thread) is threading.Thread


def test_a_class_of_main_is_rebuilt_where_there_is_no_such_main():
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from mentis_pool.payload import pickle_variables\n"
            "class Point:\n    x = 7\n"
            "sys.stdout.buffer.write(pickle_variables({'p': Point()})['p'])",
        ],
        check=True,
        capture_output=True,
    )
    assert pickle.loads(made.stdout).x == 7


def test_plain_variables_need_no_cloudpickle():
    code = (
        "import sys\n"
        "from mentis_pool.payload import pickle_variables\n"
        "pickle_variables({'a': 1, 'b': 'x', 'c': None, 'd': b'', 'e': 1j, 'f': bytearray()})\n"
        "assert 'cloudpickle' not in sys.modules\n"
        "pickle_variables({'a': [1]})\n"
        "assert 'cloudpickle' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Sub(int):
    def __reduce__(self):
        raise OSError("not me")


@pytest.mark.parametrize(
    "value", [threading.Lock(), (i for i in ()), sys.stdout, [Sub()], Sub()], ids=repr
)
def test_what_cannot_travel_is_named(value):
    with pytest.raises(PayloadError) as caught:
        pickle_variables({"fine": 1, "culprit": value})
    assert "'culprit'" in str(caught.value)
    assert type(value).__name__ in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "fine" not in str(caught.value)


def test_what_cannot_travel_says_why():
    with pytest.raises(
        PayloadError, match=r"the variable 'x' \(Sub\) cannot travel.*: OSError: not me"
    ):
        pickle_variables({"x": Sub()})


def test_what_is_too_deep_cannot_travel():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PayloadError, match="'deep'"):
        pickle_variables({"deep": deep})
    while deep:
        deep = deep.pop()


def test_a_name_that_no_message_can_hold_is_refused_here():
    # submit(cell, **{"\udcff": 1}): msgpack has no such text, and it would
    # break the connection instead of this task.
    with pytest.raises(PayloadError):
        pickle_variables({"\udcff": 1})


def test_ctrl_c_is_no_payload_error():
    class Interrupted:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pickle_variables({"x": Interrupted()})


def test_variables_that_are_too_large_together_are_refused_and_the_largest_named(monkeypatch):
    monkeypatch.setattr("mentis_pool.payload.MAX_RUN", 1000)
    assert pickle_variables({"x": b"1" * 900})
    with pytest.raises(PayloadError, match="over the limit of 1000; the largest is 'y'"):
        pickle_variables({"x": b"1" * 400, "y": b"1" * 700})


# ── calls ───────────────────────────────────────────────────────────────────

HERE = __name__


class Shop:
    def __init__(self, price=1):
        self.price = price

    def cost(self, n):
        return n * self.price

    @staticmethod
    def hello():
        return "hello"


def double(x):
    return 2 * x


def as_in_main(function_or_class):
    """As if it were defined in the script that is run."""
    function_or_class.__module__ = "__main__"
    function_or_class.__qualname__ = function_or_class.__name__
    return function_or_class


def called(call):
    assert type(call) is Call
    assert type(call.pickled) is bytes
    fn, args, kwargs = unpack_call(call.pickled)
    return fn(*args, **kwargs)


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "result"),
    [
        (operator.add, (1, 2), {}, 3),
        (double, (4,), {}, 8),
        (double, (), {"x": 4}, 8),
        (Shop(3).cost, (2,), {}, 6),
        (Shop.hello, (), {}, "hello"),
        (functools.partial(pow, 2), (5,), {}, 32),
        ([1, 2].count, (2,), {}, 1),
        (dict.fromkeys, ("ab",), {}, {"a": None, "b": None}),
        (datetime.date, (2024, 1, 1), {}, datetime.date(2024, 1, 1)),
        (lambda x, *, y: x + y, (1,), {"y": 2}, 3),
        (type, (None,), {}, type(None)),
        (type(None), (), {}, None),
        (len, ([...],), {}, 1),
    ],
    ids=str,
)
def test_a_call_is_the_same_on_the_other_side(fn, args, kwargs, result):
    assert called(pack_call(fn, args, kwargs)) == result


def test_what_can_be_imported_goes_by_its_name():
    call = pack_call(double, (Shop(), Shop), {})
    assert b"cloudpickle" not in call.pickled
    assert call.packages == {HERE}
    assert call.classes is None


def test_packages_with_lists_of_their_own_are_not_noted():
    assert pack_call(operator.add, (1, datetime.date(2024, 1, 1)), {}).packages == frozenset()
    assert pack_call(lambda: 1, (datetime.date,), {}).packages == {HERE}


def test_the_packages_of_arguments_are_noted_too():
    assert pack_call(len, ([Shop()],), {}).packages == {HERE}
    assert pack_call(operator.add, (), {"x": pytest.approx}).packages == {"_pytest"}
    assert pack_call(lambda: 1, ({"deep": [pytest.approx]},), {}).packages == {HERE, "_pytest"}


def test_what_calls_have_in_common_is_one_object():
    @as_in_main
    class Own:
        pass

    for fn, args in ((operator.add, (1, 2)), (double, (3,)), (as_in_main(lambda x: x), (Own(),))):
        first, second = pack_call(fn, args, {}), pack_call(fn, args, {})
        assert first.packages is second.packages
        assert first.classes is second.classes


def test_what_is_of_main_goes_by_value():
    @as_in_main
    class Own:
        def __init__(self, x):
            self.x = x

    @as_in_main
    class Kind(enum.Enum):
        ONE = 1

    @as_in_main
    def make(x):
        return Own(x), Kind.ONE

    call = pack_call(make, (5,), {})
    assert "__main__" in call.packages
    assert call.classes == {("__main__", "Own"): Own, ("__main__", "Kind"): Kind}
    said = in_another_process(
        call,
        "own, kind = fn(*args); print(type(own).__module__, type(own).__qualname__, own.x, kind)",
    )
    assert said == ["__main__", "Own", "5", "Kind.ONE"]


def in_another_process(call, program):
    """What a process that has nothing of this one's prints."""
    program = f"import sys, pickle; fn, args, kwargs = pickle.load(sys.stdin.buffer); {program}"
    done = subprocess.run(
        [sys.executable, "-c", program], input=call.pickled, capture_output=True, check=True
    )
    return done.stdout.decode().split()


def test_calls_with_other_classes_have_others():
    @as_in_main
    class Own:
        pass

    first = Own

    @as_in_main
    class Own:
        pass

    @as_in_main
    class Another:
        pass

    assert pack_call(len, (first,), {}).classes == {("__main__", "Own"): first}
    assert pack_call(len, (Own,), {}).classes == {("__main__", "Own"): Own}
    assert len(pack_call(len, (Own, Another), {}).classes) == 2


@pytest.fixture
def module_of():
    """Make a module, in sys.modules, that is found under its name or is not."""
    made = []

    def make(name, spec=None, **contents):
        module = types.ModuleType(name)
        module.__spec__ = spec
        vars(module).update(contents)
        exec("def function(): return 'here'\nclass Class: pass", vars(module))
        sys.modules[name] = module
        made.append(name)
        return module

    yield make
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["nowhere", "json.nowhere", "nowhere_at_all.inner"])
def test_a_module_that_no_process_would_find_goes_by_value(module_of, name, tmp_path):
    file = tmp_path / "plugin.py"
    file.touch()
    for spec in (None, importlib.util.spec_from_file_location(name, file)):
        module = module_of(name, spec)
        call = pack_call(module.function, (module.Class(),), {})
        assert call.classes == {(name, "Class"): module.Class}
        assert call.packages == {name.partition(".")[0]} - {"json"}
        assert in_another_process(call, "print(fn(), type(args[0]).__module__)") == ["here", name]


def test_a_module_that_hides_another_goes_by_value(module_of, tmp_path, monkeypatch):
    (tmp_path / "found_one.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    module = module_of(
        "found_one", importlib.util.spec_from_file_location("found_one", "/elsewhere.py")
    )
    assert pack_call(module.function, (), {}).pickled.count(b"cloudpickle")


def test_the_other_name_of_a_module_run_as_main_is_no_name(module_of, monkeypatch):
    module = module_of("runs", importlib.util.find_spec("json"))
    assert b"cloudpickle" in pack_call(module.function, (), {}).pickled


@pytest.mark.parametrize("module", [None, 5, ""], ids=repr)
def test_a_function_whose_module_is_none_travels_by_its_code(module):
    def strange():
        return 6

    strange.__module__ = module
    call = pack_call(strange, (), {})
    assert called(call) == 6
    assert call.classes is None


def test_a_function_whose_module_has_no_hash_is_refused_and_named():
    def strange():
        return 6

    strange.__module__ = []
    with pytest.raises(PayloadError, match="the callable"):
        pack_call(strange, (), {})


def test_a_class_without_a_module_travels_and_does_not_come_back():
    class Strange:
        __module__ = 5

        def __call__(self):
            return 6

    call = pack_call(Strange(), (), {})
    assert called(call) == 6
    assert call.classes is None


class Refuses:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Silent(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize("error", [ValueError("not me"), SystemExit("not me")])
def test_what_cannot_travel_in_a_call_is_named(error):
    culprit = Refuses(error)
    for fn, args, kwargs, place in (
        (len, (1, culprit), {}, "argument 1"),
        (len, (1,), {"a": 1, "b": [culprit]}, "argument 'b'"),
        (functools.partial(len, culprit), (), {}, "the callable"),
    ):
        with pytest.raises(
            PayloadError, match=rf"^{place} \(.*\) cannot travel.*: {type(error).__name__}: not me"
        ) as caught:
            pack_call(fn, args, kwargs)
        assert caught.value.__cause__ is error


def test_what_says_nothing_is_named_all_the_same():
    for error in (Silent(), ValueError()):
        with pytest.raises(PayloadError, match=f"argument 0.*: {type(error).__name__}$"):
            pack_call(len, (Refuses(error),), {})


def test_what_cannot_travel_only_together_is_an_error_too():
    class Twice:
        """Refuses until it was asked twice: by name and by value."""

        asked = 0

        def __reduce__(self):
            Twice.asked += 1
            if Twice.asked <= 2:
                raise ValueError("not with others")
            return str, ()

    with pytest.raises(
        PayloadError, match=r"the call cannot travel to a sandbox: ValueError: not with others"
    ):
        pack_call(len, (Twice(),), {})


def test_a_call_that_is_too_large_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr("mentis_pool.payload.MAX_RUN", 1000)
    assert pack_call(len, (b"x" * 900,), {})
    for fn in (len, lambda x: x):
        with pytest.raises(
            PayloadError, match=r"the call has \d+ bytes, over the limit of 1000: write .* file"
        ):
            pack_call(fn, (b"x" * 1000,), {})


def test_ctrl_c_in_a_call_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        pack_call(len, (Refuses(KeyboardInterrupt()),), {})


def test_what_a_pickle_raises_in_the_sandbox_is_let_through():
    with pytest.raises(ZeroDivisionError):
        unpack_call(pickle.dumps(Broken()))


class Broken:
    def __reduce__(self):
        return operator.truediv, (1, 0)


def test_by_name_is_much_cheaper_than_by_value():
    def seconds(fn):
        return timeit.timeit(lambda: pack_call(fn, ("x",), {}), number=200)

    by_value = as_in_main(lambda text: text)
    # In turn, and the best of each: others use this machine as well.
    taken = [(seconds(by_value), seconds(textwrap.dedent)) for _ in range(20)]
    slow, fast = map(min, zip(*taken, strict=True))
    assert slow > 2 * fast


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (operator.add, (1, 2.5), {}),
        (pack_call, ("a", b"b", None), {"kwargs": True}),
        (math.sqrt, (1j,), {}),
        ([].append, (1,), {}),  # of no module
        (datetime.datetime.fromtimestamp, (0,), {}),
        (operator.add, (1, [2]), {}),
        (operator.add, (1,), {"b": [2]}),
    ],
)
def test_plain_arguments_travel_as_any_others_do(fn, args, kwargs):
    assert pack_call(fn, args, kwargs) == payload._by_name((fn, args, kwargs))
