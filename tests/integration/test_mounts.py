"""Every kind of mount that a pod has comes back from the new pod's source: real runc, real CRIU."""

import shutil
import uuid
from pathlib import Path

import pytest

from grit_runtime.criu import images
from tests.integration.machine import COUNT, Bundle, Machine, tree

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

SANDBOXES = "io.containerd.grpc.v1.cri/sandboxes"
# What kubelet and a CRI runtime mount: destination, then the source with fields that are new in every pod.
KINDS = {
    "projected": ("/var/run/secrets/t", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected/kube-api-{five}/"),
    "emptyDir": ("/cache", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/cache/"),
    "configMap": ("/etc/app", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~configmap/app/"),
    "secret": ("/etc/secret", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~secret/s/"),
    "downwardAPI": ("/etc/podinfo", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~downward-api/podinfo/"),
    "subPath of a file": ("/etc/app.conf", "var/lib/kubelet/pods/{uid}/volume-subpaths/app/c/{five}"),
    "subPath of a directory": ("/sub", "var/lib/kubelet/pods/{uid}/volume-subpaths/app/c/{five}/"),
    "PVC by CSI": ("/pvc", "var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc-1/mount/"),
    "hostPath": ("/host", "srv/{five}/"),
    "etc-hosts": ("/etc/hosts2", "var/lib/kubelet/pods/{uid}/etc-hosts"),
    "termination log": ("/dev/termination2", "var/lib/kubelet/pods/{uid}/containers/app/{five}"),
    "k3s sandbox": ("/etc/resolv.conf", f"run/k3s/containerd/{SANDBOXES}/{{uid}}/resolv.conf"),
    "k3s kubelet": ("/k3s", "var/lib/rancher/k3s/agent/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/k/"),
    "rke2 sandbox": ("/etc/hostname2", f"var/lib/rancher/rke2/agent/containerd/{SANDBOXES}/{{uid}}/hostname"),
    "containerd's root": ("/etc/hostname3", f"var/lib/containerd/{SANDBOXES}/{{uid}}/hostname"),
    "containerd's state": ("/shm2", f"run/containerd/{SANDBOXES}/{{uid}}/shm/"),
    "CRI-O sandbox": ("/etc/resolv2", "run/containers/storage/overlay-containers/{uid}/userdata/resolv.conf"),
    "spaces, a colon and unicode": ("/a b:ü", "srv/{five} x:y ü/"),
    "a number sign": ("/a#b", "srv/{five}#1/"),
    "brackets and quotes": ('/a]"b', 'srv/{five}]"/'),
}


def _source(bundle: Bundle, pattern: str) -> Path:
    path = bundle.path / "pods" / pattern.format(uid=uuid.uuid4(), five=uuid.uuid4().hex[:5])
    if pattern.endswith("/"):
        path.mkdir(parents=True)
        (path / "content").write_text(bundle.path.name)
    else:
        path.parent.mkdir(parents=True)
        path.write_text(bundle.path.name)
    return path


def mount(bundle: Bundle, destination: str, source: Path, *options: str) -> None:
    """Add a bind mount to config.json."""
    entry = {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", *(options or ("rw",))],
    }
    bundle.edit(lambda config: config["mounts"].append(entry))


def checkpoint(machine: Machine, *flags: str, name: str = "old") -> Path:
    """Take a checkpoint by grit-runtime."""
    taken = machine.checkpoints / "ns/first/app/checkpoint"
    machine.grit("checkpoint", "--image-path", str(taken), *flags, name).ok()
    return taken


def restore(machine: Machine, taken: Path, new: Bundle, name: str = "new") -> None:
    """Restore by grit-runtime; the container counts on, and neither the checkpoint nor the machine is changed."""
    before = tree(taken)
    machine.grit("restore", "--detach", "--image-path", str(taken), "--bundle", str(new.path), name).ok()
    machine.counts(new)
    assert tree(taken) == before


def inside(machine: Machine, path: str, name: str = "new") -> str:
    """What a program started in the container reads."""
    return machine.runc("exec", name, "/bin/cat", path).ok().out


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_mount_comes_from_the_new_pod(machine: Machine, kind: str) -> None:
    destination, pattern = KINDS[kind]
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        mount(bundle, destination, _source(bundle, pattern))
    machine.start("old", old)
    taken = checkpoint(machine)
    old.path.rename(machine.path / "gone")

    restore(machine, taken, new)

    content = f"{destination}/content" if pattern.endswith("/") else destination
    assert inside(machine, content) == "new"


def _volume(bundle: Bundle, version: str, **content: str) -> Path:
    """A volume as kubelet's atomic writer leaves it."""
    volume = bundle.path / "pods" / bundle.uid / "volumes/kubernetes.io~configmap/app"
    update(volume, version, **content)
    mount(bundle, "/etc/app", volume, "ro")
    return volume


def update(volume: Path, version: str, **content: str) -> None:
    """kubelet's atomic writer: a new dated directory, `..data` led to it by rename, the old one removed."""
    dated = volume / version
    dated.mkdir(parents=True)
    old = (volume / "..data").readlink().name if (volume / "..data").is_symlink() else ""
    for name, text in content.items():
        (dated / name).write_text(text)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").rename(volume / "..data")
    if old:
        shutil.rmtree(volume / old)


def _reads(setup: str) -> str:
    return (
        f"{setup}; i=0; while :; do i=$((i+1)); echo $i >> /data/out;"
        " [ -e /data/ask ] && [ ! -e /data/seen ] && cat <&5 > /data/seen; sleep 0.02; done"
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_a_file_open_in_an_old_version_of_a_config_map_is_that_of_the_new_one(machine: Machine, rotated: bool) -> None:
    old, new = machine.bundle("old", _reads("exec 5< /etc/app/key")), machine.bundle("new")
    volume = _volume(old, "..2026_01", key="the old one")
    _volume(new, "..2026_09", key="the new pod's, which is longer")
    machine.start("old", old)
    if rotated:
        update(volume, "..2026_02", key="a newer one")
    taken = checkpoint(machine)
    restore(machine, taken, new)
    (new.data / "ask").touch()
    machine.wait(lambda: (new.data / "seen").exists() and (new.data / "seen").read_text().startswith("the new pod's"))


@pytest.mark.parametrize("rotated", [False, True])
def test_a_working_directory_in_an_old_version_is_that_of_the_new_one(machine: Machine, rotated: bool) -> None:
    # `cd -P`: the shell's working directory is the dated one, not the link.
    script = "cd -P /etc/app/..data; " + COUNT + " "
    old, new = machine.bundle("old", script), machine.bundle("new")
    volume = _volume(old, "..2026_01", key="old")
    _volume(new, "..2026_09", key="new")
    machine.start("old", old)
    if rotated:
        update(volume, "..2026_02", key="newer")
    taken = checkpoint(machine)
    restore(machine, taken, new)
    pid = machine.state_of("new")["pid"]
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/etc/app/..2026_09")


def test_a_file_that_the_new_volumes_lack_is_named_before_anything_is_touched(machine: Machine) -> None:
    old = machine.bundle("old", "exec 5< /etc/app/key 6< /data/mine 7< /data/longer; " + COUNT)
    new = machine.bundle("new")
    _volume(old, "..2026_01", key="old")
    (old.data / "mine").write_text("x")
    (old.data / "longer").write_text("xx")
    _volume(new, "..2026_09", other="new")
    (new.data / "longer").write_text("x")
    machine.start("old", old)
    taken = checkpoint(machine, "--leave-running")
    before = tree(taken), tree(new.path)

    ran = machine.grit("restore", "-d", "--image-path", str(taken), "-b", str(new.path), "new")

    assert ran.code == 1
    assert "3 problems" in ran.err
    assert "/etc/app/..2026_01/key" in ran.err
    assert "/data/mine is open in the checkpoint and is not in" in ran.err
    assert "/data/longer is open in the checkpoint with 2 bytes and has 1" in ran.err
    assert (tree(taken), tree(new.path)) == before
    machine.counts(old)


def test_every_mount_that_cannot_be_is_named_in_one_error(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        mount(bundle, "/becomes-a-file", _source(bundle, "a/d/" if bundle is old else "a/d"))
        mount(bundle, "/becomes-a-directory", _source(bundle, "b/f" if bundle is old else "b/f/"))
    mount(old, "/only-old", _source(old, "srv/only-old/"))
    mount(new, "/no-source", new.path / "pods/none")
    machine.start("old", old)
    taken = checkpoint(machine, "--leave-running")
    before = tree(taken), tree(new.path)

    ran = machine.grit("restore", "-d", "--image-path", str(taken), "-b", str(new.path), "new")

    assert ran.code == 1
    assert "4 problems" in ran.err
    assert "mount /only-old is in the checkpoint and not in the new container's config.json" in ran.err
    assert "pods/none of mount /no-source does not exist" in ran.err
    assert "mount /becomes-a-file was a directory" in ran.err
    assert "mount /becomes-a-directory was a file" in ran.err
    assert (tree(taken), tree(new.path)) == before
    machine.counts(old)


# --- mounts of a hook -----------------------------------------------------------------------------------------------


def add_hook(bundle: Bundle, *commands: str) -> None:
    """A prestart hook that mounts in the container's namespace, as nvidia-container-cli does; `@` is the rootfs."""
    script = bundle.path / "pods/hook"
    lines = [f"within '{line.replace('@', f'{bundle.path}/rootfs')}'\n" for line in commands]
    script.write_text(
        "#!/bin/sh\nset -e\npid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')\n"
        'within() { nsenter -t "$pid" -m sh -ec "$1"; }\n' + "".join(lines)
    )
    script.chmod(0o755)
    bundle.edit(lambda config: config.update(hooks={"prestart": [{"path": str(script)}]}))


def _library(machine: Machine) -> tuple[Path, Path]:
    host = machine.path / "usr lib:ü"
    host.mkdir()
    (host / "libcuda.so.580").write_text("the driver's library")
    (host / "d").mkdir()
    (host / "d/f").write_text("in a directory")
    return host / "libcuda.so.580", host / "d"


def test_what_a_hook_bound_from_the_host_comes_back_with_its_mountpoint(machine: Machine) -> None:
    library, directory = _library(machine)
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/usr/lib/x y").mkdir(parents=True)
    (old.path / "rootfs/usr/lib/libcuda.so.1").touch()
    add_hook(old, f'mount --bind "{library}" @/usr/lib/libcuda.so.1', f'mount --bind "{directory}" "@/usr/lib/x y"')
    machine.start("old", old)
    taken = checkpoint(machine)
    shutil.rmtree(old.path)

    restore(machine, taken, new)

    assert inside(machine, "/usr/lib/libcuda.so.1") == "the driver's library"
    assert inside(machine, "/usr/lib/x y/f") == "in a directory"


def test_a_name_of_a_hook_that_no_criu_configuration_can_hold_comes_back_too(machine: Machine) -> None:
    library, _ = _library(machine)
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/lib#1").touch()
    add_hook(old, f'mount --bind "{library}" "@/lib#1"')
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    assert inside(machine, "/lib#1") == "the driver's library"


def test_the_leftovers_of_nvidia_s_hooks_come_back(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/run/nvidia-ctk-hook1").mkdir(parents=True)
    # /proc/driver is there on any kernel; of a GPU node's names below it only the directory is taken for the test.
    add_hook(
        old,
        "mount -t tmpfs -o mode=555 tmpfs @/proc/driver",
        "mkdir -p @/proc/driver/nvidia",
        "echo ModifyDeviceFiles: 0 > @/proc/driver/nvidia/params",
        "mount -t tmpfs tmpfs @/run/nvidia-ctk-hook1",
        "mkdir @/run/nvidia-ctk-hook1/gpu",
        "mount --bind /proc/sys/kernel @/run/nvidia-ctk-hook1/gpu",
        "mount -o remount,bind,ro @/run/nvidia-ctk-hook1/gpu",
    )
    machine.configure(trust={"host-mounts": ["/proc/sys/kernel:ro"]})
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    assert inside(machine, "/proc/driver/nvidia/params") == "ModifyDeviceFiles: 0\n"
    assert inside(machine, "/run/nvidia-ctk-hook1/gpu/ostype") == "Linux\n"


def test_a_mount_of_a_hook_whose_source_is_gone_is_named(machine: Machine) -> None:
    library, _ = _library(machine)
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/libcuda").touch()
    add_hook(old, f'mount --bind "{library}" @/libcuda')
    machine.start("old", old)
    taken = checkpoint(machine, "--leave-running")
    library.rename(library.with_suffix(".581"))
    before = tree(new.path)

    ran = machine.grit("restore", "-d", "--image-path", str(taken), "-b", str(new.path), "new")

    assert ran.code == 1
    assert f"mount /libcuda came from {library}, which is gone" in ran.err
    assert tree(new.path) == before
    machine.counts(old)


def test_a_mount_of_a_hook_takes_the_new_container_s_mount_where_there_is_one(machine: Machine) -> None:
    library, _ = _library(machine)
    other = machine.path / "libcuda.so.581"
    other.write_text("another driver's")
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/libcuda").touch()
    add_hook(old, f'mount --bind "{library}" @/libcuda')
    mount(new, "/libcuda", other)
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    assert inside(machine, "/libcuda") == "another driver's"


def test_no_link_of_the_new_rootfs_leads_a_mountpoint_out_of_it(machine: Machine) -> None:
    library, _ = _library(machine)
    outside = machine.path / "outside"
    outside.mkdir()
    old, new = machine.bundle("old"), machine.bundle("new")
    (old.path / "rootfs/usr").mkdir()
    (old.path / "rootfs/usr/libcuda").touch()
    (new.path / "rootfs/usr").symlink_to(outside)
    add_hook(old, f'mount --bind "{library}" @/usr/libcuda')
    machine.start("old", old)
    taken = checkpoint(machine)
    ran = machine.grit("restore", "-d", "--image-path", str(taken), "-b", str(new.path), "new")
    assert ran.code == 1
    assert "usr" in ran.err
    assert list(outside.iterdir()) == []
    assert machine.containers() == []


# --- what the kernel can do with mounts -------------------------------------------------------------------------------


def _shared(machine: Machine, path: Path) -> None:
    """Make a host directory a shared mount of its own, as kubelet's and systemd's are."""
    machine.mounted.append(path)
    machine.shell("mount", "--bind", str(path), str(path))
    machine.shell("mount", "--make-shared", str(path))


@pytest.mark.parametrize("propagation", ["rslave", "rshared", "rprivate"])
@pytest.mark.parametrize("new_is_shared", [True, False])
def test_propagation(machine: Machine, propagation: str, new_is_shared: bool) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        source = _source(bundle, "srv/{five}/")
        if bundle is old or new_is_shared:
            _shared(machine, source)
        mount(bundle, "/p", source, propagation)
        bundle.edit(lambda config: config["linux"].update(rootfsPropagation="rslave"))
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    assert inside(machine, "/p/content") == "new"
    # A mount that the host makes in the volume later is seen as far as the new volume's propagation allows.
    source = next((new.path / "pods/srv").iterdir())
    (source / "later").mkdir()
    machine.mounted.append(source / "later")
    machine.shell("mount", "-t", "tmpfs", "tmpfs", str(source / "later"))
    (source / "later/f").write_text("seen")
    seen = machine.runc("exec", "new", "/bin/cat", "/p/later/f").code == 0
    assert seen == (new_is_shared and propagation != "rprivate")


def test_nested_mounts_and_mounts_over_mounts(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        outer = _source(bundle, "srv/outer/")
        (outer / "inner").mkdir()
        mount(bundle, "/outer", outer)
        mount(bundle, "/outer/inner", _source(bundle, "srv/inner/"))
        mount(bundle, "/outer/inner/deep", _source(bundle, "srv/deep/"))
        mount(bundle, "/over", _source(bundle, "srv/below/"))
        (bundle.path / "pods/srv/below/content").write_text("hidden")
        mount(bundle, "/over", _source(bundle, "srv/top/"))
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    for destination in ("/outer", "/outer/inner", "/outer/inner/deep", "/over"):
        assert inside(machine, f"{destination}/content") == "new"


def test_a_read_only_rootfs_with_read_only_mounts(machine: Machine) -> None:
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        mount(bundle, "/ro", _source(bundle, "srv/ro/"), "ro")
        bundle.edit(lambda config: config["root"].update(readonly=True))
    machine.start("old", old)
    taken = checkpoint(machine)
    restore(machine, taken, new)
    assert machine.runc("exec", "new", "/bin/sh", "-c", "echo x > /ro/content").code != 0
    assert machine.runc("exec", "new", "/bin/sh", "-c", "echo x > /bin/new").code != 0
    assert inside(machine, "/ro/content") == "new"


def test_a_read_only_rootfs_without_tmp(machine: Machine) -> None:
    """As `runc spec` makes of a bare rootfs: CRIU puts the old root on /tmp, or can't make a directory for it."""
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        (bundle.path / "rootfs/tmp").rmdir()
        bundle.edit(lambda config: config["root"].update(readonly=True))
    machine.start("old", old)
    taken = checkpoint(machine)
    planned = machine.grit("plan", "--image-path", str(taken), "--bundle", str(new.path)).ok().out
    assert f"make mountpoint tmp in {new.path}/rootfs" in planned
    assert not (new.path / "rootfs/tmp").exists()
    restore(machine, taken, new)
    assert not (new.path / "rootfs/tmp").exists()
    assert machine.runc("exec", "new", "/bin/sh", "-c", "ls -d /tmp").code != 0


def test_a_source_that_was_replaced_while_the_container_ran(machine: Machine) -> None:
    # kubelet writes etc-hosts anew, by rename: the mount's own file has no name any more.
    old, new = machine.bundle("old"), machine.bundle("new")
    for bundle in (old, new):
        mount(bundle, "/etc/hosts2", _source(bundle, "srv/hosts"))
    machine.start("old", old)
    hosts = old.path / "pods/srv/hosts"
    hosts.with_suffix(".tmp").write_text("replaced")
    hosts.with_suffix(".tmp").rename(hosts)
    taken = checkpoint(machine)
    entries = images.read(str(taken)).mounts
    assert [entry.deleted for entry in entries if entry.mountpoint == "/etc/hosts2"] == [True]
    restore(machine, taken, new)
    assert inside(machine, "/etc/hosts2") == "new"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_source_that_is_a_link_is_followed(machine: Machine, kind: str) -> None:
    """As NVIDIA's driver on some hosts has its JSON files."""
    bundles = []
    for name in ("old", "new"):
        bundle = machine.bundle(name)
        source = bundle.path / "pods/real"
        if kind == "directory":
            source.mkdir()
            (source / "content").write_text(name)
        else:
            source.write_text(name)
        link = bundle.path / "pods/link"
        link.symlink_to(source)
        mount(bundle, "/linked", link)
        bundles.append(bundle)
    old, new = bundles
    machine.start("old", old)
    images = str(machine.checkpoints / "c")
    machine.grit("checkpoint", "--image-path", images, "old").ok()
    shutil.copy(old.data / "out", new.data / "out")
    machine.grit("restore", "-d", "--image-path", images, "--bundle", str(new.path), "new").ok()
    machine.counts(new)
    path = "/linked/content" if kind == "directory" else "/linked"
    assert machine.runc("exec", "new", "/bin/cat", path).ok().out == "new"
