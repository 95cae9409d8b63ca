"""Spaces, and which sandboxes are in them.

Pure: ids and times are arguments. What a sandbox is, is not known here.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, Generic, TypeVar

from mentis_pool.mentis_v1 import DEFAULT_SPACE, NewSpace, SpaceChange

S = TypeVar("S")


class Missing(LookupError):
    """There is no such space or sandbox; the message names it."""


class Conflict(Exception):
    """What is asked for contradicts what is there; the message says how."""


@dataclasses.dataclass
class Space(Generic[S]):
    """A group of sandboxes, by their ids."""

    space_id: str
    name: str
    description: str
    metadata: dict[str, Any]
    created: datetime.datetime
    updated: datetime.datetime
    sandboxes: dict[str, S] = dataclasses.field(default_factory=dict)


class Registry(Generic[S]):
    """All spaces; the one called "default" is always there."""

    def __init__(self, now: float) -> None:
        time = _time(now)
        self._spaces: dict[str, Space[S]] = {
            DEFAULT_SPACE: Space(DEFAULT_SPACE, DEFAULT_SPACE, "", {}, time, time)
        }

    def create(self, space_id: str, wanted: NewSpace, now: float) -> Space[S]:
        """A new space.

        Raises:
            Conflict: there is one of that name.
        """
        if any(space.name == wanted.name for space in self._spaces.values()):
            raise Conflict(f"there is a space called {wanted.name!r} already")
        time = _time(now)
        space: Space[S] = Space(
            space_id, wanted.name, wanted.description or "", wanted.metadata or {}, time, time
        )
        self._spaces[space_id] = space
        return space

    def spaces(self) -> list[Space[S]]:
        """All, the oldest first."""
        return list(self._spaces.values())

    def space(self, space_id: str) -> Space[S]:
        """The space with this id.

        Raises:
            Missing: there is none.
        """
        if space_id not in self._spaces:
            raise Missing(f"there is no space {space_id!r}")
        return self._spaces[space_id]

    def change(self, space_id: str, change: SpaceChange, now: float) -> None:
        """Set what is given.

        Raises:
            Missing: there is no such space.
        """
        space = self.space(space_id)
        if change.description is not None:
            space.description = change.description
        if change.metadata is not None:
            space.metadata = change.metadata
        space.updated = _time(now)

    def delete(self, space_id: str) -> list[S]:
        """Remove a space; its sandboxes, which are to be ended.

        Raises:
            Missing: there is no such space.
            Conflict: it is the default one.
        """
        space = self.space(space_id)
        if space_id == DEFAULT_SPACE:
            raise Conflict(f"the space {DEFAULT_SPACE!r} is always there, and cannot be deleted")
        del self._spaces[space_id]
        return list(space.sandboxes.values())

    def add(self, space_id: str, sandbox_id: str, sandbox: S) -> None:
        """A new sandbox is in this space.

        Raises:
            Missing: there is no such space.
        """
        self.space(space_id).sandboxes[sandbox_id] = sandbox

    def sandbox(self, sandbox_id: str, space_id: str | None = None) -> S:
        """The sandbox with this id, in this space (None: in any).

        Raises:
            Missing: there is no such space or sandbox, or it is in another space.
        """
        spaces = self.spaces() if space_id is None else [self.space(space_id)]
        for space in spaces:
            if sandbox_id in space.sandboxes:
                return space.sandboxes[sandbox_id]
        where = "" if space_id is None else f" in the space {space_id!r}"
        raise Missing(f"there is no sandbox {sandbox_id!r}{where}")

    def remove(self, sandbox_id: str) -> None:
        """A sandbox is no more; one that is not there any more is none as well."""
        for space in self._spaces.values():
            space.sandboxes.pop(sandbox_id, None)


def _time(now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
