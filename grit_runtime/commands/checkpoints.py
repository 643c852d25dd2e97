"""`checkpoints` and `prune`: what lies below the checkpoint roots. (`list` is the OCI runtime's.)"""

import re
import time

import click

from grit_runtime.checkpoint import catalogue
from grit_runtime.checkpoint.catalogue import Entry
from grit_runtime.commands import common
from grit_runtime.inspection import words
from grit_runtime.workflow import prune

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
        gone, used = _prune(keep, older_than, (namespace, pod), incomplete=incomplete, dry_run=dry_run)
        if as_json:
            removed, kept = [document(entry) for entry in gone], [document(entry) for entry in used]
            common.printed_json({"dry_run": dry_run, "removed": removed, "in_use": kept})
        else:
            common.printed(_pruned(gone, used, dry_run=dry_run))
        return 0

    return common.said(say)


def _prune(
    keep: int | None, older_than: int | None, of: tuple[str, str], *, incomplete: bool, dry_run: bool
) -> tuple[list[Entry], list[Entry]]:
    """What is gone, or would be, and what is in use."""
    roots, state_dir, now = common.config().checkpoint_roots, common.config().state_dir, time.time()
    before = None if older_than is None else now - older_than
    with prune.locked(() if dry_run else roots):
        if not dry_run:
            prune.sweep(roots)
        entries = _wanted(catalogue.find(roots), *of)
        chosen = prune.chosen(entries, keep=keep, before=before, incomplete=incomplete, now=now)
        gone = [entry for entry in chosen if dry_run or prune.remove(entry, lambda: prune.in_use(state_dir))]
    return gone, [entry for entry in chosen if entry not in gone]


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


def _pruned(gone: list[Entry], used: list[Entry], *, dry_run: bool) -> str:
    did = "would remove" if dry_run else "removed"
    lines = [f"{did} {words.shown(entry.path)} ({words.size(entry.bytes)})" for entry in gone]
    lines += [f"left {words.shown(entry.path)}: it is in use" for entry in used]
    lines.append(f"{did} {words.count(len(gone), 'checkpoint')}, {words.size(sum(entry.bytes for entry in gone))}")
    return "".join(f"{line}\n" for line in lines)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
