"""`diagnose`: what went wrong."""

import os
from typing import TYPE_CHECKING

import click

from grit_runtime.commands import common
from grit_runtime.errors import UsageError

if TYPE_CHECKING:
    from grit_runtime.diagnosis import calls, output

NAMED, UNKNOWN, UNREADABLE = 0, 1, 2
_MOST_LOGS = 5


@click.command("diagnose")
@click.argument("target", default="", metavar="[CONTAINER | DIRECTORY | LOG]")
@click.option("--images", default="", metavar="DIR", type=click.Path(), help="The images, for the paths of mounts.")
@common.as_json_option
def command(target: str, images: str, as_json: bool) -> int:
    """Say what went wrong in a checkpoint or restore: the cause, the lines that say so, what to do.

    Without an argument it reads the newest of what failed calls have left: a log of CRIU's or a record in `log-dir`, or
    the journal of a killed one; of a container, all that is of its id. A LOG may be CRIU's or the runtime's own. A
    directory, such as a `--work-path`, is searched for dump.log and restore.log. How sure a cause in CRIU's log is, it
    says: certain, or likely where the log is not whole or names several. docs/diagnose.md lists what is known.

    \b
    grit-runtime diagnose
    grit-runtime diagnose 3f9a...
    grit-runtime diagnose --images checkpoints/default/a/b/checkpoint /tmp/work/restore.log

    Exits with 0 if a cause is named or nothing failed, 1 if none is known, and 2 if there is nothing to read.
    """

    def say() -> int:
        from grit_runtime.diagnosis import calls, output
        from grit_runtime.diagnosis.judge import UNKNOWN as NOT_KNOWN

        told, paths = _meant(target)
        judged, more = _judged(paths, images)
        told += more
        if as_json:
            common.printed_json({**output.document(judged), "calls": [call.document() for call in told]})
        else:
            both = [*([calls.render(told)] if told else []), *([output.render(judged)] if judged else [])]
            common.printed("\n".join(both))
        if not judged and not told:
            return UNREADABLE
        return UNKNOWN if not told and all(each.diagnosis.verdict == NOT_KNOWN for each in judged) else NAMED

    return common.said(say, failure=UNREADABLE)


def _meant(target: str) -> "tuple[list[calls.Call], list[str]]":
    """The failed calls and the logs of CRIU's that are meant: without a target, the newest thing that was left."""
    from grit_runtime.diagnosis import calls, read

    told = [] if os.path.lexists(target) else calls.left(common.config(), target)[:_MOST_LOGS]
    try:
        paths = read.logs(common.config(), target)[:_MOST_LOGS]
    except UsageError:
        if not told:
            raise
        paths = []
    if not target and told and paths and read.written(paths[0]) >= told[0].time:
        told = []
    elif not target and told:
        told, paths = told[:1], []
    named = [path for call in told for path in read.named(call.said)]
    return told, list(dict.fromkeys([*paths, *named]))


def _judged(paths: list[str], images: str) -> "tuple[list[output.Judged], list[calls.Call]]":
    """What each log says; those that are the runtime's own apart."""
    from grit_runtime.diagnosis import calls, mounts, output, read
    from grit_runtime.diagnosis.judge import UNKNOWN as NOT_KNOWN
    from grit_runtime.diagnosis.judge import judge

    judged, ours = [], []
    for path in paths:
        try:
            log = read.read(path)
        except OSError as err:
            click.echo(f"grit-runtime: cannot read {path}: {err.strerror}", err=True)
            continue
        found = judge(log.lines, whole=log.whole, mounts=mounts.by_id(images or os.path.dirname(path)))
        said = calls.of_lines(path, log.lines) if found.verdict == NOT_KNOWN else None
        if said:
            ours.append(said)
        else:
            judged.append(output.Judged(path, found))
    return judged, ours
