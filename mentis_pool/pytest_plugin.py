"""The fixture ``sandbox_session``, for pytest: a sandbox and the queue of its observations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mentis_pool.sandbox import MentisSandbox, ObservationQueue


@pytest.fixture
def sandbox_session() -> Iterator[tuple[MentisSandbox, ObservationQueue]]:
    """As `mentis_pool.sandbox_session`: at the runtime of MENTIS_RUNTIME_URL, or at one of its own."""
    # Here, since every run of pytest loads this file.
    from mentis_pool.sandbox import sandbox_session

    with sandbox_session() as session:
        yield session
