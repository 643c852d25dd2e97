"""A call that had to go through Python reaches the downstream just the same. The launcher here executes boot.py with
the package as it stands in this tree.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import ANNOTATED, Called, Contract, Record, Word, compile_c, default_signals
from tests.requirements import RUNTIME

pytestmark = pytest.mark.needs("root", "cc")


class Python:
    """Calls the launcher with a configuration that only Python can read."""

    def __init__(self, contract: Contract, launcher: Path) -> None:
        self.contract = contract
        self.launcher = launcher
        self.log = contract.work / "log.json"
        self.logged = ("--log", str(self.log), "--log-format", "json")
        self.configure()

    def configure(self, downstream: object = None, **more: object) -> None:
        """JSON is YAML, but not of the kind that the launcher reads."""
        entries = {"downstream": str(downstream or self.contract.downstream), "state-dir": str(self.contract.state)}
        self.contract.configure(json.dumps({**entries, **more}))

    def env(self) -> list[bytes]:
        return [f"GRIT_RUNTIME_CONFIG={self.contract.config}".encode(), b"PATH=/usr/bin:/bin"]

    def call(self, *args: Word, env: list[bytes] | None = None, **popen: Any) -> Called:
        """Call it; `env` comes on top of what it needs."""
        return self.contract.call(
            *args,
            program=self.launcher,
            env=[*self.env(), *(env or [])],
            **popen,
        )

    def passed(self, *args: Word, env: list[bytes] | None = None, **popen: Any) -> Record:
        """Call it, and return what the downstream got, which must be exactly `args` and the environment."""
        called = self.call(*args, env=env, **popen)
        served = self.contract.passed(called, *args)
        assert served.environ == [*self.env(), *(env or [])]
        return served

    def errors(self) -> list[str]:
        """The messages in the log, each line of which must be JSON, and which must end with its one error."""
        text = self.log.read_text() if self.log.exists() else ""
        entries = [json.loads(line) for line in text.splitlines()]
        assert [entry["level"] for entry in entries].count("error") <= 1
        assert all("\n" not in entry["msg"] for entry in entries)
        return [entry["msg"] for entry in entries if entry["level"] == "error"]


@pytest.fixture
def python(contract: Contract) -> Python:
    """The launcher that leads to the package in this tree."""
    return Python(contract, contract.real)


CALLS: list[tuple[Word, ...]] = [
    (),
    ("state", "x"),
    ("--root", "/r", "-log=/l", "create", "--bundle", "/b", "x"),
    ("exec", "x", "sh", "-c", "checkpoint restore"),
    ("--no-such-flag", "checkpoint"),
    ("--log",),
    ("--version",),
    ("features",),
    ("--", "state", "--", "x"),
    ("", ""),
    (b"state", b"\xff\x80"),
    ("delete", "x", "y" * 100_000),
    ("kill", "--no-such-flag", "x", "NO-SUCH-SIGNAL"),
]


@pytest.mark.parametrize("args", CALLS, ids=lambda args: repr(args)[:60])
def test_arguments_pass_through_python_as_they_are(python: Python, args: tuple[Word, ...]) -> None:
    python.passed(*args)


@pytest.mark.parametrize(
    "env",
    [
        [b"LANG=C"],
        [b"LC_ALL=C"],
        [b"LC_ALL=POSIX", b"PYTHONUTF8=0", b"PYTHONCOERCECLOCALE=0", b"PYTHONPATH=/nowhere", b"PYTHONHOME=/nowhere"],
        [b"PYTHONWARNINGS=error", b"PYTHONDEVMODE=1", b"PYTHONVERBOSE=1", b"PYTHONINSPECT=1"],
        [b"1 name=that is", b"no-identifier=x", b"BASH_FUNC_f%%=() { :; }", b"\xff\xfe=\x80\x81", b"a.b=c=d=", b"E="],
        [b"LONG=" + b"x" * 100_000],
    ],
    ids=["lang", "lc_all", "python", "more python", "bytes", "long"],
)
@pytest.mark.parametrize("name", ["state", b"\xff\xfe"])
def test_the_environment_passes_through_python_byte_for_byte(python: Python, env: list[bytes], name: Word) -> None:
    python.passed("state", name, env=env)


@pytest.mark.parametrize("env", [[b"A=1", b"A=2"], [b"=nameless"]], ids=["twice", "nameless"])
def test_an_odd_environment_stops_nothing(python: Python, env: list[bytes]) -> None:
    """Python's execve takes a mapping: of entries that no mapping holds one stays or none."""
    python.contract.passed(python.call("state", "x", env=env), "state", "x")


def _ignoring(*numbers: int) -> Callable[[], None]:
    def prepare() -> None:
        default_signals()
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return prepare


@pytest.mark.parametrize(
    "ignored",
    [
        (),
        (signal.SIGPIPE,),
        (signal.SIGXFSZ,),
        (signal.SIGPIPE, signal.SIGXFSZ),
        (signal.SIGHUP,),
        (signal.SIGINT,),
        (signal.SIGTERM, signal.SIGINT),
    ],
    ids=repr,
)
def test_signals_pass_through_python_as_they_were(python: Python, ignored: tuple[int, ...]) -> None:
    served = python.passed("state", "x", prepare=_ignoring(*ignored), restore_signals=False)
    told = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    assert [n for n in told if served.ignored & 1 << (n - 1)] == sorted(ignored, key=told.index)


def test_everything_else_passes_through_python_as_it_was(python: Python, tmp_path: Path) -> None:
    master, slave = os.openpty()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM, signal.SIGUSR1})
        os.dup2(slave, 5)

    with (tmp_path / "out").open("wb") as out:
        popen: dict[str, Any] = {
            "stdin": slave,
            "stdout": out,
            "stderr": out,
            "close_fds": False,
            "umask": 0o137,
            "cwd": tmp_path,
        }
        through = python.passed("state", "x", prepare=prepare, **popen)
        contract = python.contract
        alone = contract.call(
            "state",
            "x",
            program=contract.downstream,
            env=python.env(),
            prepare=prepare,
            **popen,
        )
    os.close(master)
    os.close(slave)
    assert through.inherited == alone.served.inherited
    assert through.tty


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=repr)
@pytest.mark.parametrize("good", [True, False], ids=["odd", "broken"])
def test_closed_descriptors_stop_nothing(python: Python, closed: tuple[int, ...], good: bool) -> None:
    if not good:
        python.contract.config.write_text(f"downstream: '{python.contract.downstream}'\nfsync: perhaps\n")

    def prepare() -> None:
        for fd in closed:
            os.close(fd)

    assert not set(closed) & python.passed("state", "x", prepare=prepare).fds.keys()


def test_a_working_directory_that_is_gone_passes_through_python(python: Python) -> None:
    here = python.contract.work / "gone"
    for args in (("state", "x"), ("create", "x"), ("--root", "relative", "state", "x")):
        here.mkdir()

        def prepare() -> None:
            os.chdir(here)
            here.rmdir()

        assert python.passed(*args, prepare=prepare).cwd.endswith(b" (deleted)")


def test_whoever_is_not_root_passes_through_python(python: Python) -> None:
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    assert python.passed("state", "x", **nobody).uid == 65534
    python.contract.downstream.chmod(0o711)  # executable, but not to be read
    try:
        python.passed("state", "x", **nobody)
    finally:
        python.contract.downstream.chmod(0o755)


def test_an_empty_path_is_no_path(python: Python) -> None:
    """The launcher and the package look in the same places: never in the working directory for want of any other."""
    python.configure("runc")
    called = python.contract.call(
        "state", program=python.launcher, env=[f"GRIT_RUNTIME_CONFIG={python.contract.config}".encode(), b"PATH="]
    )
    assert "not found" not in called.err


BROKEN = [
    "downstream: {}\nfsync: perhaps\ntimeouts: [\n",
    "\tdownstream: x\ndownstream: {}\n",
    "downstream: {}\ndownstream: {}\n",
    "downstream: '{}'\nno-such-key: 1\n",
    'downstream: "{}" # comment\nstate-dir: relative\n',
    "---\ndownstream: {}\nfsync: 17\n",
    "downstream:\t{}\n- x\n",
    "downstream: {} \n\0",
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_configuration_stops_no_other_container(python: Python, text: str) -> None:
    python.contract.config.write_text(text.replace("{}", str(python.contract.downstream)))
    python.passed(*python.logged, "state", "x")
    assert python.errors() == []
    called = python.call(*python.logged, "checkpoint", "x")
    assert called.code == 1
    assert called.record is None
    (error,) = python.errors()
    assert f"configuration {python.contract.config}" in error


@pytest.mark.parametrize(
    "text", ["downstream: # none yet\n", 'downstream: ""\n', "downstream: ''\nx: [\n", "\x00", "- a\n"]
)
def test_a_configuration_that_names_no_downstream_leaves_runc(python: Python, text: str) -> None:
    python.contract.config.write_text(text)
    env = [f"PATH={python.contract.bin}".encode(), python.env()[0]]
    python.contract.passed(python.contract.call("state", "x", program=python.launcher, env=env), "state", "x")


def test_a_log_that_cannot_be_written_stops_nothing(python: Python) -> None:
    python.contract.config.write_text(f"downstream: '{python.contract.downstream}'\nfsync: perhaps\n")
    reader, writer = os.pipe()
    os.close(reader)
    python.passed("state", "x", stderr=writer)
    os.close(writer)
    with open("/dev/full", "wb") as full:
        python.passed("state", "x", stderr=full)
    python.passed("--log", "/no/such/directory/log", "state", "x")


@pytest.mark.parametrize("odd", [True, False], ids=["odd", "plain"])
@pytest.mark.parametrize(
    "kind", ["missing", "directory", "not executable", "itself", "link", "hard link", "copy", "loop"]
)
def test_a_downstream_that_cannot_be_is_one_clear_line(python: Python, kind: str, odd: bool) -> None:
    program = _bad_downstream(python, kind)
    if odd:
        python.configure(program)
    else:
        python.contract.configure(f"downstream: {program}\n")
    called = python.call(*python.logged, "state", "x")
    assert called.code == 1
    assert called.record is None
    (error,) = python.errors()
    assert str(program) in error
    assert called.err == f"{error}\n"
    if kind in ("itself", "link", "hard link", "copy"):
        assert "is grit-runtime itself" in error
    else:
        assert "cannot be executed: " in error


def _bad_downstream(python: Python, kind: str) -> Path:
    program = python.contract.work / "runc"
    match kind:
        case "directory":
            program.mkdir()
        case "not executable":
            program.write_text("#!/bin/sh\n")
        case "itself":
            return python.launcher
        case "link":
            program.symlink_to(python.launcher)
        case "hard link":
            program.hardlink_to(python.launcher)
        case "copy":
            program.write_bytes(python.launcher.read_bytes())
            program.chmod(0o755)
        case "loop":
            program.symlink_to(program)
        case _:
            assert kind == "missing"
    return program


def test_without_a_log_the_line_is_on_stderr(python: Python) -> None:
    python.configure("/no/such/runc")
    called = python.call("state", "x")
    assert called.code == 1
    assert called.err.count("\n") == 1
    assert "level=error" in called.err
    assert "/no/such/runc cannot be executed: No such file or directory" in called.err
    # The stdio of these verbs is the container's.
    assert python.call(*python.logged, "create", "x").err == ""


def test_a_bundle_that_only_looks_like_ours_is_passed_on(python: Python) -> None:
    python.contract.configure()
    sandbox = ANNOTATED.replace("{", '{"x": "grit.dev/", ', 1).replace("grit.dev/checkpoint", "grit.dev/other")
    for name, text in (
        ("other", sandbox),
        ("broken", "{ grit.dev/"),
        ("list", '["grit.dev/"]'),
        ("bytes", b"\xff grit.dev/"),
    ):
        python.passed("create", "--bundle", str(python.contract.bundle(name, text)), "--no-such-flag", "x")


def test_a_bundle_of_ours_is_not_passed_on(python: Python) -> None:
    bundle = python.contract.bundle("b", ANNOTATED.replace("grit.dev/", "\\u0067rit.dev\\/"))
    for configure in (python.configure, python.contract.configure):
        configure()
        called = python.call(*python.logged, "create", "--bundle", str(bundle), "x")
        assert called.code == 1
        assert called.record is None
    assert "lies outside the checkpoint roots" in python.log.read_text()


@pytest.mark.parametrize("root", ["/..", "/.", "..", "."])
def test_no_root_leads_out_of_the_state_directory(python: Python, root: str) -> None:
    """`delete` empties what a killed call left; that must never be a directory of somebody else's."""
    for configure in (python.contract.configure, python.configure):
        configure()
        python.contract.workspace("run-runc", "x")
        victim = python.contract.work / "victim"
        victim.mkdir()
        (victim / "precious").touch()
        for container in ("work", "run-runc"):
            called = python.call("--root", root, "delete", container, cwd="/")
            python.contract.passed(called, "--root", root, "delete", container)
        assert (victim / "precious").exists()
        assert (python.contract.state / "run-runc/x/journal").exists()
        python.contract.reset()


def test_help_for_a_verb_of_ours_comes_from_somewhere(python: Python) -> None:
    for flag in ("--help", "-h"):
        for verb in ("checkpoint", "restore"):
            python.passed(verb, flag)
            python.passed(flag, verb)


def test_python_runs_nothing_that_its_caller_chose(contract: Contract) -> None:
    """What boot.py is told, and that no environment variable and no current directory adds code to it."""
    libdir = contract.work / "lib"
    libdir.mkdir()
    told = contract.work / "told.json"
    (libdir / "boot.py").write_text(
        "import json, sys\n"
        "flags = [sys.flags.isolated, sys.flags.no_site, sys.flags.no_user_site, sys.flags.ignore_environment]\n"
        f"json.dump([sys.argv[1:], flags, sys.path], open({str(told)!r}, 'w'))\n"
    )
    trap = contract.work / "trap"
    trap.mkdir()
    for name in ("json.py", "sitecustomize.py", "usercustomize.py"):
        (trap / name).write_text("raise SystemExit(99)\n")
    interpreter = Path(os.path.realpath(os.sys.executable))  # type: ignore[attr-defined]
    launcher = compile_c(
        Path(__file__).parents[2] / "launcher/grit-runtime.c",
        contract.work / "launcher",
        GRIT_PYTHON=interpreter,
        GRIT_LIBDIR=libdir,
        GRIT_CONFIG=contract.config,
    )
    env = {"PYTHONPATH": str(trap), "PYTHONSTARTUP": str(trap / "json.py"), "PYTHONUSERBASE": str(trap)}
    called = contract.call("checkpoint", "x", program=launcher, env=env, cwd=trap, prepare=_ignoring(signal.SIGPIPE),
                           restore_signals=False)  # fmt: skip
    assert called.code == 0, called.err
    arguments, flags, path = json.loads(told.read_text())
    assert arguments == ["verb", "pipe", str(launcher), "checkpoint", "x"]
    assert flags == [1, 1, 1, 1]
    assert str(trap) not in path
    assert "" not in path


@pytest.mark.needs("runtime")
def test_the_installed_runtime_passes_on_both_ways(contract: Contract) -> None:
    installed = Python(contract, RUNTIME)
    args = ("--root", "/r", "state", "restore")
    installed.passed(*args, env=[b"LANG=C"], prepare=_ignoring(), restore_signals=False)
    contract.configure()
    installed.passed(*args, env=[b"LANG=C"], prepare=_ignoring(signal.SIGPIPE), restore_signals=False)
    installed.configure("/no/such/runc")
    called = installed.call(*installed.logged, "state", "x")
    assert (called.code, called.record) == (1, None)
    assert "/no/such/runc cannot be executed" in installed.errors()[0]
    said = subprocess.run([RUNTIME, "config"], env={"GRIT_RUNTIME_CONFIG": str(contract.config)}, capture_output=True)
    assert json.loads(said.stdout)["downstream"] == "/no/such/runc"
