"""Variables to bytes.

Only this direction: what is pickled here is rebuilt in a sandbox, and nothing
that comes out of a sandbox is ever unpickled.
"""

from __future__ import annotations

import pickle

from mentis_pool.errors import PayloadError
from mentis_pool.pool_stream import MAX_RUN

# Of these, pickle alone gives the same bytes as cloudpickle, sooner.
_SIMPLE = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))


def pickle_variables(variables: dict[str, object]) -> dict[str, bytes]:
    """Each variable as a pickle of its own.

    Functions, lambdas and classes of ``__main__`` travel by value, what can be
    imported by its name.

    Raises:
        PayloadError: one cannot be pickled, is too large, or has no name of
            Python's; the message names it.
    """
    for name in variables:
        if not name.isidentifier():
            raise PayloadError(f"{name!r} cannot be the name of a variable")
    pickles = {name: _pickle(name, value) for name, value in variables.items()}
    total = sum(map(len, pickles.values()))
    if total > MAX_RUN:
        largest = max(pickles, key=lambda name: len(pickles[name]))
        raise PayloadError(
            f"the variables have {total} bytes, over the limit of {MAX_RUN}; "
            f"the largest is {largest!r} with {len(pickles[largest])}"
        )
    return pickles


def _pickle(name: str, value: object) -> bytes:
    if type(value) in _SIMPLE:
        return pickle.dumps(value, 5)
    import cloudpickle  # takes 20 ms to import, and most cells have no such variable

    try:
        return bytes(cloudpickle.dumps(value, 5))
    except Exception as exc:  # pickling runs any code of the value's class
        raise PayloadError(
            f"the variable {name!r} ({type(value).__name__}) cannot travel to a sandbox: {exc}"
        ) from exc
