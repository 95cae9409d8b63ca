"""How a sandbox writes what is no plain data: as a box, the one name in its pickles.

A box has a kind and parts, which are plain data and boxes::

    box("date", 2024, 2, 29)
    box("new", box("class", "shop", "Order"), (), {})    and its state, and its items

The pickle of a result names nothing else. In the client a box is a note of what was asked
for, and `mentis_pool.rebuild` decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

Boxed: TypeAlias = tuple[
    Any, tuple[Any, ...], Any, "Iterator[object] | None", "Iterator[tuple[object, object]] | None"
]
"""As ``__reduce__`` gives it: callable, arguments, state, items, pairs of key and value."""


def box(kind: str, /, *parts: object) -> object:
    """Stand for an object in the pickle of a result; nobody calls it."""
    raise TypeError("what a sandbox returned is read by mentis_pool.rebuild only")


def boxed(
    kind: str,
    /,
    *parts: object,
    state: object = None,
    items: Iterable[object] | None = None,
    pairs: Iterable[tuple[object, object]] | None = None,
) -> Boxed:
    """Give what a pickler's ``reducer_override`` returns for an object.

    What may hold the object itself is its state, items or pairs, not a part.
    """
    return (
        box,
        (kind, *parts),
        state,
        None if items is None else iter(items),
        None if pairs is None else iter(pairs),
    )
