"""Arrays, scalars, frames: exactly as they were, and no forgery of them."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import zoneinfo

import pytest
from forged import Ask, cls, forge, read, there_and_back
from hypothesis import given
from test_opcodes import unhurried

from mentis_pool.errors import PayloadError

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
numpy_strategies = pytest.importorskip("hypothesis.extra.numpy")

HERE = __name__


def same_array(back, array):
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert back.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert back.shape == array.shape
    assert back.flags.fnc == array.flags.fnc
    if array.dtype.names is None:
        np.testing.assert_array_equal(back, array)
    else:  # NaN in a record is never equal
        assert repr(back.tolist()) == repr(array.tolist())


RECORDS = np.dtype([("a", "i4"), ("b", "f8", (2, 3)), (("title", "c"), "S3")])
NESTED = np.dtype(
    {"names": ["x", "y"], "formats": [RECORDS, "U2"], "offsets": [8, 80], "itemsize": 100}
)

ARRAYS = [
    np.arange(12).reshape(3, 4),
    np.arange(12).reshape(3, 4).T,
    np.asfortranarray(np.ones((2, 3, 4))),
    np.arange(20)[::-2],
    np.arange(24).reshape(2, 3, 4)[:, 1:, ::2],
    np.array(5),
    np.zeros((0, 3)),
    np.zeros((2, 0), order="F"),
    np.broadcast_to(np.arange(3), (4, 3)),
    np.array(["a", "bcü"]),
    np.array([b"a", b""]),
    np.array([b"", b""], "S0"),
    np.array(["2020", "NaT"], "M8[D]"),
    np.array([1, -5], "m8[us]"),
    np.array([1.5, np.nan, -0.0], ">f4"),
    np.array([1.5], np.longdouble),
    np.array([1j], np.complex64),
    np.array([True, False]),
    np.zeros(3, RECORDS),
    np.zeros((2, 2), NESTED),
    np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    np.zeros(2, "V7"),
    np.array([1, "a", [2], None], object),
    np.array([[1, "a"], [None, 2]], object, order="F"),
    np.array(object, object),
    np.zeros((0, 5), object),
    np.zeros((), np.dtype([("a", "i4"), ("o", "O")])),
    np.array([(1, [2]), (3, None)], np.dtype([("a", "i4"), ("o", "O")])),
    np.array([(1, [[2, 3]])], np.dtype([("a", "i4"), ("o", "O", (1, 2))])),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_an_array_comes_back_as_it_was(array):
    same_array(there_and_back(array), array)
    same_array(there_and_back({"k": (array,)})["k"][0], array)


@unhurried
@given(
    numpy_strategies.arrays(
        numpy_strategies.scalar_dtypes()
        | numpy_strategies.array_dtypes()
        | numpy_strategies.nested_dtypes(),
        numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=3),
    )
)
def test_any_array_comes_back_as_it_was(array):
    same_array(there_and_back(array), array)


def test_an_array_within_an_array_of_objects():
    inner = np.arange(3)
    array = np.empty(1, object)
    array[0] = inner
    back = there_and_back(array)
    same_array(back[0], inner)


def test_an_array_that_could_be_written_to_can_be():
    back = there_and_back(np.arange(3))
    back[0] = 5
    array = np.arange(3)
    array.flags.writeable = False
    assert not there_and_back(array).flags.writeable


def test_an_array_of_records_comes_back_as_it_was():
    array = np.rec.array([(1, 2.5), (3, 4.5)], names="a,b")
    back = there_and_back(array)
    same_array(back, array)
    assert type(back[0]) is np.record
    assert back.b.tolist() == [2.5, 4.5]


def test_results_of_linalg_come_back_with_their_names():
    square = np.array([[2.0, 1.0], [1.0, 3.0]])
    for function in (np.linalg.svd, np.linalg.eig, np.linalg.eigh, np.linalg.qr, np.linalg.slogdet):
        result = function(square)
        back = there_and_back(result)
        assert type(back) is type(result)
        assert repr(back) == repr(result)


SCALARS = [
    *(np.float64(1.5), np.float32("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True)),
    *(np.complex128(1j), np.longdouble(1) / 3, np.str_("ü"), np.str_(""), np.bytes_(b"x")),
    *(np.datetime64("2020-01-01T00:00", "m"), np.datetime64("NaT", "s"), np.timedelta64(5, "s")),
    np.zeros(1, RECORDS)[0],
    np.array([(1, [2])], np.dtype([("a", "i4"), ("o", "O")]))[0],
]


@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_a_scalar_comes_back_as_it_was(scalar):
    back = there_and_back([scalar])[0]
    assert type(back) is type(scalar)
    assert back.dtype == scalar.dtype
    assert repr(back) == repr(scalar)


@pytest.mark.parametrize("dtype", [np.dtype("f8"), np.dtype("O"), np.dtype(("i4", (2,))), NESTED])
def test_a_dtype_comes_back_as_it_was(dtype):
    assert there_and_back(dtype) == dtype


def test_a_scalars_class_is_a_value_and_numpys_errors_are_errors():
    assert there_and_back(np.float32) is np.float32
    assert isinstance(there_and_back(np.linalg.LinAlgError("x")), np.linalg.LinAlgError)
    with pytest.raises(PayloadError):
        there_and_back(np.memmap)


@pytest.mark.parametrize(
    "value",
    [np.ma.array([1]), np.random.default_rng(1), np.sin, np.poly1d([1])],
)
def test_what_is_not_listed_does_not_come_back(value):
    with pytest.raises(PayloadError):
        there_and_back(value, "numpy")


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="of numpy 2")
def test_texts_of_any_length_do_not_travel():
    with pytest.raises(PayloadError, match="does not travel"):
        there_and_back(np.array(["a"], np.dtypes.StringDType()))


class OwnArray(np.ndarray):
    pass


LONG = Ask("range", 0, 10**10, 1)
FIELD = ("a", None, "i4", 0)


def zeros(shape, dtype=float):
    """The box of an array: the array itself is pickled in numpy's way, and so refused."""
    array = np.zeros(shape, dtype)
    return Ask("numpy.array", array.dtype.str, array.shape, False, array.tobytes())


FORGED_ARRAYS = [
    Ask("numpy.array", "f8", (2,), False, b"x" * 8),
    Ask("numpy.array", "f8", (-1,), False, b"x" * 8),
    Ask("numpy.array", "f8", (1 << 61,), False, b""),
    Ask("numpy.array", "f8", (1 << 40, 1 << 40), False, b""),
    Ask("numpy.array", "f8", [1], False, b"x" * 8),
    Ask("numpy.array", "f8", LONG, False, b"x" * 8),
    Ask("numpy.array", "f8", (1.0,), False, b"x" * 8),
    Ask("numpy.array", "f8", (1,), False, "x" * 8),
    Ask("numpy.array", "O", (1,), False, b"x" * 8),
    Ask("numpy.array", "O", (1,), False, b""),
    Ask("numpy.array", "V0", (1 << 40,), False, b""),
    Ask("numpy.array", "V0", (1,), False, b"x"),
    Ask("numpy.array", "f8", (0,), False, b"x"),
    Ask("numpy.array", ([("a", None, "O", 0)], 8, False), (1,), False, b"x" * 8),
    Ask("numpy.array", "U1", (1,), False, b"\xff\xff\xff\x7f"),
    Ask("numpy.array", ([("a", None, "U1", 0)], 4, False), (1,), False, b"\xff\xff\xff\x7f"),
    Ask("numpy.array", "i4,i4", (1,), False, b"x" * 8),
    Ask("numpy.array", "(2,)i4", (1,), False, b"x" * 8),
    Ask("numpy.array", 5, (1,), False, b"x" * 8),
    Ask("numpy.array", ("i4", LONG), (1,), False, b"x" * 8),
    Ask("numpy.array", ("i4", (1 << 40,)), (1,), False, b"x" * 8),
    Ask("numpy.array", ([("a", None, "i4", 1 << 40)], 8, False), (1,), False, b"x" * 8),
    Ask("numpy.array", ([("a", None, "i4", -4)], 8, False), (1,), False, b"x" * 8),
    Ask("numpy.array", ([FIELD], 2, False), (1,), False, b"xx"),
    Ask("numpy.array", (LONG, 2, False), (1,), False, b"xx"),
    Ask("numpy.dtype", "no dtype"),
    Ask("numpy.objects", (2,), False, [1]),
    Ask("numpy.objects", (1,), False, LONG),
    Ask("numpy.objects", (1 << 40,), False, []),
    Ask("numpy.records", ([FIELD], 4, False), (1,), False, []),
    Ask("numpy.records", "f8", (1,), False, []),
    Ask("numpy.records", ([FIELD], 1 << 30, False), (1,), False, [zeros(1, "i4")]),
    Ask(
        "numpy.records",
        ([FIELD], 4, False),
        (1,),
        False,
        [Ask("numpy.array", "f8", (1,), False, b"x" * 8)],
    ),
    Ask(
        "numpy.records",
        ([FIELD], 4, False),
        (2,),
        False,
        [Ask("numpy.array", "i4", (1,), False, b"x" * 4)],
    ),
    Ask("numpy.records", ([FIELD], 4, False), (1,), False, ["x"]),
    Ask("numpy.recarray", [1]),
    Ask("numpy.recarray", zeros(2)),
    Ask("numpy.linalg", "SVDResult", zeros(2)),
    Ask("numpy.linalg", "SVDResult", 1, 2, 3),
    Ask("numpy.linalg", "svd", zeros((2, 2))),
    Ask("numpy.linalg", ["SVDResult"], zeros(2)),
    Ask("numpy.scalar", 5),
    Ask("numpy.scalar", Ask("numpy.array", "i4", (1,), False, b"x" * 4)),
    Ask("numpy.str_", b"x"),
    Ask("numpy.array", "i4", (1,), False, b"x" * 4, state=(1, (1 << 40,), "O", False, b"")),
    Ask("new", cls(np.ndarray), ((1,),), {}),
    Ask("new", cls(OwnArray), ((1,),), {}),
    Ask("new", cls(OwnArray), (), {}),
    Ask("call", cls(OwnArray), ((1 << 40,),)),
    Ask("call", cls(np.memmap), ("file", "f8", "w+")),
    Ask("call", cls(np.float64), (1.5,)),
]


@pytest.mark.parametrize("ask", FORGED_ARRAYS, ids=lambda ask: ask.kind)
def test_a_forged_array_is_refused(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PayloadError):
        read(forge(ask), "numpy", HERE)
    assert not os.listdir(tmp_path)


# ── pandas ──────────────────────────────────────────────────────────────────

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TIMES = pd.to_datetime(["2020-01-01", None, "2021-06-01"])
NUMBERS = pd.Series([1.5, None, 3.0], name="n", index=["x", "y", "z"])

SERIES = [
    NUMBERS,
    pd.Series([1, 2], dtype="Int64"),
    pd.Series([1, None], dtype="Int8"),
    pd.Series([1.5, None], dtype="Float32"),
    pd.Series([True, None], dtype="boolean"),
    pd.Series(["a", None]),
    pd.Series(["a", None], dtype="string"),
    pd.Series(["a", None, 1, [2]], dtype=object),
    pd.Series(["b", "a", None], dtype="category"),
    pd.Series(pd.Categorical([1, 2], categories=[3, 2, 1], ordered=True)),
    pd.Series(TIMES),
    pd.Series(TIMES.tz_localize("Europe/Berlin")),
    pd.Series(TIMES.tz_localize(datetime.timezone.utc)),
    pd.Series(TIMES.as_unit("s")),
    pd.Series(TIMES - TIMES[0]),
    pd.Series(pd.period_range("2020-01", periods=3, freq="M")),
    pd.Series(pd.interval_range(0, 3)),
    pd.Series(pd.interval_range(TIMES[0], periods=3, closed="left")),
    pd.Series([], dtype="float64"),
    pd.Series([1 + 2j]),
    pd.Series([1], index=pd.MultiIndex.from_tuples([("a", 1)], names=["l", None])),
]


@pytest.mark.parametrize("series", SERIES, ids=lambda series: str(series.dtype))
def test_a_series_comes_back_as_it_was(series):
    back = there_and_back(series)
    pd.testing.assert_series_equal(back, series, check_freq=True, check_flags=True)
    assert back.dtype == series.dtype
    assert type(back.index) is type(series.index)
    pd.testing.assert_extension_array_equal(there_and_back(series.array), series.array)


INDEXES = [
    pd.RangeIndex(3, 30, 5, name="r"),
    pd.Index([1, 2], name="n"),
    pd.Index([1, "a", (2, 3)], dtype=object),
    pd.Index(["a", "b"]),
    pd.Index([(1, 2), (3, 4)], tupleize_cols=False),
    pd.date_range("2020", periods=3, freq="D", name=("a", 1)),
    pd.date_range("2020", periods=3, freq="h", tz="Europe/Berlin"),
    pd.timedelta_range("1h", periods=3, freq="h"),
    pd.period_range("2020", periods=3, freq="Q"),
    pd.CategoricalIndex(["a", "b", "a"]),
    pd.interval_range(0, 2),
    pd.Index([1, None], dtype="Int64"),
    pd.MultiIndex.from_product([["a", "b"], TIMES], names=["x", "y"]),
    pd.MultiIndex.from_tuples([(1, None), (None, "x")]),
    pd.Index([]),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
def test_an_index_comes_back_as_it_was(index):
    back = there_and_back(index)
    pd.testing.assert_index_equal(back, index, exact=True)
    assert back.names == index.names
    assert getattr(back, "freq", None) == getattr(index, "freq", None)


FRAMES = [
    pd.DataFrame({"a": [1, 2], "b": [1.5, None], "c": ["x", None], "d": [[1], {}]}),
    pd.DataFrame(np.arange(6).reshape(2, 3)),
    pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=["a", "a", "b"], index=[5, 5]),
    pd.DataFrame({i: series.head(1).reset_index(drop=True) for i, series in enumerate(SERIES)}),
    pd.DataFrame(index=range(3)),
    pd.DataFrame(columns=["a", "b"]),
    pd.DataFrame({"a": [1], ("b", 1): [2]}).set_index("a"),
    NUMBERS.to_frame().set_index(TIMES),
    pd.DataFrame({"t": TIMES, "u": TIMES}),
    pd.DataFrame([["a", "b"]], dtype=object),
]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_comes_back_as_it_was(frame):
    back = there_and_back([frame])[0]
    pd.testing.assert_frame_equal(
        back, frame, check_column_type=True, check_index_type="exact", check_flags=True
    )
    assert list(back.dtypes) == list(frame.dtypes)
    assert type(back.index) is type(frame.index)


def test_attributes_and_flags_stay():
    frame = FRAMES[1].copy()
    frame.attrs["source"] = {"day": datetime.date(2020, 1, 1)}
    frame = frame.set_flags(allows_duplicate_labels=False)
    back = there_and_back(frame)
    assert back.attrs == frame.attrs
    assert not back.flags.allows_duplicate_labels
    assert not there_and_back(frame[0]).flags.allows_duplicate_labels


def test_a_frame_that_was_changed_to_pieces():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [1, 2, 3]})
    frame["c"] = [7, 8, 9]
    frame = frame[frame.a > 1][["c", "a"]]
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2020-01-01 12:00", tz="Europe/Berlin"),
        pd.Timestamp(datetime.datetime(2021, 10, 31, 2, 30, fold=1), tz=BERLIN),
        pd.Timestamp("2020-01-01").replace(fold=1),
        pd.Timestamp(5, unit="ns"),
        pd.Timestamp("1000-01-01").as_unit("s"),
        pd.Timedelta(5, "ms"),
        pd.Period("2020-01", "M"),
        pd.Interval(1, 2.5, closed="both"),
        pd.Interval(pd.Timestamp("2020"), pd.Timestamp("2021")),
        *(series.dtype for series in SERIES),
    ],
    ids=repr,
)
def test_a_scalar_or_dtype_of_pandas_comes_back_as_it_was(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)
    assert getattr(back, "unit", None) == getattr(value, "unit", None)


def test_what_is_missing_stays_missing():
    nat, na = there_and_back([pd.NaT, pd.NA])
    assert nat is pd.NaT
    assert na is pd.NA


def test_time_zones_of_pytz_come_back_as_they_were():
    pytz = pytest.importorskip("pytz")
    berlin = pytz.timezone("Europe/Berlin")
    for zone in (berlin, pytz.utc, pytz.timezone("Etc/GMT-3"), pytz.FixedOffset(90)):
        assert there_and_back(zone) is zone
    for month in (1, 7):
        day = berlin.localize(datetime.datetime(2020, month, 1))
        back = there_and_back(day)
        assert back == day
        assert back.tzinfo is day.tzinfo
    times = pd.Series(TIMES.tz_localize(berlin))
    pd.testing.assert_series_equal(there_and_back(times), times)
    for ask in (
        Ask("pytz.zone", "../../etc/passwd"),
        Ask("pytz.zone", "Europe/Berlin", 5, 0, "X"),
        Ask("pytz.offset", "5"),
        Ask("function", "pytz", "timezone"),
    ):
        with pytest.raises(PayloadError):
            read(forge(ask), "pytz")
    with pytest.raises(PayloadError):
        there_and_back(pytz.UnknownTimeZoneError)


class OwnFrame(pd.DataFrame):
    pass


@pytest.mark.parametrize(
    "value",
    [
        pd.arrays.SparseArray([0, 1]),
        pd.SparseDtype("f8"),
        pd.offsets.Week(),
        pd.Series([1]).groupby([1]),
        OwnFrame({"a": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_of_pandas_is_not_listed_does_not_come_back(value):
    with pytest.raises(PayloadError):
        there_and_back(value, "pandas", HERE)


def array(*values, dtype="i8"):
    content = np.array(values, dtype)
    return Ask("numpy.array", dtype, content.shape, False, content.tobytes())


ZERO = Ask("numpy.array", "i8", (), False, b"x" * 8)
ENDLESS = Ask("pandas.RangeIndex", 0, 10**12, 1, None)
ONE = Ask("pandas.RangeIndex", 0, 1, 1, None)
INTS = Ask("pandas.dtype", "Int64Dtype")
BYTES = Ask("pandas.array", INTS, array(1), Ask("numpy.array", "?", (1,), False, b"\0"))

FORGED_PANDAS = [
    Ask("pandas.Timestamp", 5, None, 0),
    Ask("pandas.Timestamp", "2020", None, 0),
    Ask(
        "pandas.Timestamp",
        Ask("numpy.scalar", Ask("numpy.array", "M8[ns]", (), False, b"x" * 8)),
        5,
        0,
    ),
    Ask("pandas.Timedelta", "5s"),
    Ask("pandas.Period", "5", "M"),
    Ask("pandas.Period", 5, "no freq"),
    Ask("pandas.Interval", LONG, 5, "left"),
    Ask("pandas.Interval", 1, 5, "none"),
    Ask("pandas.dtype", "SparseDtype"),
    Ask("pandas.dtype", "read_pickle", "file"),
    Ask("pandas.dtype", "DataFrame"),
    Ask("pandas.dtype", "StringDtype", "no storage", None),
    Ask("pandas.dtype", "CategoricalDtype", LONG, False),
    Ask("pandas.dtype", "CategoricalDtype", [1, 1], False),
    Ask("pandas.dtype", "PeriodDtype", "no"),
    Ask("pandas.dtype", "Int64Dtype", 5),
    Ask("pandas.array", None, LONG),
    Ask("pandas.array", INTS, array(1), array(1)),
    Ask("pandas.array", INTS, array(1), LONG),
    Ask("pandas.array", INTS, array(1.5, dtype="f8"), Ask("numpy.array", "?", (1,), False, b"\0")),
    Ask("pandas.array", "Int64", array(1), array(1)),
    Ask("pandas.array", Ask("pandas.dtype", "StringDtype", "python", Ask("pandas.NA")), LONG),
    Ask("pandas.array", Ask("pandas.dtype", "CategoricalDtype", ONE, False), array(5)),
    Ask("pandas.array", Ask("pandas.dtype", "CategoricalDtype", ONE, False), LONG),
    Ask("pandas.array", Ask("pandas.dtype", "PeriodDtype", "M"), LONG),
    Ask("pandas.array", Ask("pandas.dtype", "IntervalDtype", "int64", "left"), LONG, LONG),
    Ask("pandas.times", None, array(1)),
    Ask("pandas.times", None, LONG),
    Ask("pandas.Index", array(1), None, "D"),
    Ask("pandas.Index", LONG, None, None),
    Ask("pandas.Index", ZERO, None, None),
    Ask("pandas.Index", [1], None, None),
    Ask("pandas.Index", array(1), [1], None),
    Ask("pandas.MultiIndex", [ONE], LONG, ["a"]),
    Ask("pandas.MultiIndex", [ONE], [LONG], ["a"]),
    Ask("pandas.MultiIndex", [LONG], [array(0)], ["a"]),
    Ask("pandas.MultiIndex", [ONE], [array(5)], ["a"]),
    Ask("pandas.RangeIndex", 0, 1, 0, None),
    Ask("pandas.RangeIndex", "0", 1, 1, None),
    Ask("pandas.Series", array(1), LONG, None, {}, True),
    Ask("pandas.Series", LONG, ONE, None, {}, True),
    Ask("pandas.Series", array(1), ENDLESS, None, {}, True),
    Ask("pandas.Series", ZERO, ENDLESS, None, {}, True),
    Ask("pandas.Series", BYTES, ENDLESS, None, {}, True),
    Ask("pandas.Series", array(1), ONE, None, LONG, True),
    Ask("pandas.DataFrame", array(1), ONE, ONE, {}, True),
    Ask("pandas.DataFrame", array("a", dtype="U1"), ONE, ONE, {}, True),
    Ask("pandas.DataFrame", [ZERO], ENDLESS, ONE, {}, True),
    Ask("pandas.DataFrame", [], ENDLESS, ONE, {}, True),
    Ask("pandas.DataFrame", LONG, ONE, ENDLESS, {}, True),
    Ask("pandas.DataFrame", [], LONG, ONE, {}, True),
    Ask("new", cls(pd.DataFrame), (), {}),
    Ask("new", cls(OwnFrame), (), {}),
    Ask("call", cls(pd.HDFStore), ("file",)),
    Ask("function", "pandas", "read_pickle"),
]


@pytest.mark.parametrize("ask", FORGED_PANDAS, ids=lambda ask: ask.kind)
@pytest.mark.parametrize("within", [True, False])
def test_a_forged_frame_is_refused(ask, within):
    with pytest.raises(PayloadError):
        read(forge([ask] if within else ask), "pandas", "numpy", HERE)


def test_a_worker_that_has_no_numpy_imports_none():
    program = (
        "import sys, datetime\n"
        "from mentis_pool.returned import pack_value, pack_exception\n"
        "pack_value([datetime.date(2020, 1, 1), ValueError]); pack_exception(ValueError(1))\n"
        "print({'numpy', 'pandas', 'cloudpickle', 'decimal'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
