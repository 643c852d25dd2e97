"""Running a program: the caller's environment and descriptors, a bound on its time, its output kept apart."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AFTER_KILL = 1.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a program ended. `code` is its exit status, or minus the signal that ended it."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Exit status 0."""
        return self.code == 0

    def describe(self) -> str:
        """The command and its end, for a message."""
        if self.timed_out:
            end = "did not end in time"
        elif self.code < 0:
            end = f"was killed by signal {-self.code}"
        else:
            end = f"exited with {self.code}"
        import shlex

        return f"`{shlex.join(self.argv)}` {end}"


def caller_environment() -> dict[str, str]:
    """The environment that we were given.

    CPython adds LC_CTYPE=C.UTF-8 to its own when no locale is set (PEP 538), which a program of the downstream must not
    see; a systemd unit may have no PATH, without which runc finds no criu.
    """
    with open("/proc/self/environ", "rb") as stream:
        pairs = [entry.partition(b"=") for entry in stream.read().split(b"\0") if b"=" in entry]
    found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    found.setdefault("PATH", DEFAULT_PATH)
    return found


def run(argv: list[str], *, timeout: float, env: Mapping[str, str] | None = None, keep_stdio: bool = False) -> Result:
    """Run a program to its end.

    Descriptors above 2 are handed on (LISTEN_FDS, --status-fd). A program that outlives `timeout` seconds is killed.

    Args:
        keep_stdio: the program gets our stdin, stdout and stderr; otherwise /dev/null and two pipes whose content is
            returned.

    Raises:
        OSError: the program can't be executed.
    """
    process = subprocess.Popen(
        argv,
        stdin=None if keep_stdio else subprocess.DEVNULL,
        stdout=None if keep_stdio else subprocess.PIPE,
        stderr=None if keep_stdio else subprocess.PIPE,
        env=dict(env) if env is not None else caller_environment(),
        close_fds=False,
    )
    timed_out = False
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        process.kill()
        out, err = _rest(process)
    code = -signal.SIGKILL if process.returncode is None else process.returncode
    return Result(argv=tuple(argv), code=code, out=_text(out), err=_text(err), timed_out=timed_out)


def wait(process: subprocess.Popen[Any], timeout: float) -> int:
    """Wait for a program: `Popen.wait` with a time limit polls, and is up to 50 ms late.

    Raises:
        TimeoutExpired: it didn't end.
    """
    if process.poll() is not None:
        return int(process.returncode)
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:  # before Linux 5.3
        return process.wait(timeout)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise subprocess.TimeoutExpired(process.args, timeout)
    finally:
        os.close(pidfd)
    return process.wait()


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a program and wait for it, but not long: one that is stuck in a driver dies when the driver lets it."""
    process.kill()
    try:
        process.wait(_AFTER_KILL)
    except subprocess.TimeoutExpired:
        return


def _rest(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What a killed program had said. What it started may hold its pipes open, as CRIU does runc's: it isn't waited
    for.
    """
    try:
        return process.communicate(timeout=_AFTER_KILL)
    except subprocess.TimeoutExpired as late:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.poll()
        return late.stdout or b"", late.stderr or b""


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace").strip()


def execute(path: str, argv: list[str], ignored: frozenset[str] = frozenset()) -> None:
    """Become the program at `path`, with the environment and signal dispositions that the caller gave us.

    Args:
        ignored: which of `pipe` and `xfsz` the caller had ignored; CPython ignores both, and an ignored signal stays so
            across execve.
    """
    for name, number in (("pipe", signal.SIGPIPE), ("xfsz", signal.SIGXFSZ)):
        signal.signal(number, signal.SIG_IGN if name in ignored else signal.SIG_DFL)
    with open("/proc/self/environ", "rb") as stream:
        entries = [entry.partition(b"=") for entry in stream.read().split(b"\0") if b"=" in entry[1:]]
    if sys.stdout is not None:  # it is None if the caller closed it
        sys.stdout.flush()
    os.execve(path, argv, {name: value for name, _, value in entries})


def find_program(name: str, env: Mapping[str, str]) -> str | None:
    """The file that `name` stands for: itself if it holds a slash, else the first executable of that name in PATH."""
    if "/" in name:
        return name
    for directory in (env.get("PATH") or DEFAULT_PATH).split(":"):
        candidate = os.path.join(directory or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def wait_until(deadline: float, interval: float = 0.01) -> bool:
    """Sleep a little; False once `deadline` (time.monotonic) has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    time.sleep(min(interval, left))
    return True
