"""What the hook `grit-record` wrote of a container at its creation (hooks/grit-record, docs/hooks.md).

The engine may write config.json again or remove it while the container runs; the record says what it was made of.
"""

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.downstream import State
from grit_runtime.errors import BundleError, CaptureError
from grit_runtime.host import proc
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow.context import Context

DIRECTORY = ".recorded"  # below the state directory; no escaped root begins with a dot
_NAME = re.compile(r"([0-9]{1,10})-([0-9]{1,20})\.(json|tmp)")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    container: str
    config: dict[str, Any]


def bundle_of(context: Context, state: State) -> bundles.Bundle:
    """The container's bundle, with the config.json that it was made of as far as that is known.

    Raises:
        CaptureError: there is no config.json, and no record of it.
    """
    record = _find(context.config.state_dir, context.container, state.pid)
    try:
        bundle = bundles.load(state.bundle)
    except BundleError as err:
        if record is None:
            raise CaptureError(f"the container's configuration is needed for a restore: {err}") from None
        why = str(err)
    else:
        # At a restore of ours the hook saw our edit of config.json, which has been put back since.
        if record is None or _is_edited(context, record) or record.config == bundle.config:
            return bundle
        why = f"{bundle.config_path} has changed since"
    context.log.line("warning", f"container {context.container}: what was recorded at its creation counts: {why}")
    config = _without_edit(record.config) if _is_edited(context, record) else record.config
    return bundles.parse(os.path.abspath(state.bundle), json.dumps(config).encode())


def prune(state_dir: str) -> None:
    """Remove the records of processes that are gone: their containers were deleted without the hook `grit-cleanup`."""
    directory = os.path.join(state_dir, DIRECTORY)
    try:
        for name in os.listdir(directory):
            known = _NAME.fullmatch(name)
            pid = int(known[1]) if known else 0
            if known and not (proc.start_time(pid) == int(known[2]) and proc.is_running(pid)):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
    except OSError:
        return  # there is none, or others are left


def _find(state_dir: str, container: str, pid: int) -> _Record | None:
    """The record of this very process: a pid and an id may be used again."""
    record = _read(os.path.join(state_dir, DIRECTORY, f"{pid}-{proc.start_time(pid)}.json"))
    return record if record is not None and record.container == container else None


def _read(path: str) -> _Record | None:
    """A record, or None for what is none of ours: root's own in root's own directory, as the hook makes it."""
    try:
        if not _is_own(os.stat(os.path.dirname(path), follow_symlinks=False)):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            found = os.fstat(fd)
            if not _is_own(found) or not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
                return None
            data = json.loads(stream.read(_MAX_BYTES))
        return _Record(container=data["id"], config={**data["config"]})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _is_edited(context: Context, record: _Record) -> bool:
    """Whether it was made at a restore of ours, whose config.json names a file of our workspace."""
    annotations = record.config.get("annotations")
    named = annotations.get(names.CRIU_CONFIG_ANNOTATION) if isinstance(annotations, dict) else None
    return isinstance(named, str) and named.startswith(context.config.state_dir + "/")


def _without_edit(config: dict[str, Any]) -> dict[str, Any]:
    annotations = {key: value for key, value in config["annotations"].items() if key != names.CRIU_CONFIG_ANNOTATION}
    return {**config, "annotations": annotations}
