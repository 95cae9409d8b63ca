"""Pickles as a sandbox would forge them: boxes of anybody's choice."""

from __future__ import annotations

import pickle

from mentis_pool.boxes import boxed
from mentis_pool.payload import Call
from mentis_pool.rebuild import rebuild
from mentis_pool.returned import pack_value
from mentis_pool.trust import Trust


class Ask:
    """Written as the box that its arguments say."""

    def __init__(self, kind, *parts, **more):
        self.kind, self.parts, self.more = kind, parts, more

    def __reduce__(self):
        return boxed(self.kind, *self.parts, **self.more)


def cls(of, name=None):
    """The box of a class: given itself, or by module and name."""
    return Ask("class", of.__module__, of.__qualname__) if name is None else Ask("class", of, name)


def forge(value):
    return pickle.dumps(value, 5)


def read(pickled, *packages, trust=(), classes=None):
    return rebuild(pickled, Call(b"", frozenset(packages), classes), Trust.of(trust))


def there_and_back(value, *packages, trust=(), classes=None):
    return read(pack_value(value), *packages, trust=trust, classes=classes)
