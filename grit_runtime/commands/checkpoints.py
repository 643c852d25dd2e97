"""`checkpoints` and `prune`: what lies below the checkpoint roots. (`list` is the OCI runtime's.)"""

import re
import time
from dataclasses import dataclass, field

import click

from grit_runtime.checkpoint import catalogue
from grit_runtime.checkpoint.catalogue import Entry
from grit_runtime.commands import common
from grit_runtime.errors import GritError
from grit_runtime.inspection import words

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_HEADER = ("NAMESPACE", "NAME", "CONTAINER", "POD", "MADE", "SIZE", "STATE")

_namespace = click.option("--namespace", default="", help="Only of this namespace.")
_pod = click.option("--pod", default="", help="Only of this pod.")


def _age(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """A time such as `12h` or `7d`, in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhdw])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no age such as 30m, 12h, 7d or 4w")
    return int(found[1]) * _UNITS[found[2]]


@click.command("checkpoints")
@_namespace
@_pod
@common.as_json_option
def checkpoints(namespace: str, pod: str, as_json: bool) -> int:
    """List the checkpoints below the configured roots, by namespace, pod and container, the newest last.

    NAME is what a pod's annotation grit.dev/restore-name says. STATE is `complete`, `incomplete` (it is being
    written, or was cut short), or `unsaid`: images and archives of others, of which nothing says so.

    \b
    grit-runtime checkpoints --namespace default
    grit-runtime checkpoints --json | jq -r '.checkpoints[] | select(.bytes > 1e9) | .path'

    Exits with 0.
    """

    def say() -> int:
        found = _wanted(catalogue.find(common.config().checkpoint_roots), namespace, pod)
        if as_json:
            common.printed_json({"checkpoints": [document(entry) for entry in found]})
        else:
            common.printed(render(found))
        return 0

    return common.said(say)


@click.command("prune")
@click.option("--keep", type=click.IntRange(0), help="Keep so many of each container of a pod, the newest.")
@click.option("--older-than", callback=_age, metavar="AGE", help="Remove only what is older, such as 12h or 7d.")
@click.option("--incomplete", is_flag=True, help="Also what was cut short. It must be older than an hour.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@_namespace
@_pod
@common.as_json_option
def prune_checkpoints(
    keep: int | None,
    older_than: int | None,
    incomplete: bool,
    dry_run: bool,
    namespace: str,
    pod: str,
    as_json: bool,
) -> int:
    """Remove old checkpoints from the configured roots.

    With --keep and --older-than, only what both let go. What a capture is writing or a restore reading stays, and so
    does what is incomplete, without --incomplete: somebody may be copying it.

    \b
    grit-runtime prune --keep 3 --dry-run
    grit-runtime prune --older-than 7d --namespace default

    Exits with 0, with 1 if something could not be removed, or with 2 if it isn't said what to remove.
    """

    def say() -> int:
        if keep is None and older_than is None:
            raise click.UsageError("say what may go: --keep N, or --older-than AGE, or both")
        done = _prune(keep, older_than, (namespace, pod), incomplete=incomplete, dry_run=dry_run)
        if as_json:
            common.printed_json(done.document())
        else:
            common.printed(done.render())
        for _, why in done.failed:
            click.echo(words.shown(f"grit-runtime: {why}", 2000), err=True)
        return 1 if done.failed else 0

    return common.said(say)


@dataclass(slots=True, kw_only=True)
class Pruned:
    """What became of those that were to go."""

    dry_run: bool
    gone: list[Entry] = field(default_factory=list)
    used: list[Entry] = field(default_factory=list)
    failed: list[tuple[Entry, str]] = field(default_factory=list)

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {
            "dry_run": self.dry_run,
            "removed": [document(entry) for entry in self.gone],
            "in_use": [document(entry) for entry in self.used],
            "failed": [{**document(entry), "error": why} for entry, why in self.failed],
        }

    def render(self) -> str:
        """As text."""
        did = "would remove" if self.dry_run else "removed"
        lines = [f"{did} {words.shown(entry.path)} ({words.size(entry.bytes)})" for entry in self.gone]
        lines += [f"left {words.shown(entry.path)}: it is in use" for entry in self.used]
        total = words.size(sum(entry.bytes for entry in self.gone))
        lines.append(f"{did} {words.count(len(self.gone), 'checkpoint')}, {total}")
        return "".join(f"{line}\n" for line in lines)


def _prune(keep: int | None, older_than: int | None, of: tuple[str, str], *, incomplete: bool, dry_run: bool) -> Pruned:
    from grit_runtime.workflow import prune

    roots, state_dir, now = common.config().checkpoint_roots, common.config().state_dir, time.time()
    before = None if older_than is None else now - older_than
    done = Pruned(dry_run=dry_run)
    with prune.locked(() if dry_run else roots):
        if not dry_run:
            prune.sweep(roots)
        entries = _wanted(catalogue.find(roots), *of)
        for entry in prune.chosen(entries, keep=keep, before=before, incomplete=incomplete, now=now):
            try:
                gone = dry_run or prune.remove(entry, lambda: prune.in_use(state_dir))
            except GritError as err:
                done.failed.append((entry, str(err)))
            else:
                (done.gone if gone else done.used).append(entry)
    return done


def _wanted(entries: list[Entry], namespace: str, pod: str) -> list[Entry]:
    return [entry for entry in entries if namespace in ("", entry.namespace) and pod in ("", entry.pod or entry.name)]


def document(entry: Entry) -> dict[str, object]:
    """An entry as JSON."""
    return {
        "namespace": entry.namespace,
        "name": entry.name,
        "container": entry.container,
        "pod": entry.pod,
        "made": _moment(entry.made),
        "bytes": entry.bytes,
        "state": entry.state,
        "path": entry.path,
    }


def render(entries: list[Entry]) -> str:
    """A table."""
    rows = [_HEADER, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = words.count(len(entries), "checkpoint")
    return "".join(f"{line}\n" for line in [*lines, f"{count}, {words.size(sum(e.bytes for e in entries))}"])


def _row(entry: Entry) -> tuple[str, ...]:
    cells = (entry.namespace, entry.name, entry.container or "-", entry.pod or "-", _moment(entry.made))
    return (*(words.shown(cell, 80) for cell in cells), words.size(entry.bytes), entry.state)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
