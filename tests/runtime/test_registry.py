"""Spaces, and which sandboxes are in them."""

from __future__ import annotations

import pytest

from mentis_pool.mentis_v1 import NewSpace, SpaceChange
from mentis_pool.runtime.registry import Conflict, Missing, Registry


@pytest.fixture
def registry():
    return Registry(0.0)


def test_there_is_always_a_space_called_default(registry):
    assert [space.space_id for space in registry.spaces()] == ["default"]
    with pytest.raises(Conflict, match="always there"):
        registry.delete("default")
    with pytest.raises(Conflict, match="'default' already"):
        registry.create("s", NewSpace("default"), 1.0)


def test_a_space_is_made_changed_and_deleted(registry):
    space = registry.create("s", NewSpace("n", "d", {"a": 1}), 1.0)
    assert (space.space_id, space.name, space.description, space.metadata) == (
        "s",
        "n",
        "d",
        {"a": 1},
    )
    assert registry.space("s") is space
    registry.change("s", SpaceChange(description="new"), 2.0)
    assert (space.description, space.metadata) == ("new", {"a": 1})
    registry.change("s", SpaceChange(metadata={}), 3.0)
    assert (space.description, space.metadata) == ("new", {})
    assert (space.created.timestamp(), space.updated.timestamp()) == (1.0, 3.0)
    registry.add("s", "b1", "sandbox 1")
    assert registry.delete("s") == ["sandbox 1"]
    for look in (registry.space, registry.delete, lambda s: registry.change(s, SpaceChange(), 0.0)):
        with pytest.raises(Missing, match="no space 's'"):
            look("s")
    registry.create("s2", NewSpace("n"), 4.0)
    with pytest.raises(Conflict, match="'n' already"):
        registry.create("s3", NewSpace("n"), 5.0)


def test_a_sandbox_is_found_in_its_own_space_alone(registry):
    registry.create("s", NewSpace("n"), 1.0)
    registry.add("s", "b", "sandbox")
    assert registry.sandbox("b") == registry.sandbox("b", "s") == "sandbox"
    with pytest.raises(Missing, match="no sandbox 'b' in the space 'default'"):
        registry.sandbox("b", "default")
    with pytest.raises(Missing, match="no space 'x'"):
        registry.sandbox("b", "x")
    with pytest.raises(Missing, match="no space 'x'"):
        registry.add("x", "c", "sandbox")
    registry.remove("b")
    registry.remove("b")
    with pytest.raises(Missing, match=r"no sandbox 'b'$"):
        registry.sandbox("b")
