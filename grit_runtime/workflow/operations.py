"""A record of each checkpoint and restore: its phases by a monotonic clock, bytes, and how it ended (docs/report.md).

One small file for each call in `log-dir`, whether the call succeeded or failed, and the newest of them kept. It is
written without a flush, once, at the end; one that can't be written is none, and never a reason to fail.
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from grit_runtime import __version__
from grit_runtime.host import files, proc

if TYPE_CHECKING:
    from grit_runtime.workflow.context import Context

FOLDER = "operations"
BEGIN = "begin"
"""The first phase: the launcher, Python and what it imports, the configuration, and config.json at a restore."""
KEPT = 200
FORMAT = 1
_MOST_PHASES = 200
_LONGEST_ERROR = 4000
_DIGITS = 6  # of seconds


class Record:
    """What one call did, and when.

    Phases follow each other: `mark` ends one and begins the next, so that no time is in none. A span is beside them,
    as long as whatever it is that takes it; spans may overlap each other.
    """

    def __init__(self) -> None:
        self._phases: list[dict[str, Any]] = []
        self._spans: list[dict[str, Any]] = []
        self._start = 0.0
        self._written = False

    def mark(self, name: str) -> None:
        """A phase begins, and the one before ends; the very first, `begin`, began with the process."""
        now = time.monotonic()
        self._since_start(now)
        self._phases[-1]["end"] = now
        if len(self._phases) < _MOST_PHASES:
            self._phases.append({"name": name, "begin": now, "end": None})

    def add(self, size: int) -> None:
        """So many bytes were moved in the phase that goes on."""
        if self._phases:
            self._phases[-1]["bytes"] = self._phases[-1].get("bytes", 0) + size

    def begin(self, name: str, detail: str = "") -> dict[str, Any]:
        """A span begins; returns it for `end`. One that isn't ended ends with the call, and says so."""
        span: dict[str, Any] = {"name": name, "begin": time.monotonic(), "end": None}
        if detail:
            span["detail"] = detail
        if len(self._spans) < _MOST_PHASES:
            self._spans.append(span)
        return span

    def end(self, span: dict[str, Any], size: int | None = None) -> None:
        """The span ends, with so many bytes moved."""
        span["end"] = time.monotonic()
        if size is not None:
            span["bytes"] = size

    def took(self, seconds: Mapping[str, float]) -> None:
        """Spans that followed each other and end now, by how long each took."""
        end = time.monotonic()
        for name, each in reversed(list(seconds.items())):
            self._spans.append({"name": name, "begin": end - each, "end": end})
            end -= each

    def phases(self) -> list[dict[str, Any]]:
        """What was noted until now, in seconds since the process began; what goes on ends now."""
        now, start = time.monotonic(), self._start
        found = [{**phase, "span": False} for phase in self._phases] + [{**span, "span": True} for span in self._spans]
        for each in found:
            if each["span"] and each["end"] is None:
                each["unended"] = True
            each["begin"] = round(each["begin"] - start, _DIGITS)
            each["end"] = round((now if each["end"] is None else each["end"]) - start, _DIGITS)
        return found

    def write(self, context: "Context", operation: str, images: str, error: str = "") -> None:
        """Write it, the first time; the oldest beyond `KEPT` go."""
        if self._written:
            return
        self._written = True
        self._since_start(time.monotonic())
        now = time.time()
        phases = self.phases()
        seconds = phases[len(self._phases) - 1]["end"]
        document = {
            "format": FORMAT,
            "operation": operation,
            "container": context.container,
            "images": images,
            "outcome": "failed" if error else "ok",
            "error": error[:_LONGEST_ERROR],
            "began": round(now - seconds, 3),
            "seconds": seconds,
            "versions": {"grit-runtime": __version__, "kernel": os.uname().release},
            "pid": os.getpid(),
            "phases": phases,
        }
        folder = os.path.join(context.config.log_dir, FOLDER)
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}.{int(now % 1 * 1000):03}Z"
        try:
            path = os.path.join(folder, f"{stamp}-{operation}-{context.container[:64]}.json")
            _write(path, json.dumps(document).encode())
        except (OSError, ValueError):
            return  # a full disk, say, or a `log-dir` that is no path
        files.keep_newest(folder, is_record, KEPT)

    def _since_start(self, now: float) -> None:
        if not self._phases:
            self._start = _process_start(now)
            self._phases.append({"name": BEGIN, "begin": self._start, "end": None})


@contextmanager
def recorded(context: "Context", operation: str, images: str = "") -> Iterator[Record]:
    """Have the call that is made within recorded, however it ends.

    Args:
        operation: `checkpoint`, `restore` or `create`.
        images: the checkpoint, as people know it.
    """
    record = context.record
    try:
        yield record
    except BaseException as err:
        # The error stands whatever becomes of its record.
        said = context.log.for_people(" ".join(str(err).split()))
        record.write(context, operation, images, said or type(err).__name__)
        raise
    proc.finish_undisturbed()  # it is done: a signal must not make an error of it
    record.write(context, operation, images)


def _write(path: str, data: bytes) -> None:
    """Make a file in its place: a kill in between leaves one of no use, which is forgotten with the oldest, but no
    temporary name that nobody knows.
    """
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, how, 0o600)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        for each in (os.path.dirname(folder), folder):  # each with this mode, which makedirs gives to the last alone
            os.makedirs(each, mode=0o700, exist_ok=True)
        fd = os.open(path, how, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def is_record(name: str) -> bool:
    """Whether a file is called as a record is; such names sort by time."""
    return name[:8].isdigit() and name[8:9] == "T" and name.endswith(".json")


def _process_start(now: float) -> float:
    """When this process began, by the monotonic clock: to 10 ms, by its start time (proc_pid_stat(5))."""
    try:
        ticks = proc.start_time(os.getpid())
        since = time.clock_gettime(time.CLOCK_BOOTTIME) - (ticks or 0) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return now
    return now - since if ticks and since > 0 else now
