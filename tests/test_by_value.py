"""What goes by value and what by name, and what is noted of it."""

from __future__ import annotations

import io
import json
import pickle
import types

import pytest

from mentis_pool.by_value import ByValue

HERE = __name__


class Shop:
    """What can be imported, or not, as the test says."""


def open_shop():
    return Shop


def pickled(value, *, unknown=()):
    """The pickler, once done, and the pickle; of all modules only ``unknown`` cannot be imported."""
    file = io.BytesIO()
    pickler = ByValue(file, lambda module: module not in unknown)
    pickler.dump(value)
    return pickler, file.getvalue()


def noted(pickler):
    """The modules, without those of what cloudpickle needs itself."""
    return {m for m in pickler.modules if m.partition(".")[0] not in ("builtins", "cloudpickle")}


def in_main(name, **more):
    """A class that the script that is run defines again and again."""
    return type(name, (), {"__module__": "__main__", **more})


def test_what_can_be_imported_is_named_and_its_module_noted():
    pickler, content = pickled([Shop, open_shop, json.loads])
    assert noted(pickler) == {HERE, "json"}
    assert pickler.classes == {}
    assert pickle.loads(content) == [Shop, open_shop, json.loads]


def test_what_cannot_be_imported_is_carried_though_it_is_in_sys_modules():
    pickler, content = pickled([Shop, open_shop], unknown=[HERE])
    assert noted(pickler) == {HERE}
    assert pickler.classes == {(HERE, "Shop"): Shop}
    shop, function = pickle.loads(content)
    assert shop.__doc__ == Shop.__doc__
    assert function() is shop
    assert function is not open_shop


def test_code_is_carried_with_the_name_of_its_file_for_tracebacks():
    _, content = pickled(lambda: lambda: 1)
    function = pickle.loads(content)
    assert function.__code__.co_filename == function().__code__.co_filename == __file__


def test_a_module_is_noted():
    pickler, content = pickled({"json": json})
    assert noted(pickler) == {"json"}
    assert pickle.loads(content) == {"json": json}


def test_a_builtin_function_is_named():
    pickler, content = pickled([len, Shop()])
    assert pickler.modules == {"builtins", HERE}
    assert pickle.loads(content)[0] is len


def test_objects_are_no_business_of_ours():
    pickler, content = pickled([1, "x", pickle.PickleBuffer(b"x")])
    assert not noted(pickler)
    assert not pickler.classes
    assert pickle.loads(content)[:2] == [1, "x"]


def test_a_method_of_a_builtin_type_has_no_module():
    pickler, content = pickled(dict.fromkeys)
    assert pickle.loads(content)("a") == {"a": None}
    assert None not in pickler.modules


def test_a_carried_class_is_found_under_the_name_that_it_has_in_the_sandbox():
    one, other = in_main("Own"), in_main("Own")
    function_made = in_main("Local", __qualname__="make.<locals>.Local")
    pickler, content = pickled([one, other, one, other(), function_made])
    assert pickler.classes == {
        ("__main__", "Own"): one,
        ("__main__", "Own'"): other,
        ("__main__", "make.<locals>.Local"): function_made,
    }
    back = pickle.loads(content)
    assert back[0] is back[2]
    assert type(back[3]) is back[1]
    assert [cls.__qualname__ for cls in (back[0], back[1], back[4])] == [
        "Own",
        "Own'",
        "make.<locals>.Local",
    ]


@pytest.mark.parametrize("value", [None, ..., NotImplemented], ids=repr)
def test_the_type_of_a_singleton_is_named(value):
    pickler, content = pickled(type(value))
    assert pickle.loads(content) is type(value)
    assert not pickler.classes


def test_a_class_whose_module_is_no_text_is_carried_and_does_not_come_back():
    strange = in_main("Strange")
    strange.__module__ = 5
    pickler, content = pickled(strange)
    assert not noted(pickler)
    assert not pickler.classes
    assert pickle.loads(content).__name__ == "Strange"


def test_a_function_made_anew_is_carried_with_what_it_uses():
    made = types.FunctionType(open_shop.__code__, {"Shop": json}, "made")
    made.__module__ = "__main__"
    pickler, content = pickled(made)
    assert noted(pickler) == {"__main__", "json"}
    assert pickle.loads(content)() is json
