"""Types of numpy and pandas that may come out of a sandbox: to boxes, and back.

Their own pickles believe what they read, down to the memory; so these are taken apart here.
An array is its bytes with a dtype and a shape, and numpy's public constructors, which validate,
make it again. All of pandas is made of arrays, by pandas' public constructors too.

Packers run in the sandbox, where numpy or pandas is imported if there is something to pack; makers
run in the client, and import what they make. Types that are not listed here do not travel.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from datetime import timedelta, tzinfo
from math import prod
from typing import Any

from mentis_pool.boxes import Boxed, boxed
from mentis_pool.standard_types import Maker, Packer, only

MAX_UNBACKED = 1 << 20
"""Elements of an array, or bytes of one element, that no bytes in the pickle stand for."""


def numpy_packer(type_: type) -> Packer | None:
    """The packer of a type of numpy, if it is listed."""
    import numpy as np

    if type_ is np.ndarray:
        return _pack_array
    if type_ is np.recarray:
        return lambda value: boxed("numpy.recarray", value.view(np.ndarray))
    if type_.__name__ in _LINALG and getattr(_linalg(), type_.__name__, None) is type_:
        return lambda value: boxed("numpy.linalg", type_.__name__, *value)
    if issubclass(type_, np.str_):
        return lambda value: boxed("numpy.str_", str(value))
    if issubclass(type_, np.generic):
        return _pack_scalar
    if issubclass(type_, np.dtype):
        return lambda value: boxed("numpy.dtype", _described(value))
    return None


def pandas_packer(type_: type) -> Packer | None:
    """The packer of a type of pandas, if it is listed."""
    import pandas as pd

    for name, packer in _PANDAS.items():
        if getattr(pd, name) is type_:
            return packer
    if type_ is type(pd.NaT):
        return lambda value: boxed("pandas.NaT")
    if type_ is type(pd.NA):
        return lambda value: boxed("pandas.NA")
    if issubclass(type_, pd.Index):
        return _pack_index
    if issubclass(type_, pd.api.extensions.ExtensionArray):
        return _pack_extension
    if issubclass(type_, pd.api.extensions.ExtensionDtype):
        return lambda value: boxed("pandas.dtype", *_dtype_parts(value))
    return None


def _not_listed(value: object) -> pickle.PicklingError:
    type_ = type(value)
    return pickle.PicklingError(f"a {type_.__module__}.{type_.__name__} does not travel")


# ── numpy ───────────────────────────────────────────────────────────────────


def _described(dtype: Any) -> object:
    """A dtype as plain data: a text, (base, shape), or (fields, itemsize, aligned)."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _described(base), tuple(shape)
    if dtype.names is not None:
        fields = []
        for name in dtype.names:
            field, offset, title = (*dtype.fields[name], None)[:3]
            fields.append((name, title, _described(field), offset))
        return fields, dtype.itemsize, dtype.isalignedstruct
    if dtype.kind not in "?bhilqpBHILQPefdgFDGSUVOMmiufcb":
        raise _not_listed(dtype)
    return str(dtype.str)


def _dtype(described: Any) -> Any:
    import numpy as np

    if isinstance(described, str):
        dtype = np.dtype(described)
        if dtype.names is not None or dtype.subdtype is not None:
            raise TypeError("a text is the name of a simple dtype only")
        return dtype
    if len(described) == 2:
        base, shape = described
        return np.dtype((_dtype(base), _shape(shape)))
    fields, itemsize, aligned = described
    # int() would make one of Decimal("1e999999999") as well.
    only(int, itemsize, *(offset for _, _, _, offset in fields))
    return np.dtype(
        {
            "names": [name for name, _, _, _ in fields],
            "titles": [title for _, title, _, _ in fields],
            "formats": [_dtype(field) for _, _, field, _ in fields],
            "offsets": [offset for _, _, _, offset in fields],
            "itemsize": itemsize,
        },
        align=bool(aligned),
    )


def _pack_array(array: Any) -> Boxed:
    import numpy as np

    dtype = _described(array.dtype)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    whole = array.T if fortran else np.ascontiguousarray(array)
    if array.dtype.hasobject:
        if array.dtype.names is not None:
            fields = [np.asarray(array[name]) for name in array.dtype.names]
            return boxed("numpy.records", dtype, array.shape, fortran, fields)
        # Not tolist(): of an array with one array in it that would give a list.
        return boxed("numpy.objects", array.shape, fortran, list(whole.reshape(-1)))
    if array.nbytes == 0:
        return boxed("numpy.array", dtype, array.shape, fortran, b"")
    # A view, so that the bytes go straight from the array into the pickle: as bytearray, if
    # it can be written to, which is then the memory of the array in the client.
    content = pickle.PickleBuffer(whole.reshape(-1).view(np.uint8))
    return boxed("numpy.array", dtype, array.shape, fortran, content)


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape is a tuple of whole numbers")
    return shape


def _make_array(described: Any, shape: Any, fortran: bool, content: bytes | bytearray) -> Any:
    import numpy as np

    dtype, shape = _dtype(described), _shape(shape)
    if dtype.hasobject:
        raise TypeError("an array of objects is not made of bytes")
    if not isinstance(content, (bytes, bytearray)):
        raise TypeError("the content of an array is bytes")
    if dtype.itemsize == 0 or 0 in shape:
        if content or (0 not in shape and prod(shape) > MAX_UNBACKED):
            raise ValueError("bytes, or too many elements, for an array without content")
        return np.zeros(shape, dtype, order="F" if fortran else "C")
    base, inner = dtype.subdtype or (dtype, ())
    if base.itemsize * prod(shape + inner) != len(content):
        raise ValueError("an array whose shape does not fit its content")
    array = np.frombuffer(content, dtype)
    _check_text(array)
    return _shaped(array, shape, fortran)


def _shaped(array: Any, shape: tuple[int, ...], fortran: bool) -> Any:
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _check_text(array: Any) -> None:
    """Refuse numbers that are no characters: numpy believes them until somebody looks."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            _check_text(array[name])
    elif array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        import numpy as np

        codes = np.ascontiguousarray(array).view(array.dtype.str[0] + "u4")
        if codes.max() > sys.maxunicode:
            raise ValueError("an array of text with what is no character")


def _make_objects(shape: Any, fortran: bool, values: list[object]) -> Any:
    import numpy as np

    if type(values) is not list:
        raise TypeError("the objects of an array are a list")
    shape = _shape(shape)
    return _shaped(np.fromiter(values, object, len(values)), shape, fortran)


def _make_records(described: Any, shape: Any, fortran: bool, fields: list[Any]) -> Any:
    import numpy as np

    dtype, shape = _dtype(described), _shape(shape)
    if dtype.itemsize > MAX_UNBACKED or not fields or len(fields) != len(dtype.names):
        raise ValueError("records that are too large, or whose fields are others")
    for name, field in zip(dtype.names, fields, strict=True):
        if type(field) is not np.ndarray or field.shape[: len(shape)] != shape:
            raise ValueError(f"the field {name!r} has another shape than its records")
        if field.dtype != (dtype[name].subdtype or (dtype[name],))[0]:
            raise ValueError(f"the field {name!r} has another dtype than its records")
    array = np.zeros(shape, dtype, order="F" if fortran else "C")
    for name, field in zip(dtype.names, fields, strict=True):
        array[name] = field
    return array


def _pack_scalar(scalar: Any) -> Boxed:
    import numpy as np

    return boxed("numpy.scalar", np.array(scalar))


def _make_scalar(array: Any) -> Any:
    import numpy as np

    if type(array) is not np.ndarray or array.shape != ():
        raise TypeError("a scalar is an array without dimensions")
    return array.copy()[()] if array.dtype.names is not None else array[()]


def _make_str(text: str) -> Any:
    import numpy as np

    if type(text) is not str:
        raise TypeError("a numpy.str_ is made of a text")
    return np.str_(text)


def _make_recarray(array: Any) -> Any:
    import numpy as np

    _only_array(array)
    if array.dtype.names is None:
        raise TypeError("an array of records is made of one with fields")
    return array.view(np.recarray)


# Numpy before 1.25 gave plain tuples.
_LINALG = frozenset(("EigResult", "EighResult", "QRResult", "SlogdetResult", "SVDResult"))


def _linalg() -> Any:
    import numpy as np

    linalg: Any = np.linalg
    return getattr(linalg, "_linalg", None) or linalg.linalg  # numpy 2, and 1


def _make_linalg(name: str, *parts: Any) -> Any:
    import numpy as np

    if name not in _LINALG or not all(isinstance(part, (np.ndarray, np.generic)) for part in parts):
        raise TypeError("a result of numpy.linalg is made of arrays and numbers")
    return getattr(_linalg(), name)(*parts)


# ── pandas: scalars ─────────────────────────────────────────────────────────


def _pack_timestamp(stamp: Any) -> Boxed:
    return boxed("pandas.Timestamp", stamp.asm8, stamp.tz, stamp.fold)


def _make_timestamp(at: Any, zone: Any, fold: int) -> Any:
    import numpy as np
    import pandas as pd

    if type(at) is not np.datetime64:
        raise TypeError("a Timestamp is made of a datetime64")
    stamp = pd.Timestamp(at)
    if zone is not None:
        only(tzinfo, zone)
        return stamp.tz_localize("UTC").tz_convert(zone)
    return stamp.replace(fold=fold) if fold else stamp


def _make_timedelta(span: Any) -> Any:
    import numpy as np
    import pandas as pd

    if type(span) is not np.timedelta64:
        raise TypeError("a Timedelta is made of a timedelta64")
    return pd.Timedelta(span)


def _make_period(ordinal: int, freq: str) -> Any:
    import pandas as pd

    if type(ordinal) is not int or type(freq) is not str:
        raise TypeError("a Period is made of a number and the name of a frequency")
    return pd.Period(ordinal=ordinal, freq=freq)


def _make_interval(left: Any, right: Any, closed: Any) -> Any:
    import numpy as np
    import pandas as pd

    allowed = (int, float, np.integer, np.floating, pd.Timestamp, pd.Timedelta)
    if not isinstance(left, allowed) or not isinstance(right, allowed):
        raise TypeError("an Interval is between numbers or times")
    only(str, closed)
    return pd.Interval(left, right, closed)


def _make_nat() -> Any:
    import pandas as pd

    return pd.NaT


def _make_na() -> Any:
    import pandas as pd

    return pd.NA


# ── pytz: time zones of pandas before 3 ─────────────────────────────────────


def pytz_packer(type_: type) -> Packer | None:
    """The packer of a time zone of pytz."""
    return _pack_pytz if issubclass(type_, tzinfo) else None


def _pack_pytz(zone: Any) -> Boxed:
    if zone.zone is None:
        return boxed("pytz.offset", int(zone.utcoffset(None).total_seconds() // 60))
    # As in its own pickle: the name, and of a zone with summer time which of its offsets.
    return boxed("pytz.zone", zone.zone, *zone.__reduce__()[1][1:])


def _make_pytz(name: str, *of: Any) -> Any:
    import pytz

    zone = pytz.timezone(name)
    if not of:
        return zone
    offset, summer, short = of
    # Not by its own unpickler, which would add an offset that the zone never had.
    return zone._tzinfos[timedelta(seconds=offset), timedelta(seconds=summer), short]


def _make_pytz_offset(minutes: int) -> Any:
    import pytz

    only(int, minutes)
    return pytz.FixedOffset(minutes)


# ── pandas: dtypes, arrays ──────────────────────────────────────────────────


def _dtype_parts(dtype: Any) -> tuple[object, ...]:
    """An extension dtype as the parts of its box."""
    name = type(dtype).__name__
    if name == "StringDtype":
        return name, dtype.storage, dtype.na_value
    if name == "CategoricalDtype":
        return name, dtype.categories, dtype.ordered
    if name == "DatetimeTZDtype":
        return name, dtype.unit, dtype.tz
    if name == "PeriodDtype":
        return name, dtype.name[len("period[") : -1]  # freqstr is another name of it, for times
    if name == "IntervalDtype":
        return name, dtype.subtype, dtype.closed
    if name not in _MASKED:
        raise _not_listed(dtype)
    return (name,)


_MASKED = frozenset(
    (
        *(f"{kind}{bits}Dtype" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
        *("Float32Dtype", "Float64Dtype", "BooleanDtype"),
    )
)
_WITH_PARTS = {
    "CategoricalDtype": 2,
    "DatetimeTZDtype": 2,
    "PeriodDtype": 1,
    "IntervalDtype": 2,
}


def _make_dtype(name: str, *parts: Any) -> Any:
    import pandas as pd

    if name == "StringDtype":
        storage, na_value = parts
        only(str, storage)
        if na_value is pd.NA:
            return pd.StringDtype(storage)
        return pd.StringDtype(storage, na_value=na_value)
    if name not in _MASKED and _WITH_PARTS.get(name) != len(parts):
        raise TypeError(f"no dtype of pandas: {name}")
    if name == "CategoricalDtype" and parts[0] is not None:
        _only_index(parts[0])
    if name == "DatetimeTZDtype":
        only(tzinfo, parts[1])
    return getattr(pd, name)(*parts)


def _pack_extension(array: Any) -> Boxed:
    """An extension array as its dtype and one or two numpy arrays."""
    dtype = array.dtype
    name = type(dtype).__name__
    if name == "NumpyEADtype":
        return boxed("pandas.array", None, array.to_numpy())
    if name == "CategoricalDtype":
        return boxed("pandas.array", dtype, array.codes)
    if name == "PeriodDtype":
        return boxed("pandas.array", dtype, array.asi8)
    if name == "IntervalDtype":
        return boxed("pandas.array", dtype, array.left, array.right)
    if name == "StringDtype":
        return boxed("pandas.array", dtype, list(array))
    if name in _MASKED:
        missing = array.isna()
        # What is under a missing value is nobody's; a zero is any of these types.
        filled = array.to_numpy(dtype.numpy_dtype, na_value=dtype.numpy_dtype.type(0))
        return boxed("pandas.array", dtype, filled, missing)
    if type(array).__name__ == "DatetimeArray":
        zone = dtype if name == "DatetimeTZDtype" else None
        return boxed("pandas.times", zone, array.to_numpy(f"M8[{array.unit}]"))
    if type(array).__name__ == "TimedeltaArray":
        return boxed("pandas.times", None, array.to_numpy())
    raise _not_listed(array)


def _make_extension(dtype: Any, values: Any, other: Any = None) -> Any:
    import numpy as np
    import pandas as pd

    arrays = pd.arrays
    if dtype is None:
        _only_array(values)
        return arrays.NumpyExtensionArray(values)
    if isinstance(dtype, pd.CategoricalDtype):
        _only_array(values)
        return pd.Categorical.from_codes(values, dtype=dtype)
    if isinstance(dtype, pd.PeriodDtype):
        _only_array(values)
        return arrays.PeriodArray(values, dtype=dtype)
    if isinstance(dtype, pd.IntervalDtype):
        _only_backed(values)
        _only_backed(other)
        return arrays.IntervalArray.from_arrays(values, other, dtype.closed, dtype=dtype)
    if isinstance(dtype, pd.StringDtype):
        if type(values) is not list:
            raise TypeError("an array of texts is made of a list")
        return pd.array(values, dtype=dtype)
    if not isinstance(dtype, pd.api.extensions.ExtensionDtype):
        raise TypeError("an extension array is of a dtype of pandas")
    _only_array(values)
    _only_array(other)
    name = type(dtype).__name__
    if values.dtype != dtype.numpy_dtype or other.dtype != np.bool_:
        raise TypeError("an array with missing values, of two other arrays")
    kind = "Boolean" if name[0] == "B" else "Floating" if name[0] == "F" else "Integer"
    return getattr(arrays, f"{kind}Array")(values, other)


def _only_array(values: Any) -> None:
    import numpy as np

    if type(values) is not np.ndarray:
        raise TypeError("an extension array is made of arrays")


def _make_times(dtype: Any, values: Any) -> Any:
    import pandas as pd

    _only_array(values)
    if values.dtype.kind not in "mM" or values.ndim != 1:
        raise TypeError("times are an array of datetime64 or timedelta64")
    index: Any = (pd.DatetimeIndex if values.dtype.kind == "M" else pd.TimedeltaIndex)(values)
    if dtype is not None:
        index = index.tz_localize("UTC").tz_convert(dtype.tz)
    return index.array


# ── pandas: indexes, series, frames ─────────────────────────────────────────


def _pack_index(index: Any) -> Boxed:
    import numpy as np
    import pandas as pd

    if type(index) is pd.RangeIndex:
        return boxed("pandas.RangeIndex", index.start, index.stop, index.step, index.name)
    if type(index) is pd.MultiIndex:
        codes = list(map(np.asarray, index.codes))
        return boxed("pandas.MultiIndex", list(index.levels), codes, list(index.names))
    freq = index.freq if isinstance(index, (pd.DatetimeIndex, pd.TimedeltaIndex)) else None
    return boxed("pandas.Index", _column(index), index.name, None if freq is None else freq.freqstr)


def _column(values: Any) -> Any:
    """The values of a Series or Index: numpy's array, where it is one."""
    array = values.array
    return array.to_numpy() if type(array.dtype).__name__ == "NumpyEADtype" else array


def _make_range_index(start: int, stop: int, step: int, name: Any) -> Any:
    import pandas as pd

    return pd.RangeIndex(start, stop, step, name=name)


def _make_index(values: Any, name: Any, freq: str | None) -> Any:
    import numpy as np
    import pandas as pd

    if type(values) is not np.ndarray:
        _only_extension(values)
    index: Any = pd.Index(values, dtype=values.dtype, name=name, tupleize_cols=False)
    if freq is not None:
        if type(freq) is not str or not isinstance(index, (pd.DatetimeIndex, pd.TimedeltaIndex)):
            raise TypeError("a frequency is the name of one, and of an index of times")
        index.freq = freq  # pandas looks whether it fits
    return index


def _only_extension(values: Any) -> None:
    import pandas as pd

    if not isinstance(values, pd.api.extensions.ExtensionArray):
        raise TypeError("a column is an array of numpy or pandas")


def _make_multi_index(levels: list[Any], codes: list[Any], names: list[Any]) -> Any:
    import pandas as pd

    if not type(levels) is type(codes) is type(names) is list:
        raise TypeError("the parts of a MultiIndex are lists")
    for level in levels:
        _only_backed(level)
    for numbers in codes:
        _only_array(numbers)
    return pd.MultiIndex(levels=levels, codes=codes, names=names, verify_integrity=True)


def _pack_series(series: Any) -> Boxed:
    duplicates = series.flags.allows_duplicate_labels
    return boxed(
        "pandas.Series", _column(series), series.index, series.name, dict(series.attrs), duplicates
    )


def _make_series(values: Any, index: Any, name: Any, attrs: Any, duplicates: bool) -> Any:
    _only_index(index)
    return _flagged(_series(values, index, name), attrs, duplicates)


def _series(values: Any, index: Any, name: Any) -> Any:
    import numpy as np
    import pandas as pd

    if type(values) is not np.ndarray:
        _only_extension(values)
    if values.shape != (len(index),):
        raise ValueError("a column is as long as its index")  # pandas would repeat what is short
    return pd.Series(values, index=index, dtype=values.dtype, name=name, copy=False)


def _only_index(index: Any) -> None:
    import pandas as pd

    if not isinstance(index, pd.Index):
        raise TypeError("the labels of a Series or DataFrame are an Index")


def _only_backed(index: Any) -> None:
    """Refuse an index of which pandas would make an array that is as long as a sandbox likes."""
    import pandas as pd

    _only_index(index)
    if isinstance(index, pd.RangeIndex) and len(index) > MAX_UNBACKED:
        raise ValueError("a range of too many numbers to be an array")


def _flagged(made: Any, attrs: Any, duplicates: bool) -> Any:
    if type(attrs) is not dict:
        raise TypeError("attrs is a dict")
    made.attrs = attrs
    if not duplicates:
        made.flags.allows_duplicate_labels = False
    return made


def _pack_frame(frame: Any) -> Boxed:
    dtypes = set(frame.dtypes)
    if (
        len(dtypes) == 1
        and getattr(next(iter(dtypes)), "kind", "O") in "biufc"
        and _is_numpy(dtypes)
    ):
        content: Any = frame.to_numpy()  # one block: no copy
    else:
        content = [_column(frame.iloc[:, i]) for i in range(frame.shape[1])]
    duplicates = frame.flags.allows_duplicate_labels
    return boxed(
        "pandas.DataFrame", content, frame.index, frame.columns, dict(frame.attrs), duplicates
    )


def _is_numpy(dtypes: set[Any]) -> bool:
    import numpy as np

    return all(isinstance(dtype, np.dtype) for dtype in dtypes)


def _make_frame(content: Any, index: Any, columns: Any, attrs: Any, duplicates: bool) -> Any:
    import numpy as np
    import pandas as pd

    _only_index(index)
    _only_index(columns)
    if type(content) is np.ndarray:
        if content.dtype.kind not in "biufc" or content.shape != (len(index), len(columns)):
            raise TypeError("a DataFrame of one array is of numbers, for all rows and columns")
        frame = pd.DataFrame(content, index=index, columns=columns, copy=False)
    else:
        if type(content) is not list or len(content) != len(columns):
            raise TypeError("a DataFrame has as many columns as names of columns")
        numbered = {i: _series(column, index, None) for i, column in enumerate(content)}
        frame = pd.DataFrame(numbered, index=index, copy=False)
        frame.columns = columns
    return _flagged(frame, attrs, duplicates)


_PANDAS: dict[str, Callable[[Any], Boxed]] = {
    "DataFrame": _pack_frame,
    "Series": _pack_series,
    "Timestamp": _pack_timestamp,
    "Timedelta": lambda value: boxed("pandas.Timedelta", value.asm8),
    "Period": lambda value: boxed("pandas.Period", int(value.ordinal), value.freqstr),
    "Interval": lambda value: boxed("pandas.Interval", value.left, value.right, value.closed),
}

PACKER_OF: dict[str, Callable[[type], Packer | None]] = {
    "numpy": numpy_packer,
    "pandas": pandas_packer,
    "pytz": pytz_packer,
}
"""Package: what gives the packer of a type of it."""

MAKERS: dict[str, Maker] = {
    "numpy.array": _make_array,
    "numpy.objects": _make_objects,
    "numpy.records": _make_records,
    "numpy.scalar": _make_scalar,
    "numpy.str_": _make_str,
    "numpy.dtype": _dtype,
    "numpy.recarray": _make_recarray,
    "numpy.linalg": _make_linalg,
    "pytz.zone": _make_pytz,
    "pytz.offset": _make_pytz_offset,
    "pandas.Timestamp": _make_timestamp,
    "pandas.Timedelta": _make_timedelta,
    "pandas.Period": _make_period,
    "pandas.Interval": _make_interval,
    "pandas.NaT": _make_nat,
    "pandas.NA": _make_na,
    "pandas.dtype": _make_dtype,
    "pandas.array": _make_extension,
    "pandas.times": _make_times,
    "pandas.RangeIndex": _make_range_index,
    "pandas.MultiIndex": _make_multi_index,
    "pandas.Index": _make_index,
    "pandas.Series": _make_series,
    "pandas.DataFrame": _make_frame,
}
"""Kind: maker."""
