"""The runtime as an engine calls it, with directories of the run's own, and everything taken away at the end."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from grit_runtime import config, documents
from grit_runtime.errors import GritError
from grit_runtime.host import files, proc, run
from grit_runtime.oci import log as logs

PREFIX = "grit-e2e-"
_GRACE = 20.0  # seconds for a call that was asked to end, to undo what it did
_LOCK, _STATE = "lock", "state"
_CLEANING = 60.0  # seconds for each call at the end
_WITHOUT_OUTPUT = ("create", "run", "restore")  # whose stdio is the container's


class FailedError(GritError):
    """Something is not as it must be."""


@dataclass(kw_only=True)
class Node:
    """The run's directory and the runtime.

    Args:
        runtime: the program to call.
        base: the run's directory.
        deadline: when the run must be over, by time.monotonic().
    """

    runtime: str
    base: str
    deadline: float
    patience: float = 30
    """Seconds that the workload may take for anything."""
    _made: list[str] = field(default_factory=list)
    _lock: int = -1

    @classmethod
    def make(cls, runtime: str, directory: str, seconds: float) -> "Node":
        """Make the run's directory.

        Raises:
            OSError: it can't be made.
        """
        base = tempfile.mkdtemp(prefix=PREFIX, dir=directory)
        node = cls(runtime=runtime, base=base, deadline=time.monotonic() + seconds)
        node._lock = _held(base)
        with open(node._configuration, "w", encoding="utf-8") as stream:
            json.dump(_settings(base), stream)  # JSON is YAML
        return node

    @classmethod
    def left(cls, runtime: str, base: str) -> "Node":
        """What a killed run left in its directory, to be closed."""
        node = cls(runtime=runtime, base=base, deadline=time.monotonic())
        node._lock = _held(base)
        with contextlib.suppress(FileNotFoundError):
            node._made = sorted(os.listdir(os.path.join(base, "runc")))
        return node

    @property
    def checkpoints(self) -> str:
        """The checkpoint root."""
        return os.path.join(self.base, "checkpoints")

    @property
    def logs(self) -> str:
        """Where the runtime keeps CRIU's logs of calls that failed."""
        return os.path.join(self.base, "logs")

    @property
    def _configuration(self) -> str:
        return os.path.join(self.base, "config.yaml")

    @property
    def _log(self) -> str:
        return os.path.join(self.base, "runtime.log")

    def call(self, verb: str, *arguments: str, seconds: float | None = None) -> str:
        """Have the runtime do it; returns its output.

        Raises:
            FailedError: it failed, by the last error of its log; or did not end in time.
        """
        if verb in ("run", "create"):
            self._made.append(arguments[-1])
        files.unlink_if_there(self._log)
        left = max(self.deadline - time.monotonic(), 0.1) if seconds is None else seconds
        options = ["--root", os.path.join(self.base, "runc"), "--log", self._log, "--log-format", "json"]
        stream = subprocess.DEVNULL if verb in _WITHOUT_OUTPUT else subprocess.PIPE
        try:
            process = subprocess.Popen(
                [self.runtime, *options, verb, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**run.caller_environment(), config.ENV: self._configuration},
                cwd=self.base,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us: we say when it ends
            )
        except OSError as err:
            raise FailedError(f"cannot execute {self.runtime}: {err.strerror}") from None
        try:
            out, err_text = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            _end(process)
            raise FailedError(f"`{verb}` did not end within {left:.0f} s", hint="--timeout says how long") from None
        except BaseException:
            _end(process)
            raise
        if process.returncode != 0:
            said = (
                logs.last_error(files.read_text(self._log))
                or (err_text or "").strip()
                or f"exit code {process.returncode}, and no word"
            )
            raise FailedError(f"`{verb}` failed: {said}")
        return out or ""

    def state(self, container: str) -> dict[str, Any]:
        """What the runtime says of a container."""
        said = self.call("state", container)
        try:
            found: dict[str, Any] = json.loads(said)
            return {"status": str(found["status"]), "pid": int(found["pid"])}
        except (ValueError, KeyError, TypeError):
            raise FailedError(f"`state` of {container} says what is no state: {said[:200]!r}") from None

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until something is so.

        Raises:
            FailedError: it wasn't, in time.
        """
        until = min(time.monotonic() + self.patience, self.deadline)
        while not condition():
            if time.monotonic() > until:
                raise FailedError(f"{what}: not in time")
            time.sleep(0.02)

    def delete(self, container: str) -> None:
        """Delete a container, with its processes."""
        self.call("delete", "--force", container)
        self._made.remove(container)

    def close(self, *, keep: bool = False) -> list[str]:
        """End and remove everything of the run's; a polite signal does not interrupt it.

        Args:
            keep: leave the files, for a look at them.

        Returns:
            What could not be removed.
        """
        proc.finish_undisturbed()
        left = []
        for container in reversed(self._made):
            # Twice is no error: `delete --force` of what isn't there ends with success (runc delete).
            try:
                self.call("delete", "--force", container, seconds=_CLEANING)
            except FailedError as err:
                left.append(f"container {container}: {err}")
        if os.path.isdir(os.path.join(self.base, _STATE)):
            with contextlib.suppress(FailedError):  # what it can't undo is found below
                self.call("recover", seconds=_CLEANING)
        name = os.path.basename(self.base)
        left += [f"mount {line.split()[4]}" for line in proc.mountinfo("self").splitlines() if f"/{name}/" in line]
        for path in cgroups_of(name):
            try:
                os.rmdir(path)  # runc 1.1.5 leaves an empty one at times
            except OSError as err:
                left.append(f"cgroup {path}: {err.strerror}")
        if not left and not keep:
            shutil.rmtree(self.base, ignore_errors=True)
            left += [self.base] if os.path.lexists(self.base) else []
        os.close(self._lock)
        return left


def cgroups_of(name: str) -> list[str]:
    """The cgroups whose name begins so, in cgroup v2's hierarchy or those of v1 (runc makes them at the top)."""
    tops = ["/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())]
    return [
        entry.path
        for top in tops
        for entry in os.scandir(top)
        if entry.name.startswith(name) and entry.is_dir(follow_symlinks=False)
    ]


def leftovers(directory: str) -> list[str]:
    """Directories of runs that were killed, or kept theirs: our own, and held by nobody."""
    found = []
    for entry in os.scandir(directory):
        ours = entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
        if not ours or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            continue
        with contextlib.suppress(OSError):  # one that is at work
            os.close(_held(entry.path))
            found.append(entry.path)
    return sorted(found)


def _held(base: str) -> int:
    """Take the run's lock; raises OSError if another process has it."""
    fd = os.open(os.path.join(base, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _settings(base: str) -> dict[str, Any]:
    """The site's configuration, with the run's directories in place of the site's."""
    text = files.read_text(config.path(), config.MAX_BYTES)
    data = documents.load_yaml(text.encode()) or {}
    trust = {key: value for key, value in data.get("trust", {}).items() if key != "namespaces"}
    if not trust.get("signing-key"):
        trust["require-signature"] = False  # what this node can't sign, it could not restore here
    return {
        **data,
        "state-dir": os.path.join(base, _STATE),
        "log-dir": os.path.join(base, "logs"),
        "checkpoint-roots": [os.path.join(base, "checkpoints")],
        "archive": {**data.get("archive", {}), "unpack-dir": os.path.join(base, "unpacked")},
        "on-restore-failure": "fail",
        "trust": trust,
    }


def _end(process: "subprocess.Popen[str]") -> None:
    """Have a call end, and undo what it began."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        run.end(process)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
