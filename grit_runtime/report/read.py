"""Finding the records: those kept in `log-dir`, and what a checkpoint's manifest says."""

import os

from grit_runtime import names
from grit_runtime.checkpoint import manifest
from grit_runtime.config import Config
from grit_runtime.errors import CheckpointError, UsageError
from grit_runtime.host import files
from grit_runtime.report import model
from grit_runtime.report.model import Operation
from grit_runtime.workflow import operations

_OF_A_NAME = 64  # characters of an id that are in its records' names


def operation(config: Config, target: str) -> Operation:
    """The operation that is meant.

    Args:
        target: a checkpoint's directory; a container's id, or the beginning of one; empty for the newest of all.

    Raises:
        UsageError: there is no record of it.
        CheckpointError: the record can't be read.
    """
    if "/" in target:
        return _of_checkpoint(config, os.path.abspath(target))
    for path in kept(config):
        if target and f"-{target[:_OF_A_NAME]}" not in os.path.basename(path):
            continue
        found = _read(path)
        if found.container.startswith(target):
            return found
    if os.path.isdir(target):
        return _of_checkpoint(config, os.path.abspath(target))
    raise UsageError(nothing(config, target), hint=f"the newest {operations.KEPT} are kept; `report --list` lists them")


def nothing(config: Config, container: str) -> str:
    """What is said where there is no record."""
    whose = f" of a container {container}" if container else ""
    return f"there is no record{whose} in {os.path.join(config.log_dir, operations.FOLDER)}"


def everything(config: Config, container: str = "") -> tuple[list[Operation], list[str]]:
    """All records kept, the newest first; and of those that can't be read, why."""
    found, unread = [], []
    for path in kept(config):
        try:
            one = _read(path)
        except CheckpointError as err:
            unread.append(str(err))
            continue
        if one.container.startswith(container):
            found.append(one)
    return found, unread


def kept(config: Config) -> list[str]:
    """The paths of the records, the newest first.

    Raises:
        UsageError: their directory may not be read.
    """
    folder = os.path.join(config.log_dir, operations.FOLDER)
    try:
        listed = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as err:
        raise UsageError(f"cannot read {folder}: {err.strerror}", hint="records are root's") from None
    ours = sorted((name for name in listed if operations.is_record(name)), reverse=True)
    return [path for path in (os.path.join(folder, name) for name in ours) if not _is_empty(path)]


def _is_empty(path: str) -> bool:
    """Whether a call was killed in the moment of writing it."""
    try:
        return os.path.getsize(path) == 0
    except OSError:
        return True


def _of_checkpoint(config: Config, path: str) -> Operation:
    """The newest record that names the directory and belongs to what lies there now, or else what its manifest says."""
    inner = os.path.join(path, names.IMAGES_DIR)
    if not os.path.lexists(os.path.join(path, names.MANIFEST)) and os.path.isdir(inner):
        path = inner
    try:
        data = files.read_json(os.path.join(path, names.MANIFEST), manifest.MAX_BYTES)
    except FileNotFoundError:
        raise UsageError(
            f"{path} holds no {names.MANIFEST}", hint="name a container, or the directory of a checkpoint"
        ) from None
    except (OSError, ValueError) as err:
        raise CheckpointError(f"cannot read the manifest of {path}: {err}") from None
    said = model.of_manifest(manifest.checked(path, data).data, path)
    if said is None:
        raise UsageError(
            f"the manifest of {path} has no phases", hint="it was made by an older grit-runtime, or another runtime"
        )
    for one in everything(config)[0]:
        if one.operation == said.operation and one.images == path and one.ok:
            begins, before = (tuple((p.name, p.begin) for p in each.phases if not p.span) for each in (one, said))
            return one if begins[: len(before)] == before else said
    return said


def _read(path: str) -> Operation:
    try:
        data = files.read_json(path, model.MAX_BYTES)
    except (OSError, ValueError) as err:
        raise CheckpointError(f"cannot read record {path}: {err}") from None
    return model.parse(data, path)
