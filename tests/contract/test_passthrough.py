"""A call that is none of our business reaches the downstream as if we had never been there."""

import os
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grit_runtime.host.workspace import escape_root
from tests.contract.conftest import ANNOTATED, Contract, Word, default_signals

pytestmark = pytest.mark.needs("root", "cc")

PASSED_ON: list[tuple[Word, ...]] = [
    (),
    ("state", "x"),
    ("--root", "/run/x", "--log", "/l", "--log-format", "json", "state", "x"),
    ("-root", "/run/x", "-log=/l", "-log-format=json", "-debug", "state", "x"),
    ("--root=/run/x", "--debug=false", "--systemd-cgroup", "exec", "-t", "x", "sh", "-c", "a=1; b"),
    ("--debug", "--rootless", "auto", "--criu", "/usr/sbin/criu", "list", "-q"),
    # The verb is found by its position.
    ("state", "checkpoint"),
    ("state", "restore"),
    ("delete", "restore"),
    ("create", "checkpoint"),
    ("kill", "restore", "KILL"),
    ("run", "config"),
    ("--log", "checkpoint", "state", "x"),
    ("--log=checkpoint", "state", "x"),
    ("--root", "restore", "state", "x"),
    ("-root", "restore", "state", "x"),
    ("--criu", "restore", "--log-format", "recover", "list"),
    ("create", "--bundle", "create", "x"),
    ("create", "--bundle=restore", "--pid-file", "checkpoint", "x"),
    ("exec", "x", "runc", "checkpoint", "x"),
    ("exec", "x", "--", "restore"),
    ("update", "--memory", "1", "config"),
    ("--", "state", "checkpoint"),
    ("--debug", "--", "state", "restore"),
    ("features",),
    ("spec", "--bundle", "restore"),
    ("-", "checkpoint", "x"),
    ("", "checkpoint", "x"),
    # What we don't know may or may not take the next word: the downstream knows.
    ("--no-such-flag", "checkpoint", "x"),
    ("--no-such-flag=v", "checkpoint", "x"),
    ("-z", "restore", "x"),
    ("--log", "/l", "--no-such-flag", "restore", "x"),
    ("--=v", "checkpoint"),
    ("--", "--"),
    ("--",),
    ("--root",),
    ("--debug", "--log"),
    ("--root", "--"),
    ("--version",),
    ("-v",),
    ("--help",),
    ("--debug",),
    # Words that aren't words.
    ("state", ""),
    ("state", "a b\tc\n"),
    ("state", "*?$(id)`id`'\"\\"),
    (b"--root=/\xff\xfe", b"state", b"\x80\x81"),
    (b"\xff", b"checkpoint"),
    ("checkpointed", "x"),
    ("Restore", "x"),
    ("--roots", "x", "checkpoint"),
    ("state", "../../x"),
    ("state", "." * 300),
]


@pytest.mark.parametrize("args", PASSED_ON, ids=repr)
def test_arguments_reach_the_downstream_as_they_are(contract: Contract, args: tuple[Word, ...]) -> None:
    contract.configure()
    called = contract.call(*args, code=37)
    contract.passed(called, *args)
    assert called.code == 37


@pytest.mark.parametrize(
    "args",
    [
        ("checkpoint", "x"),
        ("restore", "-d", "x"),
        ("recover",),
        ("config",),
        ("export", "a", "b"),
        ("inspect", "--json", "a"),
        ("diff", "a", "b"),
        ("doctor", "--json"),
        ("checkpoints",),
        ("completion", "bash"),
        ("capture", "--name", "n", "x"),
        ("restore-into", "--name", "n", "b"),
        ("prune", "--keep", "1"),
        ("plan", "--bundle", "a", "--image-path", "b", "x"),
        ("install", "--engine", "podman"),
        ("uninstall", "--engine", "podman"),
        ("--root", "/r", "--log=/l", "-debug", "checkpoint", "--image-path", "/i", "x"),
        ("-root=/r", "restore", "x"),
        ("--log", "state", "restore", "x"),
        ("--", "checkpoint", "x"),
        ("--debug", "--", "restore", "x"),
        ("--systemd-cgroup=true", "checkpoint"),
        ("--log", "--", "checkpoint", "x"),
        ("--log", "--root", "checkpoint", "x"),
        (b"--root", b"/\xff", b"checkpoint", b"\xfe"),
        ("--rootless", "auto", "--criu=/c", "--cgroup-manager", "cgroupfs", "--log-level=debug", "restore", "x"),
    ],
    ids=repr,
)
def test_a_verb_of_ours_goes_to_python_as_it_is(contract: Contract, args: tuple[Word, ...]) -> None:
    contract.configure()
    assert contract.reason(contract.call(*args), *args) == "verb"


def test_the_launcher_is_smaller_than_what_it_knows_itself_by(contract: Contract) -> None:
    assert contract.launcher.stat().st_size < 1 << 20


def test_without_a_configuration_runc_of_path_is_the_downstream(contract: Contract) -> None:
    contract.passed(contract.call("state", "x"), "state", "x")


def test_a_long_command_line_arrives(contract: Contract) -> None:
    args = ["exec", "x", *(f"{n:01000}" for n in range(100)), "y" * 100_000]
    contract.passed(contract.call(*args), *args)


def test_the_exit_code_is_the_downstreams(contract: Contract) -> None:
    assert [contract.call("state", "x", code=code).code for code in (0, 1, 2, 126, 127, 255)] == [
        0,
        1,
        2,
        126,
        127,
        255,
    ]


@pytest.mark.parametrize("args", [("state", "x"), ("checkpoint", "x")], ids=["downstream", "python"])
@pytest.mark.parametrize(
    "env",
    [
        [],
        [b"PATH=/usr/bin"],
        [b"A=1", b"EMPTY=", b"=nameless", b"NO_EQUALS_SIGN", b"A=2", b"A=1"],
        [b"1 name=that is", b"no-identifier=x", b"BASH_FUNC_f%%=() { :; }", b"\xff\xfe=\x80\x81", b"a.b=c=d="],
        [b"LC_ALL=C", b"LANG=xx_YY.nothing", b"PYTHONPATH=/nowhere", b"PYTHONHOME=/nowhere", b"LD_PRELOAD="],
        [b"NEWLINE=a\nb\n", b"LONG=" + b"x" * 100_000],
    ],
    ids=["empty", "one", "odd", "bytes", "python", "long"],
)
def test_the_environment_arrives_byte_for_byte(contract: Contract, args: tuple[str, ...], env: list[bytes]) -> None:
    contract.configure()
    assert contract.call(*args, env=env).served.environ == env


def _as_the_recorder_alone(contract: Contract, *, args: tuple[str, ...] = ("state", "x"), **popen: object) -> None:
    """What the launcher hands on is what its caller gave to it."""
    contract.configure()
    alone = contract.call(*args, program=contract.downstream, **popen).served  # type: ignore[arg-type]
    through = contract.call(*args, **popen).served  # type: ignore[arg-type]
    assert through.exe == str(contract.python if args[0] == "checkpoint" else contract.downstream)
    assert through.inherited == alone.inherited


both = pytest.mark.parametrize("args", [("state", "x"), ("checkpoint", "x")], ids=["downstream", "python"])


@both
def test_open_descriptors_stay_and_none_is_added(contract: Contract, tmp_path: Path, args: tuple[str, ...]) -> None:
    contract.configure()
    files = [(tmp_path / name).open("w+b") for name in ("out", "err", "five", "closed")]
    out, err, five, closed = (file.fileno() for file in files)

    def prepare() -> None:
        os.dup2(five, 5)
        os.dup2(five, 77)
        os.dup2(closed, 6, inheritable=False)

    called = contract.call(*args, stdout=out, stderr=err, close_fds=False, prepare=prepare)
    expected = {
        0: "/dev/null",
        **{fd: str(tmp_path / n) for fd, n in ((1, "out"), (2, "err"), (5, "five"), (77, "five"))},
    }
    found = called.served.fds
    alone = contract.call(*args, program=contract.downstream, stdout=out, stderr=err, close_fds=False, prepare=prepare)
    assert found == alone.served.fds
    assert {fd: os.fsdecode(link) for fd, link in found.items() if fd in expected} == expected
    for file in files:
        file.close()


@both
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=repr)
def test_closed_descriptors_stay_closed(contract: Contract, closed: tuple[int, ...], args: tuple[str, ...]) -> None:
    contract.configure()

    def prepare() -> None:
        for fd in closed:
            os.close(fd)

    assert not set(closed) & contract.call(*args, prepare=prepare).served.fds.keys()


def _mask(*numbers: int) -> int:
    return sum(1 << (number - 1) for number in numbers)


@both
@pytest.mark.parametrize(
    "ignored",
    [(), (signal.SIGPIPE,), (signal.SIGXFSZ,), (signal.SIGPIPE, signal.SIGXFSZ), (signal.SIGHUP, signal.SIGINT)],
    ids=repr,
)
def test_ignored_signals_stay_ignored_and_no_others(
    contract: Contract, ignored: tuple[int, ...], args: tuple[str, ...]
) -> None:
    def prepare() -> None:
        default_signals()
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    contract.configure()
    called = contract.call(*args, prepare=prepare, restore_signals=False)
    told = _mask(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT)
    assert called.served.ignored & told == _mask(*ignored)
    if args[0] == "checkpoint":  # CPython ignores these itself, and must be told
        names = {signal.SIGPIPE: "pipe", signal.SIGXFSZ: "xfsz"}
        expected = ",".join(names[signal.Signals(number)] for number in ignored if number in names) or "-"
        assert called.served.argv[5].decode() == expected
    _as_the_recorder_alone(contract, args=args, prepare=prepare, restore_signals=False, stdout=None, stderr=None)


@both
def test_blocked_signals_stay_blocked(contract: Contract, args: tuple[str, ...]) -> None:
    blocked = (signal.SIGTERM, signal.SIGCHLD, signal.SIGRTMIN + 3)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    contract.configure()
    assert contract.call(*args, prepare=prepare).served.blocked == _mask(*blocked)


@both
def test_the_terminal_stays_the_terminal(contract: Contract, args: tuple[str, ...]) -> None:
    contract.configure()
    master, slave = os.openpty()
    try:
        called = contract.call(*args, stdin=slave, start_new_session=True)
        assert called.served.tty
        assert called.served.fds[0] == os.fsencode(os.ttyname(slave))
        assert called.served.sid == called.pid
        _as_the_recorder_alone(contract, args=args, stdin=slave, stdout=None, stderr=None)
    finally:
        os.close(master)
        os.close(slave)


@both
def test_working_directory_and_umask_stay(contract: Contract, args: tuple[str, ...]) -> None:
    here = contract.work / os.fsdecode(b"caf\xc3\xa9 \xff")
    here.mkdir()
    _as_the_recorder_alone(contract, args=args, cwd=here, umask=0o137, stdout=None, stderr=None)


@both
def test_a_working_directory_that_is_gone_stops_nothing(contract: Contract, args: tuple[str, ...]) -> None:
    here = contract.work / "gone"
    here.mkdir()
    contract.configure()

    def prepare() -> None:
        os.chdir(here)
        here.rmdir()

    called = contract.call("--root", "relative", *args, prepare=prepare)
    assert called.served.argv[-len(args) :] == [os.fsencode(word) for word in args]
    assert called.served.cwd.endswith(b"/gone (deleted)")


def test_a_limit_on_open_files_stops_nothing(contract: Contract) -> None:
    contract.configure()
    called = contract.call("state", "x", prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)))
    contract.passed(called, "state", "x")


# Who is not root has no containers of ours.


@pytest.mark.parametrize("args", [("checkpoint", "x"), ("restore", "x"), ("delete", "x"), ("state", "x")], ids=repr)
def test_whoever_is_not_root_is_passed_on(contract: Contract, args: tuple[str, ...]) -> None:
    contract.configure()
    contract.workspace("run-runc", "x")
    called = contract.call(*args, user=65534, group=65534, extra_groups=[])
    assert contract.passed(called, *args).uid == 65534


@pytest.mark.parametrize("args", [("inspect", "/c"), ("diff", "/a", "/b"), ("completion", "bash")], ids=repr)
def test_whoever_is_not_root_may_look_at_checkpoints(contract: Contract, args: tuple[str, ...]) -> None:
    contract.configure()
    called = contract.call(*args, user=65534, group=65534, extra_groups=[])
    assert contract.reason(called, *args) == "verb"


# The configuration.


def _config(contract: Contract, text: str) -> None:
    contract.configure(text.replace("DOWNSTREAM", str(contract.downstream)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n# nothing\n",
        "downstream: DOWNSTREAM",
        "downstream: DOWNSTREAM\n",
        "downstream:   DOWNSTREAM   # a comment",
        "# downstream: /nowhere\ndownstream: DOWNSTREAM\n",
        "downstream: runc\nstate-dir: /run/grit-runtime\nfsync: false\n",
        "timeouts:\n  lock: 1\n  command: 2\ndownstream: DOWNSTREAM\n",
        "criu:\n  dump:\n    downstream: /nowhere\ndownstream: DOWNSTREAM\n",
        "log-dir: '/a b' # c\ncheckpoint-roots: [/a, \"/b\"]\ndownstream: DOWNSTREAM\n",
        "no-such-key: 1\ndownstream: DOWNSTREAM\n",
        "fsync: 17\ndownstream: DOWNSTREAM\n",
    ],
)
def test_a_plain_configuration_is_read_by_the_launcher(contract: Contract, text: str) -> None:
    _config(contract, text)
    contract.passed(contract.call("state", "x"), "state", "x")


@pytest.mark.parametrize(
    "text",
    [
        "downstream: 'DOWNSTREAM'\n",
        'downstream: "DOWNSTREAM"\n',
        "downstream:\tDOWNSTREAM\n",
        "\tdownstream: DOWNSTREAM\n",
        "timeouts:\n\tlock: 1\n",
        "downstream: DOWNSTREAM\r\n",
        "downstream: DOWNSTREAM\ndownstream: DOWNSTREAM\n",
        "state-dir: /a\ndownstream: DOWNSTREAM\nstate-dir: /b\n",
        "downstream:\n  DOWNSTREAM\n",
        "downstream:\n",
        "downstream: \n",
        "downstream: # none\n",
        "downstream:DOWNSTREAM\n",
        "downstream : DOWNSTREAM\n",
        "downstream: DOWNSTREAM#\n",
        "downstream: DOWNSTREAM x\n",
        "downstream: |\n  DOWNSTREAM\n",
        "downstream: &a DOWNSTREAM\n",
        "downstream: [runc]\n",
        "state-dir: /run/$x\n",
        "---\ndownstream: DOWNSTREAM\n",
        "%YAML 1.1\n---\ndownstream: DOWNSTREAM\n",
        "downstream: DOWNSTREAM\n---\n",
        "...\n",
        '{"downstream": "DOWNSTREAM"}\n',
        '"downstream": DOWNSTREAM\n',
        "'downstream': DOWNSTREAM\n",
        "? downstream\n: DOWNSTREAM\n",
        "<<: {downstream: DOWNSTREAM}\n",
        "- downstream: DOWNSTREAM\n",
        "Downstream: DOWNSTREAM\n",
        "down_stream: DOWNSTREAM\n",
        "\ufeffdownstream: DOWNSTREAM\n",
        "downstream: DOWNSTREAM\0\n",
        "downstream",
        "garbage\n",
        "!!map\ndownstream: DOWNSTREAM\n",
        "fsync:true\n",
        'log-dir: "/a\\"\ndownstream: DOWNSTREAM\nstate-dir: /b\nfsync: \\""\n',
    ],
)
@pytest.mark.parametrize("args", [("state", "x"), ("checkpoint", "x"), ("--no-such-flag",)], ids=repr)
def test_any_other_configuration_is_left_to_python(contract: Contract, text: str, args: tuple[str, ...]) -> None:
    _config(contract, text)
    assert contract.reason(contract.call(*args), *args) == "config"


def test_a_configuration_that_cannot_be_read_is_left_to_python(contract: Contract) -> None:
    contract.configure()
    contract.config.chmod(0o600)
    called = contract.call("state", "x", user=65534, group=65534, extra_groups=[])
    assert contract.reason(called, "state", "x") == "config"
    contract.config.unlink()
    contract.config.mkdir()
    assert contract.reason(contract.call("state", "x"), "state", "x") == "config"
    contract.config.rmdir()
    contract.config.symlink_to(contract.config)
    assert contract.reason(contract.call("state", "x"), "state", "x") == "config"
    contract.config.unlink()
    os.mkfifo(contract.config)
    assert contract.reason(contract.call("state", "x"), "state", "x") == "config"


def test_a_configuration_larger_than_a_mebibyte_is_left_to_python(contract: Contract) -> None:
    line = f"downstream: {contract.downstream}\n"
    for size, fast in ((1 << 20, True), ((1 << 20) + 1, False)):
        contract.configure(line + "#" * (size - len(line)))
        called = contract.call("state", "x")
        if fast:
            contract.passed(called, "state", "x")
        else:
            assert contract.reason(called, "state", "x") == "config"


def test_the_environment_names_another_configuration(contract: Contract) -> None:
    contract.configure("garbage")
    other = contract.work / "other.yaml"
    other.write_text(f"downstream: {contract.downstream}\n")
    contract.passed(contract.call("state", env={"GRIT_RUNTIME_CONFIG": str(other)}), "state")
    contract.passed(contract.call("state", env=contract.environ(GRIT_RUNTIME_CONFIG="/nowhere/at/all")), "state")
    called = contract.call("state", env=contract.environ(GRIT_RUNTIME_CONFIG=""))
    assert contract.reason(called, "state") == "config"


def test_a_configuration_that_is_rewritten_in_place_stops_nothing(contract: Contract) -> None:
    text = b"downstream: %s\n" % os.fsencode(contract.downstream) + b"#" * 900_000
    contract.configure(text)
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            contract.config.write_bytes(text)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(200):
            contract.passed(contract.call("state", "x"), "state", "x")
    finally:
        done.set()
        writer.join()


# Finding the downstream.


def test_path_is_searched_as_execvp_does(contract: Contract) -> None:
    (contract.work / "directory").mkdir()
    (contract.work / "directory/runc").mkdir()
    (contract.work / "plain").mkdir()
    (contract.work / "plain/runc").write_text("not executable")
    path = f"/nowhere:{contract.work}/directory:{contract.work}/plain:{contract.bin}:/usr/bin"
    contract.passed(contract.call("state", env={"PATH": path}), "state")
    (contract.work / "runc").symlink_to(contract.downstream)
    for path in (":/nowhere", "/nowhere:", "/nowhere::/nowhere", "."):
        assert contract.call("state", "x", env={"PATH": path}).served.argv[0] == b"./runc"


@pytest.mark.parametrize("env", [[], [b"PATH="]], ids=["unset", "empty"])
def test_without_path_the_usual_directories_are_searched(contract: Contract, env: list[bytes]) -> None:
    contract.configure("downstream: sh\n")
    called = contract.call("-c", "echo $0", env=env)
    assert (called.code, called.record) == (0, None), called.err
    assert called.out in ("/usr/bin/sh\n", "/bin/sh\n")


@pytest.mark.parametrize(
    "kind", ["missing", "directory", "not executable", "itself", "link", "hard link", "copy", "loop"]
)
@pytest.mark.parametrize("in_path", [False, True])
def test_a_downstream_that_cannot_be_is_left_to_python(contract: Contract, kind: str, in_path: bool) -> None:
    program = _bad_downstream(contract, kind)
    contract.configure("" if in_path else f"downstream: {program}\n")
    called = contract.call("state", "x", env={"PATH": str(program.parent)})
    assert contract.reason(called, "state", "x") == "downstream"


def _bad_downstream(contract: Contract, kind: str) -> Path:
    program = contract.work / "runc"
    match kind:
        case "directory":
            program.mkdir()
        case "not executable":
            program.write_text("#!/bin/sh\n")
        case "link":
            program.symlink_to(contract.launcher)
        case "hard link":
            program.hardlink_to(contract.launcher)
        case "copy":
            program.write_bytes(contract.launcher.read_bytes())
            program.chmod(0o755)
        case "loop":
            program.symlink_to(program)
        case "itself":
            (contract.work / "bin").mkdir()
            program = contract.work / "bin/runc"
            program.hardlink_to(contract.real)
        case _:
            assert kind == "missing"
    return program


def test_a_broken_program_is_left_to_python(contract: Contract) -> None:
    program = contract.work / "runc"
    program.write_bytes(b"\x7fELF and no more")
    program.chmod(0o755)
    contract.configure(f"downstream: {program}\n")
    assert contract.reason(contract.call("state", "x"), "state", "x") == "downstream"


def test_without_python_there_is_one_line_and_runcs_exit_code(contract: Contract) -> None:
    contract.configure()
    away = contract.python.rename(contract.bin / "away")
    try:
        called = contract.call("checkpoint", "x")
        contract.passed(contract.call("state", "x"), "state", "x")
    finally:
        away.rename(contract.python)
    assert (called.code, called.out, called.record) == (1, "", None)
    assert called.err == f"grit-runtime: cannot execute {contract.python}: No such file or directory\n"


# Workspaces and bundles.


@pytest.mark.parametrize("verb", ["state", "start", "kill", "delete", "exec", "pause", "create", "unheard-of"])
def test_a_container_with_a_journal_concerns_us(contract: Contract, verb: str) -> None:
    contract.configure()
    contract.workspace("run-runc", "x")
    contract.workspace("a-b", "y")
    for args in ((verb, "x"), (verb, "-f", "--flag=1", "x", "more"), ("--root", "/a/b", verb, "y")):
        assert contract.reason(contract.call(*args), *args) == "verb"
    for theirs in (
        (verb, "y"),
        ("--root", "/a/b", verb, "x"),
        ("--root", "/a-b", verb, "y"),
        (verb, "--flag=x"),
        (verb,),
    ):
        contract.passed(contract.call(*theirs), *theirs)


def test_only_delete_concerns_us_of_a_workspace_without_a_journal(contract: Contract) -> None:
    contract.configure()
    contract.workspace("run-runc", "x", journal=False)
    for args in (("state", "x"), ("start", "x"), ("kill", "x", "KILL")):
        contract.passed(contract.call(*args), *args)
    args = ("delete", "--force", "x")
    assert contract.reason(contract.call(*args), *args) == "verb"


@pytest.mark.parametrize("word", ["..", ".", "", "../run-runc/x", "x/", "-x", "journal"])
def test_no_word_leads_out_of_a_workspace(contract: Contract, word: str) -> None:
    contract.configure()
    contract.workspace("run-runc", "x")
    (contract.state / "run-runc/journal").touch()
    (contract.state / "journal").touch()
    args = ("state", word)
    contract.passed(contract.call(*args), *args)


def test_the_root_of_the_last_flag_counts(contract: Contract) -> None:
    contract.configure()
    contract.workspace("b", "x")
    for args in (("--root", "/a", "-root=/b"), ("--root=/b",), ("-root", "/b"), ("--root", "//b/"), ("--root", "b")):
        ours = (*args, "state", "x")
        assert contract.reason(contract.call(*ours, cwd="/"), *ours) == "verb"
    theirs = ("--root=/b", "--root=/a", "state", "x")
    contract.passed(contract.call(*theirs), *theirs)


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/run/runc", "run-runc"),
        ("/run/containerd/runc/k8s.io", "run-containerd-runc-k8s.io"),
        ("/", "-"),
        ("//run//x/", "run-x"),
        ("/a-b/c_d:e", r"a\x2db-c_d:e"),
        ("/.hidden/.too", r"\x2ehidden-.too"),
        ("/caf\u00e9 1", r"caf\xc3\xa9\x201"),
    ],
)
def test_a_roots_name_is_that_of_systemd_escape(contract: Contract, root: str, name: str) -> None:
    escape = shutil.which("systemd-escape")
    if escape is not None:
        said = subprocess.run([escape, "-p", "--", root], capture_output=True, check=True)
        assert os.fsdecode(said.stdout) == f"{name}\n"
    contract.configure()
    contract.workspace(name, "x")
    args = ("--root", root, "state", "x")
    assert contract.reason(contract.call(*args), *args) == "verb"


_ROOTS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=8).map(os.fsencode),
        st.binary(max_size=6).map(lambda raw: raw.translate(None, b"\0/")),
        st.sampled_from([b"", b".", b"..", b"a-b", b"a_b.c:d", b".hidden", b"-", b" ", b"\\x2d"]),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=_ROOTS, absolute=st.booleans(), inside=st.booleans())
@example(parts=[b"run", b"runc"], absolute=True, inside=False)
@example(parts=[], absolute=True, inside=False)
@example(parts=[b".."], absolute=True, inside=False)
@example(parts=[b".hidden", b".too"], absolute=True, inside=False)
@example(parts=[b"r\xc3\xa9"], absolute=False, inside=True)
def test_a_roots_name_is_the_packages_own(contract: Contract, parts: list[bytes], absolute: bool, inside: bool) -> None:
    contract.reset()
    contract.configure()
    root = b"/".join([b"", *parts] if absolute else parts)
    here = contract.work / "in here" if inside else Path("/")
    here.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(here)
    try:
        escaped = escape_root(os.fsdecode(root))
    finally:
        os.chdir(before)
    if len(escaped) > 255:
        return
    assert "/" not in escaped
    assert escaped not in (".", "..")
    directory = contract.state / escaped / "x"
    directory.mkdir(parents=True)
    (directory / "journal").touch()
    args = (b"--root=" + root, b"state", b"x")
    assert contract.reason(contract.call(*args, cwd=here), *args) == "verb"
    (directory / "journal").unlink()
    contract.passed(contract.call(*args, cwd=here), *args)


@pytest.mark.parametrize(
    "flags",
    [
        ("--bundle", "BUNDLE"),
        ("--bundle=BUNDLE",),
        ("-bundle", "BUNDLE"),
        ("-bundle=BUNDLE",),
        ("-b", "BUNDLE"),
        ("-b=BUNDLE",),
        ("--b", "BUNDLE"),
        ("--b=BUNDLE",),
        ("--pid-file", "/p", "--bundle", "BUNDLE", "--no-pivot"),
        ("--no-such-flag", "--bundle", "BUNDLE"),
        ("--bundle", "/nowhere", "--bundle", "BUNDLE"),
        ("--bundle", "BUNDLE/"),
        ("--bundle", "RELATIVE"),
    ],
    ids=repr,
)
def test_create_of_a_bundle_that_names_a_checkpoint_is_ours(contract: Contract, flags: tuple[str, ...]) -> None:
    contract.configure()
    bundle = contract.bundle("annotated")
    flags = tuple(word.replace("BUNDLE", str(bundle)).replace("RELATIVE", bundle.name) for word in flags)
    for args in (("create", *flags, "x"), ("create", "x", *flags), ("--root", "/r", "create", *flags, "x")):
        assert contract.reason(contract.call(*args), *args) == "verb"
    other = str(contract.bundle("other", "{}"))
    for args in (("create", *flags, "--bundle", other, "x"), ("create", "x", "--", *flags), ("state", *flags, "x")):
        contract.passed(contract.call(*args), *args)


def test_the_default_bundle_is_the_working_directory(contract: Contract) -> None:
    contract.configure()
    bundle = contract.bundle("annotated")
    for args in (("create", "x"), ("create", "--pid-file", "/p", "x"), ("create", "--bundle", ".", "x"), ("create",)):
        assert contract.reason(contract.call(*args, cwd=bundle), *args) == "verb"
        contract.passed(contract.call(*args), *args)


@pytest.mark.parametrize("args", [("create", "--bundle", "", "x"), ("create", "--bundle=", "x")], ids=repr)
def test_an_empty_bundle_is_the_working_directory_too(contract: Contract, args: tuple[str, ...]) -> None:
    contract.configure()
    assert contract.reason(contract.call(*args, cwd=contract.bundle("annotated")), *args) == "verb"


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        (ANNOTATED, True),
        (ANNOTATED.replace("/", "\\/"), True),
        (ANNOTATED.replace("grit", "\\u0067rit"), True),
        (ANNOTATED.replace("grit.dev/", "grit.dev\\u002F"), True),
        (ANNOTATED.replace("grit.dev/", "grit.dev\\u002f"), True),
        (ANNOTATED.replace("grit.dev", "grit\\u002edev"), True),
        (ANNOTATED.replace("grit", "\\u0067\\u0072\\u0069\\u0074"), True),
        ('{"hostname": "a\\\\"}' + " " * 10, False),
        ('{"hostname": "\\u00e4\\u0041\\u0000 \\" \\\\ \\n"}', False),
        ('{"annotations": {"dev.grit/checkpoint": "x"}}', False),
        ('{"hostname": "\\\\u0067"}', False),
        ("{}", False),
        ("", False),
        ("\\", False),
        ("\\u", False),
        ("\\u00", False),
        (b"\xff\xfe\x00", False),
        (" " * ((16 << 20) - len(ANNOTATED)) + ANNOTATED, True),
        (" " * (16 << 20) + ANNOTATED, False),
    ],
    ids=range(19),
)
def test_only_a_bundle_that_may_name_a_checkpoint_is_looked_at(contract: Contract, text: Word, ours: bool) -> None:
    contract.configure()
    args = ("create", "--bundle", str(contract.bundle("b", text)), "x")
    called = contract.call(*args)
    if ours:
        assert contract.reason(called, *args) == "verb"
    else:
        contract.passed(called, *args)


def test_a_bundle_that_cannot_be_read_is_the_downstreams_to_refuse(contract: Contract) -> None:
    contract.configure()
    (contract.work / "empty").mkdir()
    (contract.work / "directory/config.json").mkdir(parents=True)
    for bundle in ("empty", "directory", "nowhere", "x" * 5000):
        args = ("create", "--bundle", bundle, "x")
        contract.passed(contract.call(*args), *args)


@pytest.mark.parametrize(
    ("devices", "downstream", "ours"),
    [
        ("", "runc", True),
        ("devices: auto\n", "runc", True),
        ("devices: cdi\n", "nvidia-container-runtime", True),
        ("devices: hook # c\n", "runc", True),
        ("devices: chain\n", "runc", False),
        ("devices: none\n", "runc", False),
        ("", "nvidia-container-runtime", False),
        ("devices: auto\n", "nvidia-container-runtime.cdi", False),
    ],
)
def test_a_container_that_asks_for_devices_is_ours_unless_the_downstream_gives_them(
    contract: Contract, devices: str, downstream: str, ours: bool
) -> None:
    program = contract.bin / downstream
    if downstream != "runc":
        program.unlink(missing_ok=True)
        program.hardlink_to(contract.downstream)
    contract.configure(f"downstream: {program}\nstate-dir: {contract.state}\n{devices}")
    asking = ('{"process": {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}}', '{"annotations": {"cdi.k8s.io/a": "b"}}')
    for number, text in enumerate(asking):
        args = ("create", "--bundle", str(contract.bundle(str(number), text)), "x")
        called = contract.call(*args)
        if ours:
            assert contract.reason(called, *args) == "verb"
        else:
            assert called.served.exe == str(program)
    args = ("create", "--bundle", str(contract.bundle("b", "{}")), "x")
    assert contract.call(*args).served.exe == str(program)
