"""The launcher's decision, for any command line, is that of the package's own reader of command lines."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grit_runtime import config as configuration
from grit_runtime.errors import ConfigError, UsageError
from grit_runtime.host.workspace import escape_root
from grit_runtime.oci import argv
from tests.contract.conftest import Contract

pytestmark = pytest.mark.needs("root", "cc")

SETTINGS = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

OURS = (
    "checkpoint", "restore", "recover", "config", "export", "sign", "inspect", "diff", "install", "uninstall", "plan",
    "doctor", "diagnose", "checkpoints", "prune", "capture", "restore-into", "completion", "report", "e2e",
)  # fmt: skip
THEIRS = ("create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "features", "spec", "x")
CONTAINERS = ("waiting", "traced", "elsewhere", "none", *OURS, "create", "delete")
VALUES = (
    "/run/runc",
    "/other",
    "other",
    "plain",
    "marked",
    "./marked/",
    "json",
    "",
    "-",
    "--",
    "--bundle",
    *CONTAINERS,
)

_dashes = st.sampled_from(["-", "--", "---"])
_known = sorted(argv.GLOBAL_VALUES | argv.GLOBAL_SWITCHES)
_any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


def _flags(names: list[str]) -> st.SearchStrategy[list[str]]:
    """One flag in any of its forms, with or without a value, whether or not it takes one."""
    name, value = st.sampled_from(names), st.one_of(st.sampled_from(VALUES), _any_text)
    return st.one_of(
        st.builds(lambda d, n, v: [f"{d}{n}={v}"], _dashes, name, value),
        st.builds(lambda d, n, v: [f"{d}{n}", v], _dashes, name, value),
        st.builds(lambda d, n: [f"{d}{n}"], _dashes, name),
    )


def _lists(*of: st.SearchStrategy[list[str]], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.one_of(*of), max_size=most).map(lambda parts: [word for part in parts for word in part])


_values = sorted(argv.GLOBAL_VALUES)
_globals = _lists(
    _flags(["root"]),
    st.builds(lambda n, v: [f"--{n}", v], st.sampled_from(_values), st.sampled_from(VALUES)),
    st.builds(lambda n, v: [f"-{n}={v}"], st.sampled_from(_values), st.sampled_from(VALUES)),
    st.sampled_from(sorted(argv.GLOBAL_SWITCHES)).map(lambda name: [f"--{name}"]),
    most=3,
)
_oddities = _lists(
    _flags([*_known, "bundle", "unknown", "roots", "lo"]),
    st.sampled_from(["--", "-", "", "-=", "--=x", "---"]).map(lambda word: [word]),
    _any_text.map(lambda word: [word]),
    most=1,
)
_verb = st.sampled_from([*THEIRS, *OURS, "create", "delete", "create", "delete", "state"]).map(lambda word: [word])
_rest = _lists(
    st.sampled_from(CONTAINERS).map(lambda word: [word]),
    st.just(["waiting"]),
    _flags(["bundle", "b", "pid-file", "console-socket", "no-pivot", "force", "f", "unknown", "root"]),
    st.sampled_from(["--", "-", "", ".", "..", "run-runc/waiting"]).map(lambda word: [word]),
    _any_text.map(lambda word: [word]),
    most=4,
)
command_lines = st.builds(lambda *parts: [word for part in parts for word in part], _globals, _oddities, _verb, _rest)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the launcher finds on disk."""

    state: Path
    here: Path

    def workspace(self, root: str, container: str) -> Path:
        """Where a container's workspace is; `root` may be relative to the working directory of the call."""
        return self.state / escape_root(os.path.join(self.here, root)) / container


def expected(words: list[str], machine: Machine) -> bool:
    """The reference: whether a call goes to Python."""
    try:
        call = argv.scan(words)
    except UsageError:
        return False
    if call.verb in OURS:
        return True
    names = [word for word in call.args if word and word[0] != "-" and "/" not in word and word not in (".", "..")]
    found = [path for name in names if (path := machine.workspace(call.root, name)).exists()]
    if any(call.verb == "delete" or (path / "journal").exists() for path in found):
        return True
    return call.verb == "create" and "marked" in (machine.here / _bundle(call.args)).name


def _bundle(args: tuple[str, ...]) -> str:
    """The last bundle, wherever it stands: other flags need not be known."""
    words, bundle = iter(args), "."
    for word in words:
        if word == "--":
            break
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            continue
        if name in ("bundle", "b"):
            bundle = value if equals else next(words, ".")
        elif name in argv.CREATE.values and not equals:
            next(words, None)
    return bundle or "."


def must_be_ours(words: list[str], machine: Machine) -> bool:
    """Whether the package, which reads a verb's flags exactly, would do anything but pass the call on."""
    try:
        call = argv.scan(words)
        spec = {"create": argv.CREATE, "delete": argv.DELETE, "kill": argv.KILL, "state": argv.STATE}[call.verb]
        flags = argv.read_flags(call.verb, call.args, spec)
        container = machine.workspace(call.root, argv.container_id(call.verb, flags))
    except (UsageError, KeyError):
        return False
    if (container / "journal").exists() or (call.verb == "delete" and container.exists()):
        return True
    bundle = Path(os.path.abspath(machine.here / (flags.value("bundle") or ".")))
    return call.verb == "create" and bundle.name == "marked"


@pytest.fixture
def places(contract: Contract) -> Contract:
    """A container with a journal under each of two roots, one with a workspace only, and two bundles."""
    contract.configure()
    contract.workspace("run-runc", "waiting")
    contract.workspace("run-runc", "traced", journal=False)
    contract.workspace("other", "elsewhere")
    for name in ("plain", "marked"):
        for parent in (contract.work, contract.work / "plain", contract.work / "marked"):
            (parent / name).mkdir(parents=True, exist_ok=True)
            text = '{"annotations": {"grit.dev/checkpoint": "/c"}}' if name == "marked" else "{}"
            (parent / name / "config.json").write_text(text)
    return contract


@SETTINGS
@given(words=command_lines, here=st.sampled_from(["plain", "marked"]))
@example(words=["create", "--pid-file", "/p", "waiting"], here="plain")
@example(words=["--root=/other", "kill", "elsewhere", "KILL"], here="plain")
@example(words=["create", "-b=", "none"], here="marked")
@example(words=["create", "--bundle", "", "none"], here="marked")
@example(words=["create", "--pid-file", "--bundle", "none"], here="marked")
@example(words=["create", "--console-socket", "--", "--bundle", "../marked", "none"], here="plain")
@example(words=["--log", "restore", "create", "--bundle", "./marked/", "none"], here="plain")
def test_the_launcher_decides_as_the_package_reads(places: Contract, words: list[str], here: str) -> None:
    machine = Machine(state=places.state, here=places.work / here)
    called = places.call(*words, cwd=machine.here)
    if expected(words, machine):
        assert places.reason(called, *words) == "verb"
    else:
        places.passed(called, *words)
        assert not must_be_ours(words, machine)


_plain_values = st.sampled_from(
    ["runc", "/nowhere/crun", "./x", "a b", "'q'", '"q"', "", "null", "1", "[x]", "a#b", "x # c"]
)
_config_lines = st.one_of(
    st.builds("{}: {}".format, st.sampled_from(["downstream", "state-dir", "log-dir", "Downstream"]), _plain_values),
    st.builds("  {}: {}".format, st.sampled_from(["downstream", "lock"]), _plain_values),
    st.sampled_from(
        ["timeouts:", "criu:", "  dump:", "fsync: false", "# downstream: x", "", "  ", "---", "...", "}", "x"]
    ),
    st.sampled_from(
        ["downstream:", "  /nowhere/crun", "downstream: |", "log-dir: >", "{}", "downstream:x", "  # c", "- x"]
    ),
)


@SETTINGS
@given(lines=st.lists(_config_lines, max_size=5))
@example(lines=["timeouts:", "  lock: 1", "downstream: /nowhere/crun # c"])
@example(lines=["  downstream: /nowhere/crun"])
@example(lines=["downstream: /nowhere/crun", "  and more"])
@example(lines=['log-dir: "/a', "downstream: /nowhere/crun", ' "'])
@example(lines=["log-dir: '/a", "downstream: /nowhere/crun", " '"])
@example(lines=['log-dir: "/a', "downstream: /nowhere/crun", 'x: "'])
@example(lines=["log-dir: '/a", "downstream: /nowhere/crun", "x: '"])
@example(lines=['log-dir: "/a\\"', "downstream: /nowhere/crun", 'x: \\""'])
@example(lines=["criu: {dump: {", "downstream: /nowhere/crun", " }}"])
@example(lines=["checkpoint-roots: [/a,", "downstream: /nowhere/crun", " ]"])
@example(lines=["# \u2028downstream: /nowhere/crun"])
@example(lines=["# \x85downstream: /nowhere/crun"])
def test_the_launcher_reads_no_other_downstream_than_the_package(contract: Contract, lines: list[str]) -> None:
    text = "\n".join(lines).encode()
    try:
        parsed = configuration.parse(text, "config.yaml")
    except ConfigError:
        return
    contract.configure(text)
    called = contract.call("state", "x", env={"PATH": str(contract.bin)})
    if called.served.exe == str(contract.downstream):
        assert parsed.downstream == "runc"
    else:
        assert called.served.argv[4] in (b"config", b"downstream")
        if called.served.argv[4] == b"downstream":
            assert parsed.downstream != "runc"
