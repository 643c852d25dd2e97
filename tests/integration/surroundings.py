"""A process in some situation is checkpointed, its bundle moved away, and restored into a new one: what does it find?

The situations are in `probes/`; each says in its `/data` when it is set up and, after the restore, what it sees.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.integration.machine import Bundle, Machine, tree

_PROBES = Path(__file__).with_name("probes")
Change = Callable[[dict[str, Any]], object]


@cache
def probe() -> bytes:
    """The program that sets up situations; built once, static, for there is no C library in the container."""
    sources = [str(path) for path in sorted(_PROBES.glob("*.c"))]
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "probe"
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-static", "-pthread", "-o", program, *sources], check=True)
        return program.read_bytes()


class Situation:
    """One situation, from its set-up to what the restored process says."""

    def __init__(self, machine: Machine, name: str, change: Change = lambda _: None) -> None:
        self.machine = machine
        self.name = name
        self.change = change
        self.sandbox: Sandbox | None = None
        self.images = machine.checkpoints / "ns/first/app/checkpoint"
        self.old = self.bundle("old")

    def bundle(self, name: str) -> Bundle:
        """A bundle whose container is in this situation."""
        made = self.machine.bundle(name, "")
        (made.path / "rootfs/bin/probe").write_bytes(probe())
        (made.path / "rootfs/bin/probe").chmod(0o755)
        (made.path / "rootfs/tmp").chmod(0o1777)
        made.edit(lambda c: c["process"].update(args=["/bin/probe", self.name]))
        made.edit(self.change)
        return made

    def start(self) -> None:
        """Run the container until it is set up."""
        self.machine.runc("run", "-d", "--bundle", str(self.old.path), "old").ok()
        answer = self.old.data / "answer"
        self.machine.wait(lambda: (self.old.data / "ready").exists() or answer.exists())
        assert not answer.exists(), answer.read_text()

    def checkpoint(self, *flags: str) -> None:
        """Checkpoint it, and move the old bundle away."""
        self.machine.grit("checkpoint", "--image-path", str(self.images), *flags, "old").ok()
        self.old.path.rename(self.machine.path / "gone")

    def restore(self, name: str = "new", change: Change = lambda _: None) -> list[str]:
        """Restore it into a new bundle; the lines that the process says."""
        new = self.bundle(name)
        new.edit(change)
        self.bring(new)
        self.machine.grit("restore", "-d", "--image-path", str(self.images), "-b", str(new.path), name).ok()
        return self.answer(new)

    def bring(self, new: Bundle) -> None:
        """Take along what isn't in CRIU's images: the files that were written to the rootfs and the volume."""
        gone = self.machine.path / "gone"
        for old in (gone / "rootfs/tmp", gone / self.old.data.relative_to(self.old.path)):
            target = new.path / "rootfs/tmp" if old.name == "tmp" else new.data
            subprocess.run(["cp", "-a", f"{old}/.", target], check=True)
        (new.data / "ready").unlink()

    def answer(self, bundle: Bundle) -> list[str]:
        """Ask the restored process what it finds."""
        (bundle.data / "go").touch()
        answer = bundle.data / "answer"
        self.machine.wait(lambda: answer.exists() and answer.read_text().endswith("end\n"))
        return answer.read_text().splitlines()[:-1]

    def travel(self) -> list[str]:
        """The whole way."""
        self.start()
        self.checkpoint()
        return self.restore()

    def cannot_be_dumped(self) -> str:
        """The error of a checkpoint, which must cost nothing: the process goes on where it is, and says so."""
        self.start()
        before = tree(self.old.path)
        ran = self.machine.grit("checkpoint", "--image-path", str(self.images), "old")
        assert ran.code != 0
        assert not self.images.exists()
        assert tree(self.old.path) == before
        assert self.machine.status("old") == "running"
        return ran.err

    def cannot_be_restored(self, name: str = "new", change: Change = lambda _: None) -> str:
        """The error of a restore, which must leave the checkpoint, the old bundle and the new volumes as they were."""
        new = self.bundle(name)
        new.edit(change)
        places = (self.images, self.machine.path / "gone", new.path / "pods")
        before = [tree(place) for place in places]
        ran = self.machine.grit("restore", "-d", "--image-path", str(self.images), "-b", str(new.path), name)
        assert ran.code != 0
        assert [tree(place) for place in places] == before
        assert name not in self.machine.containers()
        return ran.err


class Sandbox:
    """A pod's sandbox: a container that only holds namespaces."""

    def __init__(self, machine: Machine, name: str, *kinds: str, address: str = "") -> None:
        self.machine = machine
        self.kinds = kinds or ("network", "ipc", "uts")
        made = machine.bundle(name, "while :; do sleep 1000; done")
        made.edit(lambda c: c.update(hostname=name))
        machine.runc("run", "-d", "--bundle", str(made.path), name).ok()
        self.pid = int(json.loads(machine.runc("state", name).ok().out)["pid"])
        if address:
            self.enter("ip", "address", "add", f"{address}/32", "dev", "lo")

    def within(self, config: dict[str, Any]) -> None:
        """Put the container of this config.json into the sandbox."""
        words = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
        kept = [entry for entry in config["linux"]["namespaces"] if entry["type"] not in self.kinds]
        shared = [{"type": kind, "path": f"/proc/{self.pid}/ns/{words[kind]}"} for kind in self.kinds]
        config["linux"]["namespaces"] = kept + shared
        if "uts" in self.kinds:
            config.pop("hostname", None)

    def enter(self, *command: str) -> str:
        """Run a command of the host's in the sandbox's network namespace."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command], check=True, capture_output=True, text=True
        ).stdout

    def take_pid(self, pid: int) -> None:
        """Have a process of this number in the sandbox's pid namespace, until the sandbox ends.

        The kernel gives the next free number after ns_last_pid of the writer's namespace; the sandbox's own process
        may have this one. Which numbers come by themselves depends on how many threads runc had.
        """
        take = f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; sleep 1000 >/dev/null 2>&1 & echo $!"
        enter = ["nsenter", f"--pid=/proc/{self.pid}/ns/pid", "sh", "-c"]
        for _ in range(3):  # the shell itself may have got the number
            if subprocess.run([*enter, take], check=True, capture_output=True, text=True).stdout.strip() == str(pid):
                return
        subprocess.run([*enter, f"kill -0 {pid}"], check=True)


def all_ok(answer: list[str]) -> bool:
    """Whether the process found everything as it should be; shows what it said if not."""
    assert answer, "it said nothing"
    assert [line for line in answer if not line.startswith("ok ")] == []
    return True
