"""CellResult: how it shows itself, what it is as JSON, when two are equal."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentis_pool.errors import (
    CellTimeout,
    MentisPoolError,
    SandboxDied,
    cell_error,
)
from mentis_pool.results import CellResult, Opaque, Usage

any_text = st.text(st.characters(exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(any_text | st.integers(), inner)
    ),
    max_leaves=10,
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def failed(error, **given):
    """A result and its error, as `task.outcome` makes them."""
    error.result = CellResult(**given, error=error)
    return error.result


def each_kind():
    return [
        CellResult(),
        CellResult(stdout="a\n", stderr="b", stdout_cut=1, stderr_cut=2, value=[1, {"a": None}]),
        CellResult(value=Opaque("<object>", "object"), text="<object>", action_id="a", attempt=3),
        CellResult(displays=[{"text/plain": "x", "image/png": b"\x89", "application/json": [1]}]),
        CellResult(usage=Usage(1.0, 2.0, 3.0, 4), sandbox_id="s"),
        failed(cell_error("ValueError", "bad", "Traceback…\n"), stdout="until then"),
        failed(SandboxDied("killed", "s", signal=9)),
        failed(CellTimeout("too long", 2.0)),
    ]


KINDS = each_kind()


# ── equality ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("i", range(len(KINDS)))
def test_a_result_is_equal_to_one_that_holds_the_same_and_to_no_other(i):
    for j, other in enumerate(each_kind()):
        assert (KINDS[i] == other) is (i == j)
        assert (KINDS[i] != other) is (i != j)


@pytest.mark.parametrize("field", dataclasses.fields(CellResult), ids=lambda f: f.name)
def test_every_field_counts_for_equality(field):
    others = {str: "x", int: 7}
    given = {
        "value": 5,
        "text": "5",
        "displays": [{"text/plain": "d"}],
        "exit_code": 3,
        "error": MentisPoolError("e"),
        "usage": Usage(9.0),
        "action_id": "a",
        "sandbox_id": "s",
    }.get(field.name, others.get(type(field.default)))
    assert dataclasses.replace(CellResult(), **{field.name: given}) != CellResult()


def test_a_result_is_equal_to_nothing_else():
    assert CellResult() != None  # noqa: E711 - the operator is what is tested
    assert CellResult() != "CellResult()"
    assert CellResult() != dataclasses.asdict(CellResult())
    assert (CellResult() == 1) is False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), "(1,)"),
        (b"x", "b'x'"),
        (Opaque("o", "t"), "<Opaque t: o>"),
        ({1}, "{1}"),
        ({1: 2}, "{1: 2}"),
        (float("inf"), "inf"),
        ([1], (1,)),
    ],
    ids=repr,
)
def test_results_with_different_values_are_not_equal(one, other):
    assert CellResult(value=one) != CellResult(value=other)


def test_output_that_only_looks_the_same_is_not_equal():
    assert CellResult(stdout="\udcff") != CellResult(stdout="\\udcff")
    assert CellResult(displays=[{"image/png": b"\x89"}]) != CellResult(
        displays=[{"image/png": base64.b64encode(b"\x89").decode()}]
    )


def test_a_result_has_no_hash():
    with pytest.raises(TypeError, match="unhashable"):
        hash(CellResult())


@given(values.filter(lambda value: value == value and "nan" not in repr(value)))
def test_a_result_is_equal_after_a_pickle(value):
    result = CellResult(value=value, stdout="\udcff")
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize("i", range(len(KINDS)))
def test_every_field_is_the_same_after_a_pickle(i):
    back = pickle.loads(pickle.dumps(KINDS[i]))
    for field in dataclasses.fields(CellResult):
        if field.name != "error":
            assert getattr(back, field.name) == getattr(KINDS[i], field.name)
    assert type(back.error) is type(KINDS[i].error)
    assert back.error is None or back.error.result is back


def test_a_result_is_not_to_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CellResult().stdout = "x"


def test_two_results_do_not_share_their_displays():
    CellResult().displays.append({})
    assert CellResult().displays == []


def test_a_result_is_ok_without_an_error():
    error = MentisPoolError("e")
    result = CellResult(stdout="x")
    assert result.ok
    assert not result.with_error(error).ok
    assert result.with_error(error).error is error
    assert result.with_error(error).without_error() == result
    assert result.error is None


# ── JSON ────────────────────────────────────────────────────────────────────


def as_json(result):
    """Through a file in UTF-8, as ``--out`` and its readers would."""
    text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False)
    return json.loads(text.encode("utf-8"))


@pytest.mark.parametrize("i", range(len(KINDS)))
def test_any_result_is_json(i):
    assert as_json(KINDS[i]) == KINDS[i].to_dict()


def test_a_result_as_json_has_these_keys():
    assert CellResult().to_dict() == {
        "ok": True,
        "stdout": "",
        "stderr": "",
        "stdout_cut": 0,
        "stderr_cut": 0,
        "value": None,
        "text": None,
        "displays": [],
        "displays_cut": 0,
        "exit_code": None,
        "error": None,
        "usage": {"queued": 0.0, "running": 0.0, "cpu": 0.0, "peak_memory": None},
        "action_id": None,
        "sandbox_id": None,
        "attempt": 1,
        "files": {},
        "files_left": {},
    }


def test_files_are_in_what_a_result_shows_and_in_its_json():
    result = CellResult(files={"a": b"\x80"}, files_left={"b": "it is a link"})
    assert repr(result) == "CellResult(files=['a'], files_left=['b'])"
    assert (as_json(result)["files"], as_json(result)["files_left"]) == (
        {"a": "gA=="},
        {"b": "it is a link"},
    )
    assert pickle.loads(pickle.dumps(result)) == result


@given(json_values)
def test_a_value_that_json_can_hold_is_itself(value):
    back = as_json(CellResult(value=value))["value"]
    assert back == value
    assert repr(back) == repr(value), "nor is an int a float, or True 1"


@given(values)
def test_any_value_is_json(value):
    back = json.loads(json.dumps(CellResult(value=value).to_dict(), allow_nan=False))["value"]
    assert back == value or back == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        (1, 2),
        [(1,)],
        {1},
        {1: 2},
        {"a": (1,)},
        float("nan"),
        [float("inf")],
        datetime.date(2024, 1, 2),
        Opaque("o", "t"),
    ],
    ids=repr,
)
def test_a_value_that_json_cannot_hold_is_its_repr(value):
    assert as_json(CellResult(value=value))["value"] == repr(value)


def test_a_value_too_deep_or_in_a_circle_is_its_repr():
    circle = []
    circle.append(circle)
    assert as_json(CellResult(value=circle))["value"] == "[[...]]"


@pytest.fixture
def digits():
    """Python's own limit (3.11 and later), which hypothesis lifts: str(10**4300) is a ValueError."""
    if not hasattr(sys, "set_int_max_str_digits"):
        pytest.skip("this Python has no such limit")
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("value", [10**5000, [10**5000], -(10**5000)], ids=["10**5000", "in", "-"])
def test_an_int_of_any_size_can_be_shown(value):
    result = CellResult(value=value)
    json.dumps(result.to_dict())
    assert "value=" in repr(result)
    assert result == CellResult(value=value)
    assert result != CellResult(value=1)


@pytest.mark.parametrize(
    "result",
    [
        CellResult(stdout="\udcff", stderr="\ud800"),
        CellResult(value="\udcff"),
        CellResult(value={"\udcff": ["\ud800"]}),
        CellResult(displays=[{"application/json": json.loads('"\\ud800"')}]),
        CellResult(displays=[{"application/json": json.loads("[NaN, 1e999]")}]),
    ],
    ids=["output", "value", "in a value", "display", "NaN in a display"],
)
def test_whatever_a_cell_gives_can_be_written_as_json(result):
    assert as_json(result)["ok"] is True


def test_output_in_json_is_printable():
    assert CellResult(stdout="a\udcff\x1b[31m\0").to_dict()["stdout"] == "a\\udcff\x1b[31m\0"


def test_images_in_json_are_base64():
    displays = [{"image/png": b"\x89\xff", "image/svg+xml": "<svg/>", "application/json": {"a": 1}}]
    assert as_json(CellResult(displays=displays))["displays"] == [
        {"image/png": "if8=", "image/svg+xml": "<svg/>", "application/json": {"a": 1}}
    ]


def test_what_a_cell_raised_in_json():
    error = cell_error("ZeroDivisionError", "division by zero", "Traceback…\n")
    assert as_json(failed(error))["error"] == {
        "type": "CellError",
        "name": "ZeroDivisionError",
        "value": "division by zero",
        "traceback": "Traceback…\n",
    }
    assert as_json(failed(error))["ok"] is False


def test_an_exception_without_text_has_none_in_json():
    assert as_json(failed(cell_error("AssertionError", "", "T")))["error"]["value"] == ""


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (
            CellTimeout("too long", 1.5),
            {"type": "CellTimeout", "name": "CellTimeout", "value": "too long", "timeout": 1.5},
        ),
        (
            SandboxDied("killed", "s", signal=9),
            {"type": "SandboxDied", "name": "SandboxDied", "value": "killed", "signal": 9},
        ),
        (
            SandboxDied("exited", "s", exit_code=0),
            {"type": "SandboxDied", "name": "SandboxDied", "value": "exited", "exit_code": 0},
        ),
    ],
)
def test_why_a_cell_did_not_end_in_json(error, described):
    assert as_json(failed(error))["error"] == {**described, "traceback": None}


# ── text ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (CellResult(), "CellResult()"),
        (CellResult(stdout="hi\n", value=3), "CellResult(stdout='hi\\n', value=3)"),
        (CellResult(stderr="e", value=0), "CellResult(stderr='e', value=0)"),
        (CellResult(displays=[{}], displays_cut=7), "CellResult(displays=1, displays_cut=7)"),
        (CellResult(value=False), "CellResult(value=False)"),
        (CellResult(displays=[{}, {}]), "CellResult(displays=2)"),
        (CellResult(value=Opaque("o", "T")), "CellResult(value=<Opaque T: o>)"),
        (
            failed(cell_error("KeyError", "'k'", "T")),
            """CellResult(error="KeyError: 'k'")""",
        ),
        (failed(MentisPoolError()), "CellResult(error='MentisPoolError')"),
    ],
)
def test_the_repr_names_what_there_is(result, text):
    assert repr(result) == text


@given(values, any_text)
def test_the_repr_is_short_and_printable(value, text):
    result = failed(cell_error(text, text * 50, text), stdout=text * 50, stderr=text, value=value)
    repr(result).encode("utf-8")
    assert len(repr(result)) < 400
    assert "\n" not in repr(result)


def test_the_repr_has_the_exit_code_where_there_is_one():
    assert repr(CellResult(exit_code=0)) == "CellResult(exit_code=0)"


def test_a_long_value_is_cut_in_the_repr():
    assert repr(CellResult(stdout="x" * 100)) == f"CellResult(stdout='{'x' * 75}…')"
    assert repr(CellResult(stdout="x" * 78)) == f"CellResult(stdout='{'x' * 78}')"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (CellResult(), ""),
        (CellResult(stdout="hi\n"), "hi"),
        (CellResult(stdout="hi\n\n"), "hi\n"),
        (CellResult(stdout="out", stderr="err\n", text="3", value=3), "out\nerr\n3"),
        (CellResult(displays=[{"text/plain": "d"}], text="3"), "d\n3"),
        (CellResult(displays=[{"text/plain": "3", "text/html": "<b>"}], text="3"), "3"),
        (CellResult(displays=[{"text/plain": "3"}, {"text/plain": "d"}], text="3"), "3\nd\n3"),
        (CellResult(displays=[{"image/png": b""}]), ""),
        (
            CellResult(displays=[{"text/plain": "3", "a/b": ""}], text="3", displays_cut=7),
            "3\n[… 7 bytes of displays cut …]",
        ),
        (CellResult(text=""), ""),
        (
            failed(cell_error("KeyError", "'k'", "Traceback:\nKeyError: 'k'\n"), stdout="o\n"),
            "o\nTraceback:\nKeyError: 'k'",
        ),
        (failed(cell_error("KeyError", "'k'", "")), "CellError: KeyError: 'k'"),
        (failed(CellTimeout("too long", 1.0)), "CellTimeout: too long"),
    ],
)
def test_a_result_prints_as_a_person_would_want_to_see_it(result, text):
    assert str(result) == text


def test_a_result_can_be_printed_where_lone_surrogates_cannot():
    # print(result) with a UTF-8 terminal raises UnicodeEncodeError otherwise.
    assert str(CellResult(stdout="a\udcff\n", stderr="\ud800")).encode("utf-8")


def test_an_opaque_value_shows_its_repr_and_its_type():
    opaque = Opaque("<x>", "module.T")
    assert repr(opaque) == "<Opaque module.T: <x>>"
    assert opaque == Opaque("<x>", "module.T")
    assert opaque != Opaque("<x>", "module.U")
    assert pickle.loads(pickle.dumps(opaque)) == opaque
    assert len({opaque, Opaque("<x>", "module.T")}) == 1


# ── in a notebook ───────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What a notebook would be sent for each of some results, by a real IPython shell.

    In a process of its own: a shell changes sys.displayhook, builtins and more.
    """
    code = textwrap.dedent(
        """
        import json, sys
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output
        from IPython.display import display
        sys.path.insert(0, sys.argv[1])
        from test_results import NOTEBOOK
        shell = InteractiveShell.instance()
        shell.history_manager.enabled = False
        every = {}
        for name, result in NOTEBOOK.items():
            with capture_output() as captured:
                display(result)
            every[name] = [output.data for output in captured.outputs]
            assert captured.stdout == captured.stderr == "", (name, captured.stdout)
        sys.stdout.buffer.write(json.dumps(every, ensure_ascii=False).encode("utf-8"))
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, os.path.dirname(__file__)],
        capture_output=True,
        check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))},
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


NOTEBOOK = {
    "nothing": CellResult(),
    "output": CellResult(stdout="a\n", stderr="b\n"),
    "stderr": CellResult(stderr="b\n\n"),
    "value": CellResult(value=3, text="3"),
    "rich": CellResult(
        stdout="o\n",
        displays=[
            {"text/plain": "fig", "image/png": b"\x89PNG"},
            {"text/plain": "3", "text/html": "<b>3</b>"},
        ],
        text="3",
    ),
    "json": CellResult(displays=[{"application/json": {"a": [1, None]}}]),
    "empty": CellResult(displays=[{}]),
    "error": failed(cell_error("KeyError", "'k'", "Traceback:\nKeyError: 'k'"), stdout="o"),
    "timeout": failed(CellTimeout("too long", 1.0)),
    "hostile": failed(
        cell_error("\ud800", "\udcff", "\udcff\0\x1b[31m<script>"), stdout="\udcff\0\x1b[31m<b>\r"
    ),
}


def test_a_notebook_shows_nothing_of_nothing(shown):
    assert shown["nothing"] == []


def test_a_notebook_shows_output_as_one_text(shown):
    assert shown["output"] == [{"text/plain": "a\nb"}]
    assert shown["stderr"] == [{"text/plain": "b"}]


def test_a_notebook_shows_the_value(shown):
    assert shown["value"] == [{"text/plain": "3"}]


def test_a_notebook_shows_each_display_in_its_forms_and_the_value_once(shown):
    assert shown["rich"] == [
        {"text/plain": "o"},
        {"text/plain": "fig", "image/png": base64.b64encode(b"\x89PNG").decode()},
        {"text/plain": "3", "text/html": "<b>3</b>"},
    ]


def test_a_notebook_gets_json_as_json(shown):
    assert shown["json"] == [{"application/json": {"a": [1, None]}}]


def test_a_notebook_shows_what_went_wrong_last(shown):
    assert shown["error"] == [{"text/plain": "o"}, {"text/plain": "Traceback:\nKeyError: 'k'"}]
    assert shown["timeout"] == [{"text/plain": "CellTimeout: too long"}]


def test_a_notebook_is_only_sent_text_that_it_can_hold(shown):
    assert shown["hostile"] == [
        {"text/plain": "\\udcff\0\x1b[31m<b>\r"},
        {"text/plain": "\\udcff\0\x1b[31m<script>"},
    ]


class Screen:
    """Takes what is displayed."""

    def __init__(self):
        self.shown = []

    def display(self, data, raw):
        assert raw is True
        self.shown.append(data)


@pytest.mark.parametrize("name", NOTEBOOK)
def test_what_a_notebook_shows_is_the_same_without_a_shell(name, shown, monkeypatch):
    # In this process, so that its lines are counted as run.
    screen = Screen()
    monkeypatch.setattr("IPython.display.display", screen.display)
    NOTEBOOK[name]._ipython_display_()
    assert screen.shown == shown[name]


def test_as_text_it_steers_no_terminal():
    error = cell_error("E", "v", "\x1b[2JE: v")
    result = CellResult(stdout="\x1b[2J\x1b[31mred\x1b[0m\x07", text="\x1b]0;t\x07v", error=error)
    assert str(result) == "\x1b[31mred\x1b[0m\nv\nE: v"
    assert repr(CellResult(value=Opaque("\x1b[2Jx", "A"))) == "CellResult(value=<Opaque A: x>)"
