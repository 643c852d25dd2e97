"""`diagnose`: what went wrong."""

import os

import click

from grit_runtime.commands import common

NAMED, UNKNOWN, UNREADABLE = 0, 1, 2
_MOST_LOGS = 5


@click.command("diagnose")
@click.argument("target", default="", metavar="[CONTAINER | DIRECTORY | LOG]")
@click.option("--images", default="", metavar="DIR", type=click.Path(), help="The images, for the paths of mounts.")
@common.as_json_option
def command(target: str, images: str, as_json: bool) -> int:
    """Say what went wrong in a checkpoint or restore, by CRIU's log: the cause, the lines that say so, what to do.

    Without an argument it reads the newest of the logs that failed calls have left in `log-dir`; of a container, those
    of its id. A directory, such as a `--work-path`, is searched for dump.log and restore.log. How sure a cause is, it
    says: certain, or likely where the log is not whole or names several. docs/diagnose.md lists what is known.

    \b
    grit-runtime diagnose
    grit-runtime diagnose 3f9a...
    grit-runtime diagnose --images checkpoints/default/a/b/checkpoint /tmp/work/restore.log

    Exits with 0 if a cause is named or nothing failed, 1 if none is known, and 2 if there is nothing to read.
    """

    def say() -> int:
        from grit_runtime.diagnosis import mounts, output, read
        from grit_runtime.diagnosis.judge import UNKNOWN as NOT_KNOWN
        from grit_runtime.diagnosis.judge import judge

        judged = []
        for path in read.logs(common.config(), target)[:_MOST_LOGS]:
            try:
                log = read.read(path)
            except OSError as err:
                click.echo(f"grit-runtime: cannot read {path}: {err.strerror}", err=True)
                continue
            known = mounts.by_id(images or os.path.dirname(path))
            judged.append(output.Judged(path, judge(log.lines, whole=log.whole, mounts=known)))
        if as_json:
            common.printed_json(output.document(judged))
        elif judged:
            common.printed(output.render(judged))
        if not judged:
            return UNREADABLE
        return UNKNOWN if all(each.diagnosis.verdict == NOT_KNOWN for each in judged) else NAMED

    return common.said(say, failure=UNREADABLE)
