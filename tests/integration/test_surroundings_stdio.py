"""Where a container's input and output go: terminals, pipes, and files that cannot be."""

import fcntl
import os
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.machine import Bundle, Machine

pytestmark = pytest.mark.needs("root", "runc", "criu", "busybox")

ECHO = "echo started; while read line; do echo got $line; done; echo end of input; while :; do sleep 1; done"


class Terminal:
    """The master of a container's terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self.seen = b""

    def shows(self, text: bytes) -> bool:
        """Whether this text has been written to it by now."""
        try:
            self.seen += os.read(self.fd, 4096)
        except BlockingIOError:
            pass
        return text in self.seen

    def resize(self, rows: int, columns: int) -> None:
        """Change its window."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def size(self) -> tuple[int, int]:
        """Its rows and columns."""
        rows, columns, *_ = struct.unpack("HHHH", fcntl.ioctl(self.fd, termios.TIOCGWINSZ, bytes(8)))
        return rows, columns


@contextmanager
def _console(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        yield listener


def _receive(listener: socket.socket) -> Terminal:
    """What a runtime sends to a console socket: the master's descriptor (runc, docs/terminals.md)."""
    connection, _ = listener.accept()
    with connection:
        _, (fd,), _, _ = socket.recv_fds(connection, 1024, 1)
    return Terminal(fd)


def _annotated(machine: Machine, name: str, script: str) -> Bundle:
    made = machine.bundle(name, script)
    made.annotate(type="container", name="app", namespace="ns", checkpoint=str(machine.checkpoints / "ns/first"))
    return made


@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_terminal_takes_input_and_window_changes_through_the_new_console_socket(machine: Machine, verb: str) -> None:
    # A trapped signal ends the shell's `read`.
    script = "trap 'echo resized' WINCH; echo started; while :; do read line && echo got $line; done"
    images = machine.checkpoints / "ns/first/app/checkpoint"
    old, new = machine.bundle("old", script), _annotated(machine, "new", script)
    for bundle in (old, new):
        bundle.edit(lambda c: c["process"].update(terminal=True, consoleSize={"height": 30, "width": 90}))
    with _console(machine.path / "old.sock") as listener:
        machine.runc("run", "-d", "--console-socket", f"{machine.path}/old.sock", "-b", str(old.path), "old").ok()
        first = _receive(listener)
    machine.wait(lambda: first.shows(b"started"))
    first.resize(31, 91)
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    os.close(first.fd)
    old.path.rename(machine.path / "gone")
    with _console(machine.path / "new.sock") as listener:
        flags = ("-d", "--image-path", str(images)) if verb == "restore" else ()
        machine.grit(verb, *flags, "--console-socket", f"{machine.path}/new.sock", "-b", str(new.path), "new").ok()
        second = _receive(listener)
    if verb == "create":
        machine.grit("start", "new").ok()
    os.write(second.fd, b"hello\n")
    machine.wait(lambda: second.shows(b"got hello"))
    second.resize(40, 100)
    assert second.size() == (40, 100)
    machine.wait(lambda: second.shows(b"resized"))
    os.write(second.fd, b"again\n")
    machine.wait(lambda: second.shows(b"got again"))
    machine.grit("delete", "--force", "new").ok()
    os.close(second.fd)


class Pipes:
    """A container's three pipes, as an engine holds them."""

    def __init__(self, machine: Machine, program: list[str]) -> None:
        (stdin, self.input), (self.output, stdout), (self.errors, stderr) = os.pipe(), os.pipe(), os.pipe()
        env = {**os.environ, "GRIT_RUNTIME_CONFIG": str(machine.config)}
        subprocess.run(program, stdin=stdin, stdout=stdout, stderr=stderr, env=env, check=True, timeout=60)
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        self.terminal = Terminal(self.output)

    def close(self) -> None:
        for fd in (self.input, self.output, self.errors):
            os.close(fd)


def test_output_goes_into_the_new_pipes_and_input_comes_from_them(machine: Machine) -> None:
    images = machine.checkpoints / "c"
    old, new = machine.bundle("old", ECHO), machine.bundle("new", ECHO)
    first = Pipes(machine, ["runc", "--root", str(machine.root), "run", "-d", "-b", str(old.path), "old"])
    machine.wait(lambda: first.terminal.shows(b"started"))
    os.write(first.input, b"one\n")
    machine.wait(lambda: first.terminal.shows(b"got one"))
    machine.grit("checkpoint", "--image-path", str(images), "old").ok()
    first.close()
    old.path.rename(machine.path / "gone")
    second = Pipes(machine, machine.argv("restore", "-d", "--image-path", str(images), "-b", str(new.path), "new"))
    os.write(second.input, b"two\n")
    machine.wait(lambda: second.terminal.shows(b"got two"))
    assert b"got one" not in second.terminal.seen
    os.close(second.input)
    machine.wait(lambda: second.terminal.shows(b"end of input"))
    machine.grit("delete", "--force", "new").ok()
    for fd in (second.output, second.errors):
        os.close(fd)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_file_of_the_host_as_stdin_or_stdout_is_refused_with_what_to_give_instead(
    machine: Machine, stream: str
) -> None:
    old = machine.bundle("old")
    command = ["runc", "--root", str(machine.root), "run", "-d", "-b", str(old.path), "old"]
    nothing = subprocess.DEVNULL
    with (machine.path / "host-file").open("w+") as file:
        streams = {"stdin": nothing, "stdout": nothing, "stderr": nothing, stream: file}
        subprocess.run(command, check=True, **streams)
    ran = machine.grit("checkpoint", "--image-path", str(machine.checkpoints / "c"), "old")
    assert ran.code == 1
    assert "a file from outside of the container open" in ran.err
    assert "give it pipes, a terminal or /dev/null" in ran.err
    machine.counts(old)
