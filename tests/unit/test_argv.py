"""The command line is read as runc reads it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import UsageError
from grit_runtime.oci import argv

CONTAINERD = ["--root", "/run/containerd/runc/k8s.io", "--log", "/b/log.json", "--log-format", "json"]


def test_the_verb_is_found_by_position() -> None:
    found = argv.scan([*CONTAINERD, "restore", "--bundle", "create", "start"])
    assert (found.verb, found.args) == ("restore", ("--bundle", "create", "start"))
    assert found.root == "/run/containerd/runc/k8s.io"
    assert (found.log, found.log_format) == ("/b/log.json", "json")


def test_a_value_that_is_a_verb_is_a_value() -> None:
    assert argv.scan(["--log", "checkpoint", "state", "restore"]).verb == "state"


@pytest.mark.parametrize("form", [["--root=/r"], ["-root=/r"], ["--root", "/r"], ["-root", "/r"]])
def test_every_form_of_a_flag_is_read(form: list[str]) -> None:
    assert argv.scan([*form, "state", "x"]).root == "/r"


def test_the_default_root_is_runcs() -> None:
    assert argv.scan(["state", "x"]).root == "/run/runc"


@pytest.mark.parametrize("words", [["--nonsense", "state"], [], ["--root"], ["--debug"]])
def test_what_cannot_be_read_is_an_error(words: list[str]) -> None:
    with pytest.raises(UsageError):
        argv.scan(words)


def test_our_own_calls_inherit_the_globals_but_not_where_to_log_nor_criu() -> None:
    found = argv.scan([*CONTAINERD, "--systemd-cgroup", "--debug", "--criu", "/c", "--rootless=auto", "state", "x"])
    assert found.inherited() == ["--root", "/run/containerd/runc/k8s.io", "--systemd-cgroup", "--rootless=auto"]


def test_containerds_restore_is_read() -> None:
    flags = argv.read_flags(
        "restore",
        (
            "--image-path",
            "/i",
            "--work-path",
            "/w",
            "--detach",
            "--pid-file",
            "/p",
            "-no-subreaper",
            "--bundle",
            "/b",
            "id",
        ),
        argv.RESTORE,
    )
    assert flags.value("image-path") == "/i"
    assert {"detach", "no-subreaper"} == flags.switches
    assert argv.container_id("restore", flags) == "id"
    assert flags.without("image-path", "work-path", "bundle", "pid-file") == ["--detach", "-no-subreaper"]


def test_flags_may_follow_the_container_as_urfave_reorders_them() -> None:
    flags = argv.read_flags("delete", ("id", "--force"), argv.DELETE)
    assert flags.positional == ("id",)
    assert "force" in flags.switches


def test_a_double_dash_ends_the_flags() -> None:
    assert argv.read_flags("delete", ("--", "--force"), argv.DELETE).positional == ("--force",)


def test_a_switch_can_be_switched_off() -> None:
    assert argv.read_flags("delete", ("--force", "--force=false", "id"), argv.DELETE).switches == frozenset()


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a b", "ü", "a\n"])
def test_an_id_that_cannot_be_one_is_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        argv.container_id("delete", argv.read_flags("delete", (bad,), argv.DELETE))


@given(
    st.lists(st.sampled_from(["--leave-running", "--file-locks", "--image-path", "-work-path=x", "id", "--shell-job"]))
)
def test_handing_on_all_flags_loses_and_invents_nothing(words: list[str]) -> None:
    try:
        flags = argv.read_flags("checkpoint", tuple(words), argv.CHECKPOINT)
    except UsageError:
        assert words[-1:] == ["--image-path"]
        return
    handed_on = flags.without()
    assert sorted([*handed_on, *flags.positional]) == sorted(words)
    assert [word for word in words if word in handed_on or word == "id"] == [
        w for w in words if w != "id" or w in words
    ]
