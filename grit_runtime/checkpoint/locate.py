"""From a container's annotations to the directory that holds its images.

`<root>/<namespace>/<name>/<container>/checkpoint`. An annotation may have been written by a tenant: it can choose below
the configured roots, and nothing else, and no link leads it out of there. What is found is held open from then on
(`Pin`): a directory that is renamed or replaced later is not what is restored.
"""

import errno
import os
import stat
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.errors import CheckpointError
from grit_runtime.host import beneath
from grit_runtime.host.beneath import Pin

# What may lie beside a directory of images, and is taken with it (`kinds.find`).
BESIDE = (
    names.ROOTFS_DIFF, names.DELETED_FILES, names.DEV_SHM, names.CONTAINER_LOG, names.CONFIG_DUMP, names.SPEC_DUMP,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the annotations ask for, a directory of images or an archive, held open, and how, for messages."""

    pin: Pin
    annotation: str
    place: str = ""
    """The directory of the root in which it lies: by the layout above, its namespace's."""

    @property
    def images(self) -> str:
        """What people know it by."""
        return self.pin.shown


def wanted(annotations: dict[str, str]) -> bool:
    """Whether these annotations are those of a container to be restored.

    A pod's annotations reach its sandbox container too (containerd, pod_annotations): that one starts as ever.
    """
    if names.first(annotations, names.CONTAINER_TYPE) == names.SANDBOX:
        return False
    return names.CHECKPOINT in annotations or names.RESTORE_NAME in annotations


def locate(annotations: dict[str, str], roots: tuple[str, ...], owners: tuple[int, ...] = ()) -> Request:
    """Where the images are that the annotations name.

    Args:
        owners: the user ids to whom the checkpoint and every directory from its root down must belong, with nobody else
            allowed to write there; empty for whomever.

    Raises:
        CheckpointError: the annotations contradict each other, lead out of the roots, to nothing, or to what others may
            write to.
    """
    base, by_name = annotations.get(names.CHECKPOINT), annotations.get(names.RESTORE_NAME)
    for key in (names.CHECKPOINT, *names.CONTAINER_NAME, names.RESTORE_NAME, *names.POD_NAMESPACE):
        _require_path(key, annotations.get(key, ""))
    if base is not None and by_name is not None:
        raise CheckpointError(f"both {names.CHECKPOINT} and {names.RESTORE_NAME} are set", hint="set one of them")
    container = names.first(annotations, names.CONTAINER_NAME)
    tails = [names.IMAGES_DIR]
    if container is not None:
        name = component("container name", container)
        tails = [f"{name}/{names.IMAGES_DIR}", f"{name}.tar"]
    if base is not None:
        # The annotation may name an archive itself, which is one container's.
        pin, place = _given(base, [*tails, ""], roots, owners)
        return Request(pin=pin, annotation=f"{names.CHECKPOINT}={base}", place=place)
    assert by_name is not None
    namespace = component("pod namespace", names.first(annotations, names.POD_NAMESPACE) or "default")
    place = os.path.join(namespace, component(names.RESTORE_NAME, by_name))
    annotation = f"{names.RESTORE_NAME}={by_name}"
    for root in roots:
        found = _open(root, place, tails, owners)
        if found is not None:
            return Request(pin=found, annotation=annotation, place=namespace)
    places = ", ".join(os.path.join(root, place, tails[0]) for root in roots)
    raise CheckpointError(f"no such checkpoint: annotation {annotation}: none of {places} is a directory")


def _require_path(what: str, value: str) -> None:
    """JSON's strings can hold what no path can."""
    try:
        if b"\0" not in os.fsencode(value):
            return
    except UnicodeEncodeError:
        pass
    raise CheckpointError(f"{what} {value!a} cannot be part of a path")


def component(what: str, value: str) -> str:
    """A word that is one name of a path. Raises CheckpointError: it isn't."""
    if not value or value in (".", "..") or "/" in value:
        raise CheckpointError(f"{what} {value!r} cannot be part of a path")
    return value


def _given(base: str, tails: list[str], roots: tuple[str, ...], owners: tuple[int, ...]) -> tuple[Pin, str]:
    """What is at `base`, if it lies below one of the roots, and in which of the root's directories."""
    for root in roots:
        inner = os.path.relpath(os.path.normpath(base), os.path.normpath(root)) if os.path.isabs(base) else ".."
        if inner == ".." or inner.startswith("../"):
            continue
        found = _open(root, inner, tails, owners)
        if found is None:
            # Not "not a directory": dockerd takes errno's words for a mount that failed (setExitCodeFromError).
            path = os.path.normpath(os.path.join(root, inner, tails[0]))
            raise CheckpointError(f"no such checkpoint: {path} is no directory")
        place = os.path.relpath(os.path.dirname(found.shown), root).partition("/")[0]
        return found, "" if place == "." else place
    raise CheckpointError(
        f"checkpoint {base!r} lies outside the checkpoint roots {', '.join(roots)}",
        hint="move it there, or add its root to `checkpoint-roots`",
    )


def _open(root: str, place: str, tails: list[str], owners: tuple[int, ...]) -> Pin | None:
    """The first of the tails that is there, with no link on the way: a directory of images, or an archive."""

    def look(pin: Pin) -> None:
        _require_owner(pin.shown, pin.stat(), owners)

    for tail in tails:
        path = os.path.normpath(os.path.join(root, place, tail))
        try:
            found = beneath.descend(root, os.path.join(place, tail), look)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            if err.errno != errno.ELOOP:
                raise CheckpointError(f"cannot open checkpoint {path}: {err.strerror}") from None
            raise CheckpointError(
                f"checkpoint {path} is reached through a symbolic link", hint="links are not followed below a root"
            ) from None
        wanted = stat.S_ISDIR if os.path.basename(tail) == names.IMAGES_DIR else stat.S_ISREG
        if wanted(found.stat().st_mode):
            if stat.S_ISDIR(found.stat().st_mode):
                _require_plain(found, owners)
            return found
        os.close(found.fd)
    return None


def _require_plain(directory: Pin, owners: tuple[int, ...]) -> None:
    """Refuse a directory of images with an entry that is neither a file nor a directory, or that others may write to;
    and, beside it, such a part of the checkpoint.
    """
    with os.scandir(directory.path) as entries:
        inside = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, found in inside:
        path = os.path.join(directory.shown, name)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no file"
            raise CheckpointError(
                f"checkpoint {directory.shown} holds {name!r}, which is {what}",
                hint="only files are taken from a checkpoint that an annotation names; an incremental dump's `parent` "
                "is such a link",
            )
        _require_owner(path, found, owners)
    for name in BESIDE:
        try:
            found = os.lstat(os.path.join(directory.path, os.pardir, name))
        except FileNotFoundError:
            continue
        _require_owner(os.path.join(os.path.dirname(directory.shown), name), found, owners)


def _require_owner(path: str, found: os.stat_result, owners: tuple[int, ...]) -> None:
    """As sshd does with its files (StrictModes): a group counts as others, and so does an ACL, whose mask takes the
    group's place in the mode (acl(5)).
    """
    if not owners:
        return
    if found.st_uid not in owners:
        why = f"belongs to user {found.st_uid}"
    elif found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode):
        why = f"may be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise CheckpointError(
        f"checkpoint not trusted: {path} {why}",
        hint="whoever can write a checkpoint can run anything in its container: chown and chmod it, or set "
        "`trust.owners`",
    )
