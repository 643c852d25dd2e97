"""Devices at `create` and at the restore, by NVIDIA's runtime (SIMULATED), by CDI, and by NVIDIA's hook.

The hooks do their work in the container's rootfs, by programs of the test's own that leave a trace.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox"), pytest.mark.timeout(120)]

STAND_IN = Path(__file__).parent.parent / "simulated/nvidia-container-runtime"
# Reads the container's state on its stdin, as a hook does, and leaves a link in the rootfs.
HOOK = """#!/bin/sh
bundle=$(sed -n 's/.*"bundle":"\\([^"]*\\)".*/\\1/p')
[ -d "$bundle/rootfs" ] || exit 0
echo "$0 $*" >> {log}
ln -sf libsimulated.so "$bundle/rootfs/usr/lib/libsimulated.so.1"
[ "$1" = prestart ] && exit
# As `disable-device-node-modification` does: a file of a small tmpfs in place of one of the driver's in /proc.
scratch=$bundle/rootfs/run/nvidia-ctk-hook1
mkdir -p "$scratch"
mount -t tmpfs -o size=4096 tmpfs "$scratch"
echo ModifyDeviceFiles: 0 > "$scratch/nvct-params"
mount --bind "$scratch/nvct-params" "$bundle/rootfs/proc/version"
mount -o remount,bind,ro,nodev "$bundle/rootfs/proc/version"
"""
READS = (
    "while :; do cat /usr/lib/libsimulated.so.1 >> /data/library; cat /dev/nvidia7; i=$((i+1)); echo $i >> /data/out; "
    "sleep 0.02; done"
)


class Toolkit:
    """A node with a "driver", a CDI spec, NVIDIA's runtime (SIMULATED) and its hooks."""

    def __init__(self, machine: Machine, mode: str) -> None:
        self.machine, self.mode = machine, mode
        self.path = machine.path / "toolkit"
        self.path.mkdir()
        self.log = self.path / "hooks.log"
        (self.path / "libsimulated.so").write_text("library\n")
        for name in ("nvidia-container-runtime-hook", "nvidia-cdi-hook"):
            (self.path / name).write_text(HOOK.format(log=self.log))
            (self.path / name).chmod(0o755)
        shutil.copy(STAND_IN, self.path / "nvidia-container-runtime")
        settings = self.path / "nvidia-container-runtime.d/nvidia-container-runtime/config.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(f'[nvidia-container-runtime]\nmode = "{mode}"\nruntimes = ["runc"]\n')
        self.env = {"SIMULATED_TOOLKIT": str(self.path), "XDG_CONFIG_HOME": str(settings.parent.parent)}
        (self.path / "cdi").mkdir()
        (self.path / "cdi/nvidia.json").write_text(json.dumps(self.spec()))
        if mode in ("cdi by us", "auto"):
            machine.configure(devices="auto" if mode == "auto" else "cdi", cdi_spec_dirs=[str(self.path / "cdi")])
        elif mode == "hook by us":
            machine.configure(devices="hook", nvidia_hook=str(self.path / "nvidia-container-runtime-hook"))
        else:
            machine.configure(downstream=str(self.path / "nvidia-container-runtime"))

    def spec(self) -> dict[str, object]:
        """As `nvidia-ctk cdi generate` shapes them."""
        hook = {
            "hookName": "createContainer",
            "path": str(self.path / "nvidia-cdi-hook"),
            "args": ["nvidia-cdi-hook", "create-symlinks"],
        }
        library = {"hostPath": str(self.path / "libsimulated.so"), "containerPath": "/usr/lib/libsimulated.so"}
        return {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": [
                {"name": n, "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia7", "hostPath": "/dev/null"}]}}
                for n in ("0", "all")
            ],
            "containerEdits": {
                "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                "mounts": [{**library, "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}],
                "hooks": [hook],
            },
        }

    def bundle(self, name: str, visible: str = "all") -> Bundle:
        """A bundle that asks for a GPU, and counts only as long as it has the device and the library."""
        made = self.machine.bundle(name, READS)
        (made.path / "rootfs/usr/lib").mkdir(parents=True)
        made.edit(lambda c: c["process"]["env"].append(f"NVIDIA_VISIBLE_DEVICES={visible}"))
        return made

    def create(self, name: str, bundle: Bundle) -> None:
        """Start one, and see that it has what it asked for."""
        self.machine.grit("create", "--bundle", str(bundle.path), name, **self.env).ok()
        bundle.written = (bundle.path / "config.json").read_bytes()  # the devices stay in it
        self.machine.grit("start", name, **self.env).ok()
        self.machine.wait(lambda: len(bundle.numbers()) >= 3)


WAYS = ["cdi", "cdi by us", "auto"]


@pytest.fixture
def toolkit(machine: Machine, request: pytest.FixtureRequest) -> Toolkit:
    """The node; the parameter is the way in which devices come."""
    return Toolkit(machine, request.param)


def _library_is_read(bundle: Bundle, machine: Machine) -> None:
    seen = len((bundle.data / "library").read_text().splitlines())
    machine.wait(lambda: len((bundle.data / "library").read_text().splitlines()) > seen + 2)


@pytest.mark.parametrize("toolkit", WAYS, indirect=True)
def test_a_container_has_its_devices_at_create_and_at_restore(toolkit: Toolkit, machine: Machine) -> None:
    old = toolkit.bundle("old")
    toolkit.create("old", old)
    _library_is_read(old, machine)
    assert len(toolkit.log.read_text().splitlines()) == 1
    assert old.config()["linux"]["devices"][-1]["path"] == "/dev/nvidia7"
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old", **toolkit.env).ok()
    new = toolkit.bundle("new")
    # What the hook had done lies in the rootfs; of an overlay's it is in the diff (test_contents).
    (new.path / "rootfs/usr/lib/libsimulated.so.1").symlink_to("libsimulated.so")
    (new.path / "rootfs/usr/lib/libsimulated.so").touch()
    for file in old.data.iterdir():
        shutil.copy(file, new.data)
    machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new", **toolkit.env).ok()
    machine.counts(new)
    _library_is_read(new, machine)
    assert (new.path / "config.json").read_bytes() == new.written
    assert len(toolkit.log.read_text().splitlines()) == 1, "a hook ran at the restore"
    machine.runc("exec", "new", "/bin/sh", "-c", "echo x > /dev/nvidia7").ok()
    assert machine.runc("exec", "new", "/bin/cat", "/proc/version").ok().out == "ModifyDeviceFiles: 0\n"
    # And once more: the restored container is as good as the first.
    again = machine.checkpoints / "again"
    machine.grit("checkpoint", "--image-path", str(again), "new", **toolkit.env).ok()
    machine.grit("restore", "-d", "--image-path", str(again), "--bundle", str(new.path), "new", **toolkit.env).ok()
    machine.counts(new)


@pytest.mark.parametrize("toolkit", ["legacy", "hook by us"], indirect=True)
def test_the_prestart_hook_runs_at_create_and_not_at_the_restore(toolkit: Toolkit, machine: Machine) -> None:
    old = toolkit.bundle("old")
    (old.path / "rootfs/usr/lib/libsimulated.so").write_text("library\n")
    old.edit(lambda c: c["linux"].update(devices=[{"path": "/dev/nvidia7", "type": "c", "major": 1, "minor": 3}]))
    toolkit.create("old", old)
    assert "prestart" in toolkit.log.read_text()
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old", **toolkit.env).ok()
    (toolkit.path / "nvidia-container-runtime-hook").write_text("#!/bin/sh\nexit 1\n")
    machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(old.path), "new", **toolkit.env).ok()
    machine.counts(old)


@pytest.mark.parametrize("toolkit", ["cdi"], indirect=True)
def test_a_broken_toolkit_fails_the_restore_and_says_so(toolkit: Toolkit, machine: Machine) -> None:
    old = toolkit.bundle("old")
    toolkit.create("old", old)
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old", **toolkit.env).ok()
    (toolkit.path / "broken").touch()
    new = toolkit.bundle("new")
    failed = machine.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new", **toolkit.env)
    assert failed.code != 0
    assert "cannot give the container its devices: simulated: could not apply" in failed.err
    assert machine.status("new") == "gone"


@pytest.mark.parametrize("toolkit", ["cdi"], indirect=True)
def test_a_wrapper_that_makes_containers_is_found_out(toolkit: Toolkit, machine: Machine) -> None:
    """A script that chooses its own configuration: the dry run would be a real one."""
    old = toolkit.bundle("old")
    toolkit.create("old", old)
    images = machine.checkpoints / "c"
    machine.grit("checkpoint", "--image-path", str(images), "old", **toolkit.env).ok()
    real = toolkit.path / "nvidia-container-runtime"
    real.rename(toolkit.path / "other")
    choice = f"export XDG_CONFIG_HOME={toolkit.env['XDG_CONFIG_HOME']}; unset NVIDIA_CTK_CONFIG_FILE_PATH"
    real.write_text(f'#!/bin/sh\n{choice}\nexec {toolkit.path}/other "$@"\n')
    real.chmod(0o755)
    new = toolkit.bundle("new")
    (new.path / "rootfs/usr/lib/libsimulated.so").touch()
    restore = ["restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new"]
    failed = machine.grit(*restore, **toolkit.env)
    assert failed.code != 0
    assert "made a container where it should only have edited" in failed.err
    assert machine.containers() == []
    # As the GPU operator installs it: the program itself lies beside its wrapper.
    (toolkit.path / "other").rename(toolkit.path / "nvidia-container-runtime.real")
    real.write_text(real.read_text().replace("/other", "/nvidia-container-runtime.real"))
    beside = toolkit.path / ".config/nvidia-container-runtime/config.toml"
    beside.parent.mkdir(parents=True)
    beside.write_text('[nvidia-container-runtime]\nmode = "cdi"\nruntimes = ["runc"]\n')
    (new.path / "rootfs/usr/lib/libsimulated.so.1").symlink_to("libsimulated.so")
    for file in old.data.iterdir():
        shutil.copy(file, new.data)
    machine.grit(*restore, **toolkit.env).ok()
    machine.counts(new)


@pytest.mark.parametrize("toolkit", ["cdi by us"], indirect=True)
def test_a_device_that_no_spec_knows(toolkit: Toolkit, machine: Machine) -> None:
    bundle = toolkit.bundle("old", visible="5")
    failed = machine.grit("create", "--bundle", str(bundle.path), "old", **toolkit.env)
    assert failed.code != 0
    assert "nvidia.com/gpu=5" in failed.err
    assert (bundle.path / "config.json").read_bytes() == bundle.written


@pytest.mark.parametrize("toolkit", ["auto"], indirect=True)
def test_auto_leaves_alone_what_no_spec_knows(toolkit: Toolkit, machine: Machine) -> None:
    shutil.rmtree(toolkit.path / "cdi")
    bundle = machine.bundle("old")
    bundle.edit(lambda c: c["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all"))
    machine.grit("create", "--bundle", str(bundle.path), "old", **toolkit.env).ok()
    assert (bundle.path / "config.json").read_bytes() == bundle.written


@pytest.mark.parametrize("toolkit", ["cdi by us"], indirect=True)
def test_what_was_given_once_is_not_given_again(toolkit: Toolkit, machine: Machine) -> None:
    bundle = toolkit.bundle("old")
    machine.grit("create", "--bundle", str(bundle.path), "old", **toolkit.env).ok()
    given = bundle.config()
    bundle.written = (bundle.path / "config.json").read_bytes()
    assert given["annotations"]["grit.dev/devices"] == "cdi"
    machine.grit("delete", "--force", "old", **toolkit.env).ok()
    machine.grit("create", "--bundle", str(bundle.path), "old", **toolkit.env).ok()
    assert bundle.config() == given
