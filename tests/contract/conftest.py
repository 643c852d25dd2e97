"""The launcher, compiled with a recorder in the place of the downstream and of Python: what execve handed to either is
compared with what it hands to the recorder alone.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import ROOT

CFLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")
SOURCE = ROOT / "launcher/grit-runtime.c"
RECORDER = Path(__file__).with_name("recorder.c")
ANNOTATED = '{"annotations": {"grit.dev/checkpoint": "/checkpoints/a"}}'

Word = str | bytes
Environment = Mapping[str, str] | Sequence[bytes]


def compile_c(source: Path, program: Path, **defines: Path) -> Path:
    """Compile one file as tools/install does."""
    macros = [f'-D{name}="{value}"' for name, value in defines.items()]
    subprocess.run(["cc", *CFLAGS, "-o", program, source, *macros], check=True)
    return program


@dataclass(frozen=True, kw_only=True)
class Record:
    """What execve handed to the recorder."""

    exe: str
    argv: list[bytes]
    environ: list[bytes]
    cwd: bytes
    fds: dict[int, bytes]
    ignored: int
    blocked: int
    tty: bool
    pid: int
    sid: int
    group: int
    umask: int
    uid: int

    @property
    def inherited(self) -> tuple[object, ...]:
        """Everything that stays the same across an execve, the arguments aside."""
        signals = (self.ignored, self.blocked)
        return (self.environ, self.cwd, self.fds, signals, self.tty, self.sid, self.group, self.umask, self.uid)


@dataclass(frozen=True, kw_only=True)
class Called:
    """How a call ended, and who served it."""

    code: int
    out: str
    err: str
    pid: int
    record: Record | None

    @property
    def served(self) -> Record:
        """The record of whoever served the call."""
        assert self.record is not None, f"nobody was executed; exit code {self.code}, stderr: {self.err}"
        return self.record


def _prepare_and_exec(prepare: Callable[[], object] | None, argv: list[bytes], environ: Sequence[bytes]) -> None:
    """execve with an environment that no mapping can hold: names that stand twice, or that have no `=`."""
    if prepare is not None:
        prepare()
    libc = ctypes.CDLL(None)
    libc.execve(argv[0], (ctypes.c_char_p * (len(argv) + 1))(*argv), (ctypes.c_char_p * (len(environ) + 1))(*environ))


class Contract:
    """A launcher, and what surrounds it; every user may read it, for not every caller is root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.record_file = directory / "record.json"
        self.code_file = directory / "record.json.code"
        self.libdir = directory / "lib"
        self.boot = self.libdir / "boot.py"
        self.config = directory / "config.yaml"
        self.state = directory / "state"
        self.work = directory / "work"
        self.downstream = compile_c(RECORDER, self.bin / "runc", RECORD=self.record_file)
        self.python = Path(shutil.copy(self.downstream, self.bin / "python"))
        self.launcher = compile_c(
            SOURCE,
            directory / "grit-runtime",
            GRIT_PYTHON=self.python,
            GRIT_LIBDIR=self.libdir,
            GRIT_CONFIG=self.config,
        )
        self.real = _real(directory)

    def reset(self) -> None:
        """As nothing had been called yet."""
        for path in (self.state, self.work):
            shutil.rmtree(path, ignore_errors=True)
        self.config.unlink(missing_ok=True)
        self.work.mkdir()
        self.work.chmod(0o777)

    def configure(self, text: Word | None = None) -> None:
        """Write the configuration file; without a text one that names the recorder and our state directory."""
        if text is None:
            text = f"downstream: {self.downstream}\nstate-dir: {self.state}\n"
        self.config.write_bytes(text if isinstance(text, bytes) else text.encode())

    def workspace(self, escaped_root: str, container: str, *, journal: bool = True) -> Path:
        """Make the workspace of a container."""
        path = self.state / escaped_root / container
        path.mkdir(parents=True)
        if journal:
            (path / "journal").touch()
        return path

    def bundle(self, name: str, config: Word = ANNOTATED) -> Path:
        """Make a bundle of which only the text of config.json matters."""
        path = self.work / name
        path.mkdir()
        (path / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
        return path

    def environ(self, **more: str) -> dict[str, str]:
        """An environment in which the recorder is the runc of PATH."""
        return {"PATH": str(self.bin), **more}

    def call(
        self,
        *args: Word,
        program: Path | None = None,
        env: Environment | None = None,
        code: int = 0,
        prepare: Callable[[], object] | None = None,
        **popen: Any,
    ) -> Called:
        """Run the launcher, or another program, to its end.

        Args:
            program: instead of the launcher.
            env: entries of the form b"name=value", or a mapping; the default is `environ()`.
            code: what the recorder exits with.
            prepare: runs in the child before execve.
        """
        self.record_file.write_text("")
        self.record_file.chmod(0o666)
        self.code_file.write_text(str(code))
        argv = [os.fsencode(word) for word in (program or self.launcher, *args)]
        env = self.environ() if env is None else env
        if not isinstance(env, Mapping):
            prepare = partial(_prepare_and_exec, prepare, argv, env)
            env = {}
        if prepare is not None:
            popen["preexec_fn"] = prepare
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process: subprocess.Popen[bytes] = subprocess.Popen(argv, env=env, **{"cwd": self.work, **pipes, **popen})
        with process:
            try:
                out, err = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()  # a program that executes itself for ever
                raise
        return Called(
            code=process.returncode,
            out=(out or b"").decode(errors="replace"),
            err=(err or b"").decode(errors="replace"),
            pid=process.pid,
            record=self._record(),
        )

    def _record(self) -> Record | None:
        text = self.record_file.read_text()
        if not text:
            return None
        raw = json.loads(text)
        return Record(
            exe=os.fsdecode(bytes.fromhex(raw["exe"])),
            argv=[bytes.fromhex(word) for word in raw["argv"]],
            environ=[bytes.fromhex(word) for word in raw["environ"]],
            cwd=bytes.fromhex(raw["cwd"]),
            fds={int(fd): bytes.fromhex(link) for fd, link in raw["fds"].items()},
            ignored=int(raw["SigIgn"], 16),
            blocked=int(raw["SigBlk"], 16),
            **{key: raw[key] for key in ("tty", "pid", "sid", "group", "umask", "uid")},
        )

    def reason(self, called: Called, *args: Word) -> str:
        """Why the call went to Python; it must have been handed over as it was."""
        served = called.served
        assert served.exe == str(self.python)
        own = [os.fsencode(word) for word in (self.python, "-I", "-S", self.boot)]
        assert served.argv[:4] == own
        assert served.argv[6:] == [os.fsencode(word) for word in (self.launcher, *args)]
        assert called.pid == served.pid
        return served.argv[4].decode()

    def passed(self, called: Called, *args: Word) -> Record:
        """The record of a downstream that got exactly `args`."""
        served = called.served
        assert served.exe == str(self.downstream), f"it went to Python: {served.argv}"
        assert served.argv == [os.fsencode(word) for word in (self.downstream, *args)]
        assert called.pid == served.pid
        return served


def _real(directory: Path) -> Path:
    """A launcher with the interpreter of these tests, the package as it stands in this tree, and what it imports.

    Copies: the tree may lie where only its owner gets, and some calls here are nobody's.
    """
    libdir = directory / "real"
    libdir.mkdir()
    shutil.copy(ROOT / "launcher/boot.py", libdir)
    shutil.copytree(ROOT / "grit_runtime", libdir / "grit_runtime")
    shutil.copytree(sysconfig.get_path("purelib"), libdir / "site")
    return compile_c(
        SOURCE,
        directory / "real-grit-runtime",
        GRIT_PYTHON=Path(sys.executable).resolve(),
        GRIT_LIBDIR=libdir,
        GRIT_CONFIG=directory / "config.yaml",
    )


@pytest.fixture(scope="session")
def compiled() -> Iterator[Contract]:
    """The launchers; pytest's own temporary directories are its user's alone."""
    with tempfile.TemporaryDirectory(prefix="grit-contract-") as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        yield Contract(directory)


@pytest.fixture
def contract(compiled: Contract) -> Contract:
    """The launchers, without a configuration, a workspace or a bundle."""
    compiled.reset()
    return compiled


def default_signals() -> None:
    """What a service manager's child has."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
