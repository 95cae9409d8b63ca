"""What bubblewrap is told: the paths that are shown, and its command line."""

from __future__ import annotations

import pytest

from mentis_pool.runtime import wall

HOME = "/home/me"
LINKS = {"/bin": "usr/bin", "/lib": "usr/lib"}


def visible(*wanted):
    return wall.visible(wanted, HOME, LINKS)


# ── what is shown ───────────────────────────────────────────────────────────


def test_directories_are_shown_at_their_own_paths_parents_first():
    assert visible("/usr", "/srv/b", "/opt/a") == ["/opt/a", "/srv/b", "/usr"]


def test_what_lies_below_another_one_is_shown_with_it():
    assert visible("/opt/a/lib", "/opt/a", "/opt/a", "/opt/ab") == ["/opt/a", "/opt/ab"]


@pytest.mark.parametrize(
    "path", ["/", "/home", HOME, "/root", "/tmp", "/var/tmp", "/work", "/etc", "/proc", "/dev/shm"]
)
def test_a_home_directory_or_what_is_everyones_is_not_shown(path):
    assert visible(path) == []


def test_a_home_elsewhere_is_not_shown_nor_what_it_lies_in():
    assert wall.visible(["/data", "/data/me", "/data/me/x"], "/data/me", {}) == ["/data/me/x"]


def test_directories_below_home_tmp_and_work_are_shown_alone():
    wanted = ["/home/me/project", "/tmp/env", "/work/project"]
    assert visible(*wanted) == wanted


def test_what_is_named_through_a_link_of_the_root_is_not_mounted_there():
    assert visible("/bin/python3", "/usr") == ["/usr"]


def test_what_lies_in_the_rooms_of_a_sandbox_is_told_apart():
    shown = ["/tmp/env", "/tmpfiles", "/usr", "/work/project", "/dev/shm/x"]
    assert wall.in_rooms(shown) == ["/tmp/env", "/work/project", "/dev/shm/x"]


# ── files that are made ─────────────────────────────────────────────────────


def test_without_a_network_localhost_still_has_its_name():
    assert "127.0.0.1 localhost" in wall.files("none")["/etc/hosts"]
    assert set(wall.files("host")) == {"/etc/passwd", "/etc/group"}


def test_who_lives_in_the_sandbox_is_all_that_its_passwd_says():
    users = [line.split(":")[0] for line in wall.files("none")["/etc/passwd"].splitlines()]
    assert users == ["root", "sandbox"]


# ── the command line ────────────────────────────────────────────────────────


def pairs(words, option):
    return [tuple(words[i + 1 : i + 3]) for i, word in enumerate(words) if word == option]


def made(**options):
    return wall.command("/x/bwrap", ["/tmp/env", "/usr"], LINKS, {"/etc/passwd": 7}, **options)


def test_every_kind_of_namespace_is_new():
    words = made()
    assert words[0] == "/x/bwrap"
    for kind in ("user", "pid", "net", "ipc", "uts"):
        assert f"--unshare-{kind}" in words
    assert {"--die-with-parent", "--disable-userns", "--new-session"} <= set(words)


def test_the_network_of_the_host_is_kept_on_request():
    words = made(network="host")
    assert "--unshare-net" not in words
    assert [name for name, _ in pairs(words, "--cap-add")] == ["CAP_SYS_ADMIN"]


def test_all_capabilities_are_dropped_before_two_are_given_back():
    words = made()
    assert pairs(words, "--cap-drop")[0][0] == "ALL"
    assert [name for name, _ in pairs(words, "--cap-add")] == ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
    assert words.index("--cap-drop") < words.index("--cap-add")


def test_what_is_shown_is_mounted_read_only_after_the_rooms_it_may_lie_in():
    words = made()
    assert pairs(words, "--ro-bind") == [("/tmp/env", "/tmp/env"), ("/usr", "/usr")]
    assert "--bind" not in words
    assert words.index("/tmp") < words.index("--ro-bind")


def test_from_a_stage_it_is_shown_at_its_own_path():
    words = made(stage="/tmp")
    assert pairs(words, "--ro-bind") == [("/tmp/tmp/env", "/tmp/env"), ("/tmp/usr", "/usr")]


def test_links_and_files_are_made_and_then_nothing_can_be_written():
    words = made()
    assert pairs(words, "--symlink") == [("usr/bin", "/bin"), ("usr/lib", "/lib")]
    assert pairs(words, "--file") == [("7", "/etc/passwd")]
    assert [path for path, _ in pairs(words, "--remount-ro")] == ["/dev", "/"]
    assert words.index("--remount-ro") > words.index("--file")
