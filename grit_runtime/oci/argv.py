"""Reading a runtime's command line without owning it.

runc (urfave/cli on Go's flag package) takes `-x`, `--x`, `--x=v`, `--x v` and `-x v` alike, stops at the first word
that is no flag, and at `--`. The verb is found by its position. The launcher decides by the same rules
(launcher/grit-runtime.c); tests/contract holds the two together.
"""

from dataclasses import dataclass, field

from grit_runtime.errors import UsageError

GLOBAL_VALUES = frozenset({"log", "log-format", "root", "rootless", "criu", "cgroup-manager", "log-level"})
GLOBAL_SWITCHES = frozenset({"debug", "systemd-cgroup", "version"})
DEFAULT_ROOT = "/run/runc"

# `criu` was removed in runc 1.4 and its path ignored since 1.2; what calls the downstream for us must not pass it on.
_NOT_INHERITED = frozenset({"log", "log-format", "debug", "criu"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSpec:
    """The flags of one verb: those with a value, those without, and their short names."""

    values: frozenset[str]
    switches: frozenset[str]
    aliases: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """A verb's arguments, read. `tokens` keeps each flag with its value as the caller wrote it.

    Every verb has the switch `help`, whose answer is the downstream's.
    """

    values: dict[str, tuple[str, ...]]
    switches: frozenset[str]
    positional: tuple[str, ...]
    tokens: tuple[tuple[str, tuple[str, ...]], ...]

    def value(self, name: str, default: str = "") -> str:
        """The last value given for `name`, as Go's flag package takes it."""
        return self.values[name][-1] if name in self.values else default

    def without(self, *names: str) -> list[str]:
        """The flags as the caller wrote them, less those named, to hand on."""
        return [word for name, words in self.tokens if name not in names for word in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A command line: the program's global flags, the verb, and what follows it untouched."""

    options: Flags
    verb: str
    args: tuple[str, ...]

    @property
    def root(self) -> str:
        """Where the downstream keeps its state: `--root`, or runc's default for root."""
        return self.options.value("root", DEFAULT_ROOT)

    @property
    def log(self) -> str:
        """The file of `--log`, or an empty string for stderr."""
        return self.options.value("log")

    @property
    def log_format(self) -> str:
        """`text` (runc's default) or `json`."""
        return self.options.value("log-format", "text")

    def inherited(self) -> list[str]:
        """The global flags for a call of our own: the caller's, less where to log."""
        return self.options.without(*_NOT_INHERITED)


_GLOBALS = FlagSpec(values=GLOBAL_VALUES, switches=GLOBAL_SWITCHES, aliases={"v": "version"})


def scan(argv: list[str]) -> Invocation:
    """Split `argv` (without the program's name) at the verb.

    Raises:
        UsageError: an unknown global flag, or no verb; the launcher passes such a call to the downstream.
    """
    options = _read(argv, _GLOBALS, interleaved=False)
    if not options.positional or any(name in ("help", "version") for name, _ in options.tokens):
        raise UsageError("no command given")
    return Invocation(options=options, verb=options.positional[0], args=options.positional[1:])


def read_flags(verb: str, args: tuple[str, ...], spec: FlagSpec) -> Flags:
    """Read the arguments of `verb`.

    Raises:
        UsageError: a flag that `spec` doesn't know, or one without its value.
    """
    try:
        return _read(list(args), spec, interleaved=True)
    except UsageError as err:
        raise UsageError(f"{verb}: {err}") from None


def _read(words: list[str], spec: FlagSpec, *, interleaved: bool) -> Flags:
    """Read flags up to `--`; past the first other word only if `interleaved` (urfave/cli reorders a verb's
    arguments).
    """
    values: dict[str, tuple[str, ...]] = {}
    switches: set[str] = set()
    positional: list[str] = []
    tokens: list[tuple[str, tuple[str, ...]]] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            index += 1
            break
        if not word.startswith("-") or word == "-":
            if not interleaved:
                break
            positional.append(word)
            index += 1
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = spec.aliases.get(name, "help" if name == "h" else name)
        taken = 1
        if name in spec.switches or name == "help":
            # Go: `--flag=false` switches off.
            (switches.discard if equals and value in ("false", "0", "f", "F", "FALSE", "False") else switches.add)(name)
        elif name in spec.values:
            if not equals:
                if index + 1 == len(words):
                    raise UsageError(f"flag needs an argument: {word}")
                value, taken = words[index + 1], 2
            values[name] = (*values.get(name, ()), value)
        else:
            raise UsageError(f"flag provided but not defined: {word}")
        tokens.append((name, tuple(words[index : index + taken])))
        index += taken
    positional += words[index:]
    return Flags(values=values, switches=frozenset(switches), positional=tuple(positional), tokens=tuple(tokens))


# runc 1.1 to main (checkpoint.go, restore.go, create.go, delete.go, start.go) and crun's words for the same.
CHECKPOINT = FlagSpec(
    values=frozenset({
        "image-path", "work-path", "parent-path", "status-fd", "page-server", "manage-cgroups-mode", "empty-ns",
    }),
    switches=frozenset({
        "leave-running", "tcp-established", "tcp-skip-in-flight", "link-remap", "ext-unix-sk", "shell-job",
        "lazy-pages", "file-locks", "pre-dump", "auto-dedup",
    }),
)  # fmt: skip
RESTORE = FlagSpec(
    values=frozenset({
        "console-socket", "image-path", "work-path", "parent-path", "manage-cgroups-mode", "bundle", "pid-file",
        "empty-ns", "lsm-profile", "lsm-mount-context",
    }),
    switches=frozenset({
        "tcp-established", "ext-unix-sk", "shell-job", "file-locks", "detach", "no-subreaper", "no-pivot",
        "auto-dedup", "lazy-pages",
    }),
    aliases={"b": "bundle", "d": "detach"},
)  # fmt: skip
CREATE = FlagSpec(
    values=frozenset({"bundle", "console-socket", "pidfd-socket", "pid-file", "preserve-fds"}),
    switches=frozenset({"no-pivot", "no-new-keyring"}),
    aliases={"b": "bundle"},
)
START = FlagSpec(values=frozenset(), switches=frozenset())
DELETE = FlagSpec(values=frozenset(), switches=frozenset({"force"}), aliases={"f": "force"})
KILL = FlagSpec(values=frozenset(), switches=frozenset({"all"}), aliases={"a": "all"})
STATE = FlagSpec(values=frozenset(), switches=frozenset())


def container_id(verb: str, flags: Flags) -> str:
    """The one positional argument of a verb.

    Raises:
        UsageError: there isn't one, or it can't be a container id (runc: letters, digits, `_+-.`).
    """
    if not flags.positional:
        raise UsageError(f"{verb}: container id cannot be empty")
    name = flags.positional[0]
    allowed = all(c.isascii() and (c.isalnum() or c in "_+-.") for c in name)
    if not name or not allowed or name in (".", ".."):
        raise UsageError(f"{verb}: invalid container ID format: {name!r}")
    return name
