"""What runtime programs have in common: a directory of their own, and what the dead left."""

from __future__ import annotations

import os
import stat
import time

import pytest

from mentis_pool.runtime import program


def test_the_directory_is_private_and_gone_afterwards_with_all_that_is_in_it(tmp_path):
    path = str(tmp_path / "directory")
    with pytest.raises(ZeroDivisionError):
        with program.own_directory(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
            os.makedirs(os.path.join(path, "s-1", "work"))
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_there_already_is_not_taken(tmp_path):
    with pytest.raises(OSError, match=r"no directory .* can be made in .*File exists.*TMPDIR"):
        with program.own_directory(str(tmp_path)):
            pass
    assert tmp_path.exists()


def test_only_old_directories_of_the_dead_are_swept(tmp_path):
    hour_ago = time.time() - 3600
    dead, young, alive = (
        tmp_path / f"{program.prefix()}{name}" for name in ("dead", "young", "alive")
    )
    for path in (dead, young, tmp_path / "something-else"):
        (path / "s-1" / "work").mkdir(parents=True)
    with program.own_directory(str(alive)):
        for path in (dead, alive, tmp_path / "something-else"):
            os.utime(path, (hour_ago, hour_ago))
        program.sweep(str(tmp_path))
        assert set(tmp_path.iterdir()) == {young, alive, tmp_path / "something-else"}


def test_what_looks_like_a_directory_of_ours_is_not_followed(tmp_path):
    (tmp_path / "target" / "file").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    link = tmp_path / "base" / f"{program.prefix()}link"
    link.symlink_to(tmp_path / "target")
    os.utime(link, (0, 0), follow_symlinks=False)
    program.sweep(str(tmp_path / "base"))
    assert (tmp_path / "target" / "file").exists()
    assert link.is_symlink()
