"""Variables as pickles: any that can travel, and the name of the one that cannot."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool.errors import PayloadError
from mentis_pool.payload import pickle_variables

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


names = st.from_regex(r"[a-z_]\w*", fullmatch=True).filter(str.isidentifier)


@given(st.dictionaries(names, plain))
def test_every_variable_is_a_pickle_of_its_own(variables):
    pickles = pickle_variables(variables)
    assert list(pickles) == list(variables)
    assert all(type(data) is bytes for data in pickles.values())
    back = {name: pickle.loads(data) for name, data in pickles.items()}
    assert back == variables
    assert [type(v) for v in back.values()] == [type(v) for v in variables.values()]


@pytest.mark.parametrize("name", ["", "1", "a b", "a-b", "\ud800", "_²"])
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
    with pytest.raises(PayloadError, match=r"the variable 'x' \(Sub\) cannot travel.*: not me"):
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
