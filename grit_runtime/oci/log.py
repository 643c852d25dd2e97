"""What a caller reads of a failure: the `--log` stream, one line on stderr, the exit code.

containerd decodes the `--log` file as a stream of JSON objects and takes the last whose level is `error`; one line that
isn't JSON and it takes none (containerd, process/utils.go, getLastRuntimeError). For verbs whose output it captures,
go-runc keeps the first line of stderr.
"""

import json
import os
import time

from grit_runtime.errors import GritError
from grit_runtime.oci.argv import Invocation

EXIT_FAILURE = 1  # runc's for everything that isn't the container's own status

# The caller hands these verbs the container's own stdio: nothing of ours may go there.
_STDIO_IS_THE_CONTAINERS = frozenset({"create", "restore", "run", "exec"})


class Log:
    """Where one call of ours reports: the caller's `--log`, else stderr."""

    def __init__(self, invocation: Invocation | None) -> None:
        self.path = invocation.log if invocation else ""
        self.json = invocation is not None and invocation.log_format == "json"
        self.verb = invocation.verb if invocation else ""
        self.shown: dict[str, str] = {}
        """Paths of ours to those by which people know what is there."""

    def line(self, level: str, message: str) -> None:
        """Append one line in logrus' format; a log that can't be written is no reason to fail."""
        self._append(_format(level, self.for_people(message), self.json))

    def for_people(self, message: str) -> str:
        """A text with the names that people know in place of paths of ours."""
        for path, name in self.shown.items():
            message = message.replace(path, name)
        return message

    def fatal(self, err: GritError | str) -> int:
        """Report the error that ends the call, as runc's `fatal` does, and return the exit code."""
        message = self.for_people(str(err))
        self.line("error", message)
        if self.path and self.verb not in _STDIO_IS_THE_CONTAINERS:
            try:
                os.write(2, f"{message}\n".encode(errors="backslashreplace"))
            except OSError:
                pass
        return EXIT_FAILURE

    def relay(self, text: str) -> None:
        """Hand on what the downstream logged in the caller's own format; lines in another format are left out."""
        for line in text.splitlines():
            if line and line.startswith("{") == self.json:
                self._append(f"{line}\n")

    def _append(self, text: str) -> None:
        data = text.encode(errors="surrogateescape")
        try:
            if not self.path:
                os.write(2, data)
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError:
            return


class Notes(Log):
    """A log that is kept for whoever asked."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[tuple[str, str]] = []

    def line(self, level: str, message: str) -> None:
        self.lines.append((level, message))


def last_error(text: str) -> str:
    """The message of the last error in a `--log-format json` stream, or an empty string."""
    found = ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            found = str(entry.get("msg", ""))
    return found


def _format(level: str, message: str, as_json: bool) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if as_json:
        return json.dumps({"level": level, "msg": message, "time": now}) + "\n"
    return f"time={json.dumps(now)} level={level} msg={json.dumps(message)}\n"
