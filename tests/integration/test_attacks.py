"""Attacks on a restore, each by somebody who can write an annotation, a checkpoint or a directory, or who has a
checkpoint of a container with more privileges. Each fails if its guard is taken away.
"""

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.criu import images as codec
from tests import keys
from tests.integration.machine import Bundle, Machine

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

_NOBODY = 65534


def _capture(machine: Machine, where: str = "ns/first/app", old: Bundle | None = None) -> Path:
    """A checkpoint of a counter that is gone."""
    machine.start("old", old or machine.bundle("old"))
    path = machine.checkpoints / where / "checkpoint"
    machine.grit("checkpoint", "--image-path", str(path), "old").ok()
    return path


def _pod(machine: Machine, name: str = "new", **annotations: str) -> Bundle:
    made = machine.bundle(name)
    given = annotations if {"checkpoint", "restore_name"} & annotations.keys() else {"restore_name": "first"}
    made.annotate(type="container", name="app", **{"namespace": "ns", **given, **annotations})
    return made


def _refused(machine: Machine, bundle: Bundle) -> str:
    """Try a restore by annotation that must fail, and return its one line."""
    ran = machine.grit("create", "--bundle", str(bundle.path), "new")
    assert ran.code == 1
    assert machine.containers() == []
    assert machine.leftovers() == []
    return ran.err


def _restored(machine: Machine, bundle: Bundle) -> None:
    machine.grit("create", "--bundle", str(bundle.path), "new").ok()
    machine.grit("start", "new").ok()
    machine.counts(bundle)


# --- the path --------------------------------------------------------------------------------------------------------


def _during(machine: Machine, script: str) -> None:
    """Have something happen after everything was checked, right before runc's restore begins."""
    program = machine.path / "runc-later"
    program.write_text(f'#!/bin/sh\ncase " $* " in *" restore "*) {script};; esac\nexec {shutil.which("runc")} "$@"\n')
    program.chmod(0o755)
    machine.configure(downstream=str(program))


@pytest.mark.parametrize("by", ["rename", "link", "link-above"])
@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_checkpoint_that_is_replaced_meanwhile_is_not_what_is_restored(machine: Machine, by: str, verb: str) -> None:
    images = _capture(machine)
    evil = machine.path / "evil"
    shutil.copytree(images.parent, evil)
    for image in (evil / "checkpoint").iterdir():
        image.write_bytes(b"evil")
    held = images if by != "link-above" else images.parent
    other = evil / "checkpoint" if held == images else evil
    replace = f'ln -s "{other}" "{held}"' if by.startswith("link") else f'mv "{other}" "{held}"'
    _during(machine, f'mv "{held}" "{machine.path}/moved"; {replace}')
    new = _pod(machine)
    if verb == "create":
        _restored(machine, new)
    else:
        machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
        machine.counts(new)
    # As it was, for the machine's own look at what is left.
    held.unlink() if held.is_symlink() else shutil.rmtree(held)
    (machine.path / "moved").rename(held)


@pytest.mark.parametrize(
    "where", ["", "ns", "ns/first", "ns/first/app", "ns/first/app/checkpoint", "ns/first/app/checkpoint/pstree.img"]
)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda path: os.chown(path, _NOBODY, 0), f"belongs to user {_NOBODY}"),
        (lambda path: path.chmod(path.stat().st_mode | 0o020), "may be written by others"),
        (lambda path: path.chmod(path.stat().st_mode | 0o002), "may be written by others"),
    ],
    ids=["owner", "group", "world"],
)
def test_what_others_may_write_is_not_restored_by_annotation(
    machine: Machine, where: str, how: Callable[[Path], None], said: str
) -> None:
    _dummy(machine)
    place = machine.checkpoints / where
    how(place)
    new = _pod(machine)
    refused = _refused(machine, new)
    assert f"checkpoint not trusted: {place} {said}" in refused.replace("//", "/")
    machine.configure(trust={"owners": []})
    assert "not trusted" not in _refused(machine, new)  # it is no good checkpoint otherwise


def _dummy(machine: Machine) -> Path:
    """What looks like a checkpoint from outside."""
    images = machine.checkpoints / "ns/first/app/checkpoint"
    images.mkdir(parents=True)
    for name in ("inventory.img", "pstree.img"):
        (images / name).write_bytes(b"x")
    return images


@pytest.mark.parametrize(
    "plant",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to("pstree.img"),
        os.mkfifo,
        lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 1)),
    ],
    ids=["link-out", "link-within", "fifo", "device"],
)
def test_a_checkpoint_holds_nothing_but_files(machine: Machine, plant: Callable[[Path], None]) -> None:
    plant(_dummy(machine) / "core-1.img")
    assert "holds 'core-1.img', which is " in _refused(machine, _pod(machine))


@pytest.mark.parametrize(
    "value",
    ["/etc", "/", "relative", "{roots}/..", "{roots}/../x", "{roots}/ns/../../x", "{roots}\0", "{roots}/\ud800"],
)
def test_an_annotation_does_not_lead_out_of_the_roots(machine: Machine, value: str) -> None:
    said = _refused(machine, _pod(machine, checkpoint=value.format(roots=machine.checkpoints)))
    assert "lies outside the checkpoint roots" in said or "cannot be part of a path" in said


# --- what is in the images -------------------------------------------------------------------------------------------


def _with_capability(config: dict[str, Any]) -> None:
    for listed in config["process"]["capabilities"].values():
        listed.append("CAP_SYS_ADMIN")


def test_images_do_not_bring_capabilities_that_config_json_does_not_grant(machine: Machine) -> None:
    old = machine.bundle("old")
    old.edit(_with_capability)
    _capture(machine, old=old)
    new = _pod(machine)
    assert "has CAP_SYS_ADMIN, which the new container cannot have" in _refused(machine, new)
    machine.configure(trust={"privileges": "warn", "namespaces": {"": ["*"]}})
    _restored(machine, new)  # so that is what would have happened
    status = Path(f"/proc/{machine.state_of('new')['pid']}/status").read_text()
    assert int(status.split("CapEff:")[1].split()[0], 16) >> 21 & 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["process"].update(noNewPrivileges=False), "may gain privileges"),
        (lambda c: c["linux"].pop("seccomp"), "has no seccomp filter"),
        (lambda c: c["linux"].update(maskedPaths=[]), "/proc/keys is masked in the new container"),
        (lambda c: c["linux"].update(readonlyPaths=[]), "/proc/sys is read-only in the new container"),
        (
            lambda c: next(m for m in c["mounts"] if m["destination"] == "/data").update(options=["rbind", "rw"]),
            "mount /data is read-only in the new container",
        ),
    ],
    ids=["no-new-privileges", "seccomp", "masked", "read-only-paths", "read-only-volume"],
)
def test_what_config_json_closes_is_closed_in_the_images(
    machine: Machine, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    def close(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = True
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
        }
        for mount in config["mounts"]:
            if mount["destination"] == "/data" and "read-only" in said and "/data" in said:
                mount["options"] = ["rbind", "ro"]

    old, new = machine.bundle("old"), _pod(machine)
    old.edit(close)
    old.edit(change)
    new.edit(close)
    _capture(machine, old=old)
    assert said in _refused(machine, new)


_ARGUMENTS = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 0}]
_STRICT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["mount", "bpf"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": _ARGUMENTS},
    ],
}


@pytest.mark.needs("libseccomp")
@pytest.mark.parametrize("own", [True, False], ids=["manifest-edited", "no-manifest"])
@pytest.mark.parametrize("forbidden", ["bpf", "personality", ""])
def test_a_seccomp_program_in_the_images_is_no_weaker_than_the_profile(
    machine: Machine, own: bool, forbidden: str
) -> None:
    """Whatever profile the manifest says that it was made of; and images of others say nothing."""
    lax = {**_STRICT, "syscalls": [r for r in copy.deepcopy(_STRICT["syscalls"]) if forbidden not in r["names"]]}
    if forbidden == "bpf":
        lax["syscalls"] += [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]
    old, new = machine.bundle("old"), _pod(machine)
    old.edit(lambda c: c["linux"].update(seccomp=lax))
    new.edit(lambda c: c["linux"].update(seccomp=_STRICT))
    images = _capture(machine, old=old)
    if own:
        manifest = json.loads((images / "grit.json").read_text())
        manifest["spec"]["linux"]["seccomp"] = _STRICT
        (images / "grit.json").write_text(json.dumps(manifest))
    else:
        (images / "grit.json").unlink()
    args = ("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    ran = machine.grit(*args)
    if forbidden:
        said = f"a seccomp filter of the checkpoint lets {forbidden}"
        assert said in ran.err
        assert machine.containers() == []
    else:
        ran.ok()
        machine.counts(new)


@pytest.mark.parametrize(("old_score", "new_score", "expected"), [(0, 300, 300), (700, 300, 700)])
def test_no_process_counts_for_less_with_the_oom_killer_than_config_json_says(
    machine: Machine, old_score: int, new_score: int, expected: int
) -> None:
    old, new = machine.bundle("old"), _pod(machine)
    old.edit(lambda c: c["process"].update(oomScoreAdj=old_score))
    new.edit(lambda c: c["process"].update(oomScoreAdj=new_score))
    images = _capture(machine, old=old)
    machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
    machine.counts(new)
    assert int(Path(f"/proc/{machine.state_of('new')['pid']}/oom_score_adj").read_text()) == expected


def test_an_oom_score_that_is_none_is_named_and_nothing_is_left(machine: Machine) -> None:
    new = _pod(machine)
    new.edit(lambda c: c["process"].update(oomScoreAdj=5000))
    images = _capture(machine)
    ran = machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    assert ran.code == 1
    assert "cannot give container new the oomScoreAdj 5000 of config.json: Invalid argument" in ran.err
    assert machine.status("new") == "gone"


def test_no_process_has_a_hard_limit_above_that_of_config_json(machine: Machine) -> None:
    old, new = machine.bundle("old"), _pod(machine)
    new.edit(lambda c: c["process"].update(rlimits=[{"type": "RLIMIT_NOFILE", "hard": 64, "soft": 64}]))
    _capture(machine, old=old)
    assert "has RLIMIT_NOFILE of " in _refused(machine, new)


def _rewrite(images: Path, name: str, changes: Callable[[list[dict[str, Any]], str], codec.Changes]) -> None:
    """Change an image as an attacker would; its checksum and size go from the manifest with it."""
    magic = {"files.img": "FILES"}.get(name, "MNTS")
    file = next(images.glob(name))
    data = codec.rewrite(str(images), file.name, changes(codec.load(str(images), file.name, magic), file.name))
    file.write_bytes(data)
    manifest = json.loads((images / "grit.json").read_text())
    manifest.pop("checksums", None)
    for entry in manifest["files"]:
        if entry["name"] == file.name:
            entry["bytes"] = len(data)
    (images / "grit.json").write_text(json.dumps(manifest))


def test_a_file_in_the_images_does_not_lead_out(machine: Machine) -> None:
    images = _capture(machine)

    def lead_out(entries: list[dict[str, Any]], _: str) -> codec.Changes:
        found = next(i for i, entry in enumerate(entries) if entry.get("reg", {}).get("name", "").endswith("busybox"))
        return {found: {"reg": {"name": "/../../../../bin/sh"}}}

    _rewrite(images, "files.img", lead_out)
    assert "leads out of the container" in _refused(machine, _pod(machine))


@pytest.mark.parametrize("by", ["images", "manifest"])
def test_a_mount_in_the_images_does_not_bring_a_directory_of_the_host(machine: Machine, by: str) -> None:
    images = _capture(machine)
    new = _pod(machine)
    new.edit(lambda c: c.update(mounts=[m for m in c["mounts"] if m["destination"] != "/var/run/secrets/token"]))
    if by == "images":

        def from_host(entries: list[dict[str, Any]], _: str) -> codec.Changes:
            found = next(i for i, e in enumerate(entries) if e["mountpoint"] == "/var/run/secrets/token")
            return {found: {"ext_key": "CRIU:AUTOGENERATED", "source": "/root"}}

        _rewrite(images, "mountpoints-*.img", from_host)
    else:
        manifest = json.loads((images / "grit.json").read_text())
        for entry in manifest["mounts"]:
            if entry["destination"] == "/var/run/secrets/token":
                entry["hostPath"] = "/root"
        (images / "grit.json").write_text(json.dumps(manifest))
    assert "of the checkpoint is the host's /root, writable" in _refused(machine, new)


def test_a_mount_in_the_images_does_not_bring_a_file_system_of_the_host(machine: Machine) -> None:
    images = _capture(machine)

    def a_disk(entries: list[dict[str, Any]], _: str) -> codec.Changes:
        found = next(i for i, entry in enumerate(entries) if entry["mountpoint"] == "/dev/mqueue")
        return {found: {"fstype": 16, "fsname": "ext4", "source": "/dev/vda", "root": "/", "root_dev": 7}}

    _rewrite(images, "mountpoints-*.img", a_disk)
    assert "mount /dev/mqueue of the checkpoint (ext4) is not in the new" in _refused(machine, _pod(machine))


@pytest.mark.parametrize("what", ["entries", "a-list", "too-large", "many-threads"])
def test_an_image_does_not_exhaust_memory(machine: Machine, what: str) -> None:
    images = _capture(machine)
    (images / "grit.json").unlink()
    file = images / "pstree.img"
    head, data = file.read_bytes()[:8], file.read_bytes()[8:]
    size = struct.unpack("<I", data[:4])[0]
    message = data[4 : 4 + size]
    if what == "entries":
        file.write_bytes(head + data[: 4 + size] * ((16 << 20) // (4 + size) - 1))
    elif what == "a-list":  # pstree.proto: repeated uint32 threads = 5
        longer = message + b"\x28\x01" * (7 << 20)
        file.write_bytes(head + struct.pack("<I", len(longer)) + longer)
    elif what == "many-threads":
        longer = message + b"".join(
            b"\x28" + bytes([number & 0x7F | 0x80, number >> 7]) for number in range(1, 128 * 100)
        )
        file.write_bytes(head + (struct.pack("<I", len(longer)) + longer) * 20)
    else:
        os.truncate(file, 1 << 40)
    bundle = machine.bundle("new")
    argv = machine.argv("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "new")
    script = f"import resource, subprocess, sys; code = subprocess.call({argv!r}, stdin=-3, stdout=-3, stderr=-3); "
    script += "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=machine.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    code, most = (int(word) for word in ran.stdout.split())
    assert code == 1
    assert most < 400 << 10  # KiB
    assert machine.leftovers() == []


# --- where, and with which options -----------------------------------------------------------------------------------


def test_a_checkpoint_of_another_namespace_is_refused_by_path_and_by_name(machine: Machine) -> None:
    machine.configure()
    old = machine.bundle("old")
    old.annotate(type="container", name="app", namespace="theirs")
    images = _capture(machine, "ns/first/app", old)
    by_name, by_path = _pod(machine), _pod(machine, "other", checkpoint=str(images.parent.parent))
    said = "was taken in namespace 'theirs', and the new pod is in 'ns'"
    assert said in _refused(machine, by_name)
    assert said in _refused(machine, by_path)
    twice = _pod(machine, "twice")
    twice.edit(lambda c: c["annotations"].update({"io.kubernetes.pod.namespace": "theirs"}))
    assert "name two namespaces" in _refused(machine, twice)
    machine.configure(trust={"namespaces": {"theirs": ["ns"]}})
    _restored(machine, by_name)


@pytest.mark.parametrize("verb", ["checkpoint", "create", "restore"])
def test_a_pod_does_not_choose_criu_s_options(machine: Machine, verb: str) -> None:
    ran, script, options = machine.path / "ran", machine.path / "script", machine.path / "criu.conf"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    options.write_text(f"action-script {script}\n")

    def choose(config: dict[str, Any]) -> None:
        config.setdefault("annotations", {})["org.criu.config"] = str(options)
        config["annotations"]["io.kubernetes.cri.sandbox-id"] = "sandbox"

    old, new = machine.bundle("old"), _pod(machine)
    if verb == "checkpoint":
        old.edit(choose)
        machine.start("old", old)
        images = machine.checkpoints / "x/checkpoint"
        said = machine.grit("checkpoint", "--image-path", str(images), "old").err
        machine.counts(old)
    else:
        images = _capture(machine, old=old)
        new.edit(choose)
        more = ("-d", "--image-path", str(images)) if verb == "restore" else ()
        said = machine.grit(verb, *more, "--bundle", str(new.path), "new").err
        assert machine.containers() == []
    assert "org.criu.config" in said
    assert "a pod may not choose CRIU's options" in said
    assert not ran.exists()


# --- origin ----------------------------------------------------------------------------------------------------------


_OLD_AND_NEW = {"namespaces": {"": ["*"]}}


@pytest.mark.parametrize("signed", ["at-capture", "by-command"])
@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_manifest_that_was_edited_after_signing_is_refused(machine: Machine, signed: str, verb: str) -> None:
    private, public = keys.write(machine.path / "key")
    trust = {**_OLD_AND_NEW, "require-signature": True, "keys": [public]}
    machine.configure(trust={**trust, "signing-key": private} if signed == "at-capture" else trust)
    images, new = _capture(machine), _pod(machine)
    more = ("-d", "--image-path", str(images)) if verb == "restore" else ()

    def refused() -> str:
        ran = machine.grit(verb, *more, "--bundle", str(new.path), "new")
        assert ran.code == 1
        assert machine.containers() == []
        return ran.err

    if signed == "by-command":
        assert "is not signed" in refused()
        machine.grit("sign", "--key", private, str(images)).ok()
    manifest = images / "grit.json"
    original = manifest.read_bytes()
    manifest.write_bytes(original.replace(b'"format": 1', b'"format":1 '))
    assert "grit.json was changed" in refused()
    manifest.write_bytes(b"[" * 100_000)  # nothing is parsed before
    assert "grit.json was changed" in refused()
    manifest.write_bytes(original)
    (images / "grit.sig").rename(machine.path / "grit.sig")
    assert "is not signed" in refused()
    (machine.path / "grit.sig").rename(images / "grit.sig")
    machine.grit(verb, *more, "--bundle", str(new.path), "new").ok()
    if verb == "create":
        machine.grit("start", "new").ok()
    machine.counts(new)
    (images / "grit.sig").unlink()  # for the machine's own look at what is left


def test_a_signature_that_is_there_must_hold_once_keys_are_known(machine: Machine) -> None:
    private, public = keys.write(machine.path / "key")
    images, new = _capture(machine), _pod(machine)
    machine.grit("sign", "--key", private, str(images)).ok()
    (images / "stranger.img").touch()
    machine.configure(trust={**_OLD_AND_NEW, "keys": [public]})
    assert "stranger.img was not signed" in _refused(machine, new)
    (images / "stranger.img").unlink()
    _restored(machine, new)
    (images / "grit.sig").unlink()


def test_an_archive_is_verified_before_it_is_unpacked(machine: Machine) -> None:
    private, public = keys.write(machine.path / "key")
    images, archive = _capture(machine), machine.checkpoints / "ns/packed/app.tar"
    archive.parent.mkdir()
    machine.grit("export", str(images), str(archive)).ok()
    machine.configure(trust={**_OLD_AND_NEW, "require-signature": True, "keys": [public]})
    new = _pod(machine, restore_name="packed")
    assert "is not signed" in _refused(machine, new)
    machine.grit("sign", "--key", private, str(archive)).ok()
    data = archive.read_bytes()
    archive.write_bytes(b"\0" + data[1:])
    assert "archive was changed" in _refused(machine, new)
    archive.write_bytes(data)
    _restored(machine, new)


# --- the call itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hijack",
    [
        lambda m: m.mkfifo("config.json"),
        lambda m: m.write("config.json", "[" * 100_000),
        lambda m: m.write("config.json", '{"annotations": {"grit.dev/checkpoint": ' + "9" * 10_000 + "}}"),
        lambda m: m.write("config.json", '{"annotations": [], "mounts": 7, "linux": "x", "process": null}'),
        lambda m: m.truncate("config.json", 1 << 40),
        lambda m: m.link("config.json", "/dev/zero"),
    ],
    ids=["fifo", "deep", "number", "types", "large", "zero"],
)
def test_a_hostile_bundle_is_an_error_at_once(machine: Machine, hijack: Callable[["_Bundle"], None]) -> None:
    images = _dummy(machine)
    bundle = machine.bundle("new")
    hijack(_Bundle(bundle.path))
    machine.patience = 20
    try:
        ran = machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(bundle.path), "new")
    finally:
        (bundle.path / "config.json").unlink()
        (bundle.path / "config.json").write_bytes(bundle.written)
    assert ran.code == 1
    assert ran.err.count("\n") == 0
    assert "internal error" not in ran.err


class _Bundle:
    """What a hostile bundle directory has in place of its files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _free(self, name: str) -> Path:
        (self._path / name).unlink()
        return self._path / name

    def mkfifo(self, name: str) -> None:
        os.mkfifo(self._free(name))

    def write(self, name: str, text: str) -> None:
        self._free(name).write_text(text)

    def truncate(self, name: str, size: int) -> None:
        self._free(name).touch()
        os.truncate(self._path / name, size)

    def link(self, name: str, target: str) -> None:
        self._free(name).symlink_to(target)


def test_no_environment_and_no_directory_chooses_the_code(machine: Machine) -> None:
    images = _capture(machine)
    evil, ran = machine.path / "evil", machine.path / "ran"
    evil.mkdir()
    for name in ("json", "grit_runtime", "sitecustomize", "usercustomize", "yaml", "xxhash", "pycriu", "core_pb2"):
        (evil / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    new = machine.bundle("new")
    hostile = {
        "PYTHONPATH": str(evil), "PYTHONHOME": str(evil), "PYTHONSTARTUP": str(evil / "json.py"),
        "PYTHONUSERBASE": str(evil), "PYTHONINSPECT": "1", "PYTHONBREAKPOINT": "json.x", "PYTHONWARNINGS": "error",
    }  # fmt: skip
    argv = machine.argv("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    done = subprocess.run(
        argv, cwd=evil, env={**machine.environment(), **hostile}, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    machine.counts(new)
    assert not ran.exists()
