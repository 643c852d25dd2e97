"""The edge: what the launcher executes, which verb it is, and the one place where errors end."""

import signal
import sys
from types import FrameType

from grit_runtime import config as configuration
from grit_runtime.errors import ConfigError, GritError, InterruptedCallError, UsageError
from grit_runtime.oci import argv as words
from grit_runtime.oci.argv import Invocation
from grit_runtime.oci.log import Log
from grit_runtime.verbs.call import Call, pass_through

OURS = frozenset({"checkpoint", "restore"})
FOR_PEOPLE = frozenset({
    "recover", "config", "export", "sign", "inspect", "diff", "install", "uninstall", "plan", "doctor", "diagnose",
    "checkpoints", "prune", "capture", "restore-into", "completion", "report", "e2e",
})  # fmt: skip
UNDOING = frozenset({"capture", "restore-into", "plan", "e2e"})  # which undo what was begun when they are interrupted


def main(arguments: list[str]) -> int:
    """Serve one call.

    Args:
        arguments: from the launcher: why it came here (`verb`, `config`, `downstream`), which signals were ignored, the
            program's name, and the
            caller's arguments.

    Returns:
        The exit code.
    """
    reason, ignored, _, *argv = arguments
    log = Log(None)
    try:
        invocation = _scan(argv)
        log = Log(invocation)
        return _serve(reason, tuple(argv), frozenset(ignored.split(",")), invocation, log)
    except GritError as err:
        return log.fatal(err)
    except OSError as err:
        return log.fatal(f"grit-runtime: {err.strerror or err}{f': {err.filename}' if err.filename else ''}")
    except Exception as err:  # noqa: BLE001 - the edge: a bug must still be one line in the caller's log
        import traceback

        place = traceback.extract_tb(err.__traceback__)[-1]
        return log.fatal(f"grit-runtime: internal error: {type(err).__name__}: {err} ({place.filename}:{place.lineno})")


def console() -> None:
    """The script that pip makes of the package: as the launcher, without its speed."""
    sys.exit(main(["verb", "-", *sys.argv]))


def _scan(argv: list[str]) -> Invocation | None:
    try:
        return words.scan(argv)
    except UsageError:
        return None  # the downstream's to explain


def _serve(reason: str, argv: tuple[str, ...], ignored: frozenset[str], invocation: Invocation | None, log: Log) -> int:
    try:
        config = configuration.load()
    except ConfigError as err:
        if invocation is not None and invocation.verb in OURS | FOR_PEOPLE:
            raise
        log.line("warning", str(err))
        config = configuration.Config(downstream=configuration.guess_downstream())
        pass_through(config, argv, ignored)
    if invocation is None or reason == "downstream":
        pass_through(config, argv, ignored)
    if invocation.verb in FOR_PEOPLE - UNDOING:
        return _command(config, invocation)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # which would not survive the handler into the downstream
            signal.signal(number, _interrupt)
    if invocation.verb in UNDOING:
        return _command(config, invocation)
    return _dispatch(Call(argv=argv, ignored_signals=ignored, invocation=invocation, config=config, log=log))


def _command(config: configuration.Config, invocation: Invocation) -> int:
    from grit_runtime import cli

    return cli.run(config, invocation)


def _dispatch(call: Call) -> int:
    verb = call.invocation.verb
    if verb == "checkpoint":
        from grit_runtime.verbs import checkpoint

        return checkpoint.run(call)
    if verb == "restore":
        from grit_runtime.verbs import restore

        return restore.run(call)
    if verb == "create":
        from grit_runtime.verbs import create

        return create.run(call)
    return _existing(call)


def _existing(call: Call) -> int:
    from grit_runtime.verbs import delete, kill, start, state, waiting

    found = waiting.find(call)
    answer = {"start": start.run, "state": state.run, "kill": kill.run, "delete": delete.run}.get(call.invocation.verb)
    if found is None or answer is None:
        if found is not None:
            found.workspace.close()
        pass_through(call.config, call.argv, call.ignored_signals)
    return answer(found)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise InterruptedCallError(f"interrupted by {signal.Signals(number).name}")


if __name__ == "__main__":
    console()
