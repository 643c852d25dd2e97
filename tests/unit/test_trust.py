"""What the images bring, against what the new config.json grants; whose checkpoint may be restored, and where."""

import copy
import json
import stat
from dataclasses import replace
from typing import Any

import pytest

from grit_runtime.criu.credentials import Credentials
from grit_runtime.criu.images import ImageMount, Images, OpenFile
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import grants, privileges, seccomp, trust
from grit_runtime.workflow import mounts as mount_plan
from grit_runtime.workflow.mounts import Kind, Offer, OldMount

_DEFAULT = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]
_SECCOMP = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
_CONFIG: dict[str, Any] = {
    "process": {
        "user": {"uid": 1000, "gid": 1000, "additionalGids": [2000]},
        "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]},
        "apparmorProfile": "cri-containerd.apparmor.d",
    },
    "linux": {
        "namespaces": [{"type": word} for word in ("pid", "network", "ipc", "uts", "mount")],
        "seccomp": _SECCOMP,
        "maskedPaths": ["/proc/kcore", "/proc/scsi"],
        "readonlyPaths": ["/proc/sys"],
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/data", "type": "bind", "source": "/pods/new/data", "options": ["rbind", "ro"]},
        {"destination": "/x", "type": "bind", "source": "/pods/new/x", "options": ["rbind", "rw"]},
    ],
}
_FITTING = Credentials(
    pid=1,
    users=frozenset({1000}),
    groups=frozenset({1000, 2000}),
    supplementary=frozenset({1000, 2000}),
    capabilities=1 << 5,  # CAP_KILL
    bounding=1 << 5,
    no_new_privileges=True,
    seccomp=2,
    lsm="cri-containerd.apparmor.d",
)


def _bundle(config: dict[str, Any] = _CONFIG) -> Bundle:
    return Bundle(path="/b", raw=json.dumps(config).encode(), config=config)


def _without(*keys: str) -> Bundle:
    config = copy.deepcopy(_CONFIG)
    section = config
    for key in keys[:-1]:
        section = section[key]
    del section[keys[-1]]
    return _bundle(config)


def test_what_fits_is_no_excess() -> None:
    assert privileges.problems(_bundle(), [_FITTING], {}, _CONFIG) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"capabilities": 1 << 21 | 1 << 5}, ["has CAP_SYS_ADMIN, which"]),
        ({"capabilities": 1 << 60}, ["has capability 60, which"]),
        ({"users": frozenset({0, 1000})}, ["runs as user 0, and the new container as 1000"]),
        ({"groups": frozenset({7})}, ["runs as group 7"]),
        ({"supplementary": frozenset({2000, 998})}, ["is in group 998"]),
        ({"no_new_privileges": False}, ["may gain privileges"]),
        ({"seccomp": 0}, ["has no seccomp filter"]),
        ({"lsm": ""}, ["has the LSM profile 'unconfined', and the new container 'cri-containerd.apparmor.d'"]),
        ({"lsm": "other", "seccomp": 0, "no_new_privileges": False}, ["may gain", "no seccomp", "LSM profile 'other'"]),
    ],
)  # fmt: skip
def test_each_privilege_that_config_json_does_not_grant_is_named(change: dict[str, Any], expected: list[str]) -> None:
    found = privileges.problems(_bundle(), [replace(_FITTING, **change)], {}, _CONFIG)
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert text.startswith("process 1 of the checkpoint ")
        assert part in text


def test_a_profile_that_refuses_by_arguments_allows_no_more_than_itself() -> None:
    args = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 8}]
    rule: dict[str, Any] = {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": args}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    assert seccomp.allowed_beyond(profile, profile) == []
    more = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule, {**rule, "args": []}]}
    assert seccomp.allowed_beyond(profile, more) == ["personality"]


@pytest.mark.parametrize(
    ("listed", "capabilities", "expected"),
    [
        ([], [], 0),
        ([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1}], [], 1),
        ([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1}], ["CAP_SYS_RESOURCE"], 0),
        ([{"type": "RLIMIT_NOFILE", "hard": 65536, "soft": 1}], [], 0),
        ([{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}], [], 1),
        ([{"type": "RLIMIT_CORE", "hard": (1 << 64) - 1}, {"type": "RLIMIT_NOFILE", "hard": -1}], [], 0),
        ([{"type": "RLIMIT_NOFILE", "hard": "x"}, {"hard": 1}], [], 0),
    ],
)
def test_a_hard_limit_above_that_of_config_json_is_named(
    listed: list[dict[str, Any]], capabilities: list[str], expected: int
) -> None:
    config = copy.deepcopy(_CONFIG)
    config["process"]["rlimits"] = listed
    config["process"]["capabilities"]["permitted"] += capabilities
    unlimited = (1 << 64) - 1
    found = replace(_FITTING, rlimits=(unlimited,) * 4 + (unlimited, unlimited, unlimited, 65536))
    texts = privileges.problems(_bundle(config), [found], {}, _CONFIG)
    assert len(texts) == expected
    assert all("has RLIMIT_" in text for text in texts)


def test_what_a_container_can_become_by_itself_is_no_excess() -> None:
    """Without noNewPrivileges a set-user-ID program of the image makes anybody of a process, and gives root what is in
    the bounding set.
    """
    config = copy.deepcopy(_CONFIG)
    config["process"].update(noNewPrivileges=False, capabilities={"bounding": _DEFAULT})
    root = replace(
        _FITTING, users=frozenset({0}), groups=frozenset({0}), supplementary=frozenset({0}), capabilities=1 << 6,
        bounding=1 << 6, no_new_privileges=False,
    )  # fmt: skip
    assert privileges.problems(_bundle(config), [root], {}, None) == []
    (beyond,) = privileges.problems(_bundle(config), [replace(root, bounding=1 << 16)], {}, None)
    assert "could gain CAP_SYS_MODULE" in beyond


def test_without_capabilities_in_config_json_there_are_none() -> None:
    assert "CAP_KILL" in privileges.problems(_without("process", "capabilities"), [_FITTING], {}, None)[0]


def test_the_caller_may_choose_another_lsm_profile() -> None:
    assert privileges.problems(_bundle(), [replace(_FITTING, lsm="old")], {}, None, lsm="new") == []


@pytest.mark.parametrize("word", ["pid", "network", "ipc", "uts", "mount"])
def test_a_namespace_of_the_host_is_named(word: str) -> None:
    (text,) = privileges.problems(_bundle(), [_FITTING], {word: 7}, None)
    assert text == f"process 7 of the checkpoint is in the host's {word} namespace, and the new container is not"
    assert privileges.problems(_without("linux", "namespaces"), [_FITTING], {word: 7}, None) == []


def _rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


_ERRNO = "SCMP_ACT_ERRNO"
_MASK = [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [
        ({}, {}, []),
        ({}, {"defaultAction": "SCMP_ACT_ALLOW"}, []),
        ({"defaultAction": "SCMP_ACT_ALLOW"}, _SECCOMP, ["*"]),
        (_SECCOMP, _SECCOMP, []),
        ({"defaultAction": _ERRNO, "syscalls": [_rule("read", "bpf")]}, _SECCOMP, ["bpf"]),
        ({"defaultAction": _ERRNO}, _SECCOMP, []),
        (
            {"defaultAction": _ERRNO, "syscalls": [_rule("clone")]},
            {"defaultAction": _ERRNO, "syscalls": [_rule("clone", args=_MASK)]},
            ["clone"],
        ),
        (
            {"defaultAction": _ERRNO, "syscalls": [_rule("clone", args=_MASK)]},
            {"defaultAction": _ERRNO, "syscalls": [_rule("clone")]},
            [],
        ),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [_rule("bpf", action=_ERRNO)]},
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [_rule("bpf", "mount", action=_ERRNO)]},
            ["mount"],
        ),
        ({"syscalls": "nonsense"}, {"defaultAction": _ERRNO, "syscalls": [7, {"names": 3}]}, ["*"]),
        ({}, _SECCOMP, ["*"]),
        ({}, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [_rule("mount", action=_ERRNO)]}, ["mount"]),
    ],
)
def test_what_one_seccomp_profile_allows_beyond_another(
    old: dict[str, Any], new: dict[str, Any], more: list[str]
) -> None:
    assert seccomp.allowed_beyond(old, new) == more


def test_filters_of_a_container_without_a_profile_are_its_own_programs() -> None:
    """They may allow anything, and so does their being there."""
    (text,) = privileges.problems(_bundle(), [_FITTING], {}, {"linux": None})
    assert "allows whatever it does not name" in text


def test_a_wider_seccomp_profile_of_the_old_container_is_named() -> None:
    old = {"linux": {"seccomp": {"defaultAction": _ERRNO, "syscalls": [_rule("read", "bpf", "mount")]}}}
    (text,) = privileges.problems(_bundle(), [_FITTING], {}, old)
    assert text == "the checkpoint's seccomp profile allows bpf, mount, and the new container's does not"


# --- mounts and files ------------------------------------------------------------------------------------------------

_CLOSED = 1 | 2 | 4 | 8


def _mount(mountpoint: str, key: str = "", **more: Any) -> ImageMount:
    base: dict[str, Any] = {
        "file": "mountpoints-12.img", "index": 0, "mnt_id": len(mountpoint), "parent_id": 0, "source": "",
        "root": "/", "fstype": "ext4", "deleted": False, "device": sum(mountpoint.encode()), "flags": 0,
    }  # fmt: skip
    return ImageMount(mountpoint=mountpoint, ext_key=key, **{**base, **more})


_USUAL = (
    _mount("/", device=77),
    _mount("/proc", fstype="proc", flags=_CLOSED - 1),
    _mount("/sys", fstype="sysfs", flags=_CLOSED),
    _mount("/proc/kcore", "/dev/null"),
    _mount("/proc/scsi", fstype="tmpfs", flags=1),
    _mount("/proc/sys", fstype="proc", root="/sys", flags=1),
    _mount("/data", "/data", flags=1),
)


def _grants(
    *mounts: ImageMount,
    files: tuple[OpenFile, ...] = (),
    host_mounts: tuple[str, ...] = (),
    bundle: Bundle | None = None,
    old: dict[str, OldMount] | None = None,
    sources: dict[str, Kind] | None = None,
) -> list[str]:
    bundle = bundle or _bundle()
    binds = mount_plan.bind_mounts(bundle)
    offer = Offer(
        provided=mount_plan.provided(bundle, {}, ()),
        sources={**dict.fromkeys(binds.values(), Kind.DIRECTORY), **(sources or {})},
        options=grants.options(bundle, {}),
        old=old or {},
    )
    images = Images(path="/i", files=("files.img",), mounts=mounts, processes=(), version=2, open_files=files)
    steps = mount_plan.steps(images, offer)
    there = [*bundle.strings("linux", "maskedPaths"), *bundle.strings("linux", "readonlyPaths")]
    return grants.problems(bundle, images, steps, offer, host_mounts, there)


def test_the_usual_mounts_are_granted() -> None:
    assert _grants(*_USUAL) == []


def _but(mountpoint: str, *others: ImageMount) -> tuple[ImageMount, ...]:
    return (*(mount for mount in _USUAL if mount.mountpoint != mountpoint), *others)


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        (_but("/data", _mount("/data", "/data")), "mount /data is read-only in the new container"),
        (_but("/sys", _mount("/sys", fstype="sysfs", flags=2)), "mount /sys is read-only and nodev and noexec in"),
        (_but("/proc/kcore"), "/proc/kcore is masked in the new container, and not in the checkpoint"),
        (_but("/proc/scsi", _mount("/proc/scsi", fstype="tmpfs")), "/proc/scsi is masked"),
        (_but("/proc/sys"), "/proc/sys is read-only in the new container, and not in the checkpoint"),
        ((*_USUAL, _mount("/host", fstype="ext4", source="/dev/sda1")), "mount /host of the checkpoint (ext4)"),
        ((*_USUAL, _mount("/d", fstype="devtmpfs")), "mount /d of the checkpoint (devtmpfs)"),
        ((*_USUAL, _mount("/p2", fstype="proc")), "mount /p2 of the checkpoint (proc)"),
        ((*_USUAL, _mount("/p3", fstype="proc", root="/kcore", flags=1)), "shows /proc/kcore, which the new"),
        ((*_USUAL, _mount("/p4", fstype="proc", root="/sys/kernel")), "makes /proc/sys/kernel writable"),
        ((*_USUAL, _mount("/b", root="/etc", device=5)), "mount /b of the checkpoint (ext4)"),
    ],
)  # fmt: skip
def test_each_mount_that_config_json_does_not_grant_is_named(mounts: tuple[ImageMount, ...], expected: str) -> None:
    (text,) = _grants(*mounts)
    assert expected in text


@pytest.mark.parametrize(
    "mount",
    [
        _mount("/tmp", fstype="tmpfs"),
        _mount("/b", root="/etc", device=77),  # a part of the rootfs
        _mount("/x/sub", root="/sub", device=sum(b"/x")),  # a part of /x
        _mount("/p", fstype="proc", root="/sys/kernel", flags=1),
    ],
)
def test_what_the_container_has_anyway_is_granted(mount: ImageMount) -> None:
    assert _grants(*_USUAL, _mount("/x", "/x"), mount) == []


@pytest.mark.parametrize(
    ("namespaces", "flags", "expected"),
    [
        ([{"type": "cgroup"}], 1, ""),
        ([], 1, "mount /sys/fs/cgroup/cpu of the checkpoint (cgroup) is not in the new container's config.json"),
        ([{"type": "cgroup"}], 0, "mount /sys/fs/cgroup/cpu is read-only in the new container"),
    ],
)
def test_hierarchies_of_cgroup_v1_need_a_cgroup_namespace(
    namespaces: list[dict[str, str]], flags: int, expected: str
) -> None:
    config = copy.deepcopy(_CONFIG)
    config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]})
    config["linux"]["namespaces"] = namespaces
    found = _grants(*_USUAL, _mount("/sys/fs/cgroup/cpu", fstype="cgroup", flags=flags), bundle=_bundle(config))
    assert found == [] if not expected else expected in found[0]


def test_images_whose_open_files_cannot_be_looked_at_are_named() -> None:
    images = Images(path="/i", files=("reg-files.img",), mounts=_USUAL, processes=(), version=2)
    offer = Offer(provided=mount_plan.provided(_bundle(), {}, ()), sources={})
    (text,) = grants.problems(_bundle(), images, mount_plan.steps(images, offer), offer, (), ())
    assert "has no files.img" in text


def test_with_cap_sys_admin_a_container_mounts_what_it_likes() -> None:
    config = copy.deepcopy(_CONFIG)
    config["process"]["capabilities"]["permitted"] += ["CAP_SYS_ADMIN"]
    assert _grants(*_USUAL, _mount("/d", fstype="tracefs"), bundle=_bundle(config)) == []


@pytest.mark.parametrize(
    ("source", "flags", "allowed", "granted"),
    [
        ("/root", 1, (), False),
        ("/etc", 1, ("/usr", "/lib:ro"), False),
        ("/usr/lib/x.so", 1, ("/usr:ro",), True),
        ("/usr/lib/x.so", 0, ("/usr:ro",), False),
        ("/usr/../etc", 1, ("/usr:ro",), False),
        ("/usrx", 1, ("/usr",), False),
        ("/dev/nvidia0", 0, ("/dev/nvidia*",), True),
        ("/dev/sda", 0, ("/dev/nvidia*",), False),
    ],
)
@pytest.mark.parametrize("by", ["images", "manifest"])
def test_a_host_path_that_the_checkpoint_brings_must_be_one_of_the_site_s(
    source: str, flags: int, allowed: tuple[str, ...], granted: bool, by: str
) -> None:
    key, old = ("CRIU:AUTOGENERATED", {}) if by == "images" else ("/m", {"/m": OldMount(directory=True, source=source)})
    mount = _mount("/m", key, source=source, flags=flags)
    found = _grants(*_USUAL, mount, host_mounts=allowed, old=old, sources={source: Kind.DIRECTORY})
    assert (found == []) == granted
    assert granted or "`trust.host-mounts`" in found[0]


def _file(path: str, mode: int = stat.S_IFREG, mnt_id: int = -1) -> OpenFile:
    return OpenFile(id=1, index=0, path=path, mnt_id=mnt_id, mode=mode)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (_file("/../../etc/shadow"), "leads out of the container"),
        (_file("/a/../../b"), "leads out of the container"),
        (_file("/a", mnt_id=4711), "is on a mount that is not the container's"),
        (_file("/dev/sda", stat.S_IFBLK), "has device /dev/sda open"),
        (_file("/dev/mem", stat.S_IFCHR), "has device /dev/mem open"),
        (_file("/a/..b"), ""),
        (_file("/dev/null", stat.S_IFCHR), ""),
        (_file("/x/fuse", stat.S_IFCHR), ""),
    ],
)
def test_a_file_that_leads_out_of_the_container_is_named(file: OpenFile, expected: str) -> None:
    found = _grants(*_USUAL, files=(file,))
    assert len(found) == bool(expected)
    assert not expected or expected in found[0]


# --- namespaces, and CRIU's options ----------------------------------------------------------------------------------

_CRI, _CRIO = "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"


@pytest.mark.parametrize(
    ("annotations", "old", "rules", "granted"),
    [
        ({_CRI: "a"}, "a", {}, True),
        ({_CRI: "a"}, "b", {}, False),
        ({_CRIO: "a"}, "b", {}, False),
        ({_CRI: "a"}, "", {}, False),
        ({}, "b", {}, True),
        ({_CRI: "a"}, "b", {"b": ["a"]}, True),
        ({_CRI: "a"}, "b", {"a": ["b"]}, False),
        ({_CRI: "a"}, "b", {"b": ["*"]}, True),
        ({_CRI: "a"}, "b", {"*": ["a"]}, True),
        ({_CRI: "a"}, "", {"": ["a"]}, True),
        ({_CRI: "a"}, "b", {"": ["*"]}, False),
        ({_CRI: "b", _CRIO: "a"}, "b", {"*": ["*"]}, False),  # a pod of CRI-O's that sets containerd's key
        ({_CRI: "a", _CRIO: "a"}, "a", {}, True),
    ],
)
def test_a_checkpoint_stays_in_its_namespace(
    annotations: dict[str, str], old: str, rules: dict[str, list[str]], granted: bool
) -> None:
    assert (trust.wrong_namespace(annotations, old, rules) == []) == granted


@pytest.mark.parametrize(
    ("old", "place", "rules", "granted"),
    [
        ("", "a", {}, True),
        ("", "b", {}, False),
        ("b", "a", {}, False),
        ("a", "b", {}, True),
        ("", "b", {"b": ["a"]}, True),
        ("", "b", {"": ["a"]}, True),
    ],
)
def test_one_that_does_not_say_is_its_directory_s(
    old: str, place: str, rules: dict[str, list[str]], granted: bool
) -> None:
    assert (trust.wrong_namespace({_CRI: "a"}, old, rules, place) == []) == granted


@pytest.mark.parametrize(
    ("annotations", "allowed", "granted"),
    [
        ({"org.criu.config": "/tmp/x", _CRI: "a"}, "refuse", False),
        ({"org.criu.config": "/tmp/x", "io.kubernetes.cri-o.SandboxID": "1"}, "refuse", False),
        ({"org.criu.config": "/state/../tmp/x", _CRI: "a"}, "refuse", False),
        ({"org.criu.config": "/state/r/c/criu.conf", _CRI: "a"}, "refuse", True),
        ({"org.criu.config": "/tmp/x", _CRI: "a"}, "allow", True),
        ({"org.criu.config": "/tmp/x"}, "refuse", True),
        ({_CRI: "a"}, "refuse", True),
    ],
)
def test_a_pod_does_not_choose_criu_s_options(annotations: dict[str, str], allowed: str, granted: bool) -> None:
    assert (trust.foreign_criu_options(annotations, "/state", allowed) == []) == granted
