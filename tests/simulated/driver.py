"""Building the simulated driver, and containers that use it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.machine import Bundle, Machine, Ran

HERE = Path(__file__).parent
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
DEVICE = Path("/dev/kmsg")  # any that runc gives no container by itself
LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")


def build(to: Path) -> None:
    """Compile it all into one directory, and CRIU's plugin into `plugins` there: CRIU loads whatever is beside it."""
    flags = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    (to / "plugins").mkdir()
    for name, soname in (
        ("libcuda", "libcuda.so.1"),
        ("libnvidia-ml", "libnvidia-ml.so.1"),
        ("cuda_plugin", "plugins/cuda_plugin.so"),
    ):
        shared = ["-shared", "-fPIC", f"-Wl,-soname,{Path(soname).name}", "-o", str(to / soname)]
        subprocess.run([*flags, *shared, str(HERE / f"{name}.c")], check=True)
    library = str(to / "libcuda.so.1")
    for name, path in (("counter", "/simulated"), ("cuda-checkpoint", "$ORIGIN")):
        subprocess.run(
            [*flags, "-o", str(to / name), str(HERE / f"{name}.c"), library, f"-Wl,-rpath,{path}"], check=True
        )


class SimulatedGpu:
    """A running simulated GPU, and a machine whose containers and grit-runtime use it."""

    def __init__(self, machine: Machine, built: Path) -> None:
        self.machine, self.built = machine, built
        self.directory = machine.path / "gpu"
        self.directory.mkdir()
        self.more: dict[str, str] = {}
        argv = [sys.executable, str(HERE / "gpu.py"), str(self.directory)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        machine.wait(lambda: (self.directory / "socket").exists())
        self.configure()

    def configure(self, **more: Any) -> None:
        """Write grit-runtime's configuration; arguments are the section `cuda`, or `top` for what lies beside it."""
        top = more.pop("top", {})
        section = {"mode": "driver", "library-path": [str(self.built)], "lock-timeout": 2, "timeout": 20}
        section.update({key.replace("_", "-"): value for key, value in more.items()})
        self.machine.configure(cuda=section, **top)

    def by_plugin(self) -> None:
        """Leave captures to CRIU's plugin, which finds its program by PATH."""
        self.configure(mode="criu-plugin", plugin_dir=str(self.built / "plugins"))
        self.more["PATH"] = f"{self.built}:{os.environ['PATH']}"

    def device(self) -> None:
        """Give it a device, which whoever calls the driver must be allowed to open."""
        (self.directory / "device").symlink_to(DEVICE)

    def allow_device(self, bundle: Bundle) -> None:
        """Let a container open the device, as NVIDIA's runtime does at `create`, and not at a restore."""
        there = DEVICE.stat()
        rule = {"type": "c", "major": os.major(there.st_rdev), "minor": os.minor(there.st_rdev), "access": "rw"}
        bundle.edit(lambda c: c["linux"]["resources"]["devices"].append({"allow": True, **rule}))

    def settings(self, **values: Any) -> None:
        """Set what the GPU is like (gpu.py)."""
        (self.directory / "settings").write_text(json.dumps(values))
        # A connection that comes and goes makes it say so.
        before = (self.directory / "state").stat().st_ino
        import socket

        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self.directory / "socket"))
        self.machine.wait(lambda: (self.directory / "state").stat().st_ino != before)

    def faults(self, *lines: str) -> None:
        """What the driver does wrong, from now on."""
        (self.directory / "faults").write_text("".join(f"{line}\n" for line in lines))

    def used(self) -> int:
        """MiB in use on the GPU."""
        return int((self.directory / "state").read_text().split("\n")[4]) >> 20

    @property
    def environment(self) -> dict[str, str]:
        """What tells the driver where its GPU is."""
        return {"SIMULATED_GPU": str(self.directory), **self.more}

    def bundle(
        self, name: str, *, mib: int = 64, seconds: int = 0, two: bool = False, by: str = "", keeps: bool = False
    ) -> Bundle:
        """A bundle whose container counts on the GPU.

        Args:
            by: what two processes have in common (counter.c).
            keeps: the driver doesn't give staging memory back at a restore, as no known one does.
        """
        made = self.machine.bundle(name)
        rootfs = made.path / "rootfs"
        for directory in ("simulated", "gpu", "lib64"):
            (rootfs / directory).mkdir()
        for file in (self.built / "libcuda.so.1", self.built / "counter", LIBC):
            shutil.copy(file, rootfs / "simulated" / file.name)
        shutil.copy(LOADER, rootfs / "lib64" / LOADER.name)

        def fill(config: dict[str, Any]) -> None:
            args = [
                "/simulated/counter",
                str(mib),
                str(seconds),
                "/data/out",
                *(["second"] if two else []),
                *([by] if by else []),
            ]
            config["process"]["args"] = args
            config["process"]["env"] = ["NVIDIA_VISIBLE_DEVICES=all", *(["SIMULATED_KEEPS=1"] if keeps else [])]
            gpu = {"destination": "/gpu", "type": "bind", "source": str(self.directory), "options": ["rbind", "rw"]}
            config["mounts"].append(gpu)

        made.edit(fill)
        return made

    def start(self, name: str, **more: Any) -> Bundle:
        """Run one with plain runc until it has written three lines."""
        bundle = self.bundle(name, **more)
        self.machine.runc("run", "-d", "--bundle", str(bundle.path), name).ok()
        self.machine.wait(lambda: len(lines(bundle)) >= 3)
        return bundle

    def grit(self, *args: str) -> Ran:
        """Run grit-runtime with the driver."""
        return self.machine.grit(*args, **self.environment)

    def capture(self, *flags: str, name: str = "old") -> Ran:
        """Take the checkpoint `c`."""
        return self.grit("checkpoint", *flags, "--image-path", str(self.machine.checkpoints / "c"), name)

    def restore(self, new: Bundle, name: str = "new") -> Ran:
        """Restore the checkpoint `c` as another container."""
        images = str(self.machine.checkpoints / "c")
        return self.grit("restore", "-d", "--image-path", images, "--bundle", str(new.path), name)

    def copy_of(self, old: Bundle, name: str = "new") -> Bundle:
        """A bundle for the restore of another one's container, with its data."""
        new = self.bundle(name)
        for file in old.data.iterdir():
            (new.data / file.name).write_bytes(file.read_bytes())
        return new

    def goes_on(self, bundle: Bundle, name: str = "out") -> None:
        """The program writes more lines, and each is what it has to be."""
        seen = len(lines(bundle, name))
        self.machine.wait(lambda: len(lines(bundle, name)) >= seen + 3)
        got = lines(bundle, name)
        assert got == expected(len(got)), "what was on the GPU is not what it was"

    def close(self) -> None:
        """Take the GPU out."""
        self._process.kill()
        self._process.wait()


def lines(bundle: Bundle, name: str = "out") -> list[tuple[int, int]]:
    """Step and value, as the program wrote them."""
    file = bundle.data / name
    text = file.read_text().split("\n")[:-1] if file.exists() else []
    return [(int(a), int(b)) for a, b in (line.split() for line in text)]


def expected(count: int) -> list[tuple[int, int]]:
    """What an uninterrupted run writes."""
    words, found = [i * 7919 + 1 for i in range(256)], []
    for step in range(count):
        words = [(word * 3 + 1) % 1000003 for word in words]
        found.append((step, sum(words)))
    return found
