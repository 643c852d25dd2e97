"""From a container's annotations to the directory that holds its images.

`<root>/<namespace>/<name>/<container>/checkpoint`. An annotation may have been written by a tenant: it can choose below
the configured roots, and nothing else, and no link leads it out of there.
"""

import os
from dataclasses import dataclass

from grit_runtime import names
from grit_runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the annotations ask for: an images directory, and how it was asked, for messages."""

    images: str
    annotation: str


def wanted(annotations: dict[str, str]) -> bool:
    """Whether these annotations are those of a container to be restored.

    A pod's annotations reach its sandbox container too (containerd, pod_annotations): that one starts as ever.
    """
    if names.first(annotations, names.CONTAINER_TYPE) == names.SANDBOX:
        return False
    return names.CHECKPOINT in annotations or names.RESTORE_NAME in annotations


def locate(annotations: dict[str, str], roots: tuple[str, ...]) -> Request:
    """Where the images are that the annotations name.

    Raises:
        CheckpointError: the annotations contradict each other, lead out of the roots, or lead to nothing.
    """
    base, by_name = annotations.get(names.CHECKPOINT), annotations.get(names.RESTORE_NAME)
    if base is not None and by_name is not None:
        raise CheckpointError(f"both {names.CHECKPOINT} and {names.RESTORE_NAME} are set", hint="set one of them")
    container = names.first(annotations, names.CONTAINER_NAME)
    tails = [[names.IMAGES_DIR]]
    if container is not None:
        name = component("container name", container)
        tails = [[name, names.IMAGES_DIR], [f"{name}.tar"]]
    if base is not None:
        # The annotation may name an archive itself, which is one container's.
        return Request(images=_below(base, [*tails, []], roots), annotation=f"{names.CHECKPOINT}={base}")
    assert by_name is not None
    namespace = component("pod namespace", names.first(annotations, names.POD_NAMESPACE) or "default")
    annotation = f"{names.RESTORE_NAME}={by_name}"
    bases = [os.path.join(root, namespace, component(names.RESTORE_NAME, by_name)) for root in roots]
    for place in bases:
        if any(_is_there(os.path.join(place, *tail)) for tail in tails):
            return Request(images=_below(place, tails, roots), annotation=annotation)
    places = ", ".join(os.path.join(place, *tails[0]) for place in bases)
    raise CheckpointError(f"no such checkpoint: annotation {annotation}: none of {places} is a directory")


def component(what: str, value: str) -> str:
    """A word that is one name of a path. Raises CheckpointError: it isn't."""
    if not value or value in (".", "..") or "/" in value or "\0" in value:
        raise CheckpointError(f"{what} {value!r} cannot be part of a path")
    return value


def _is_there(path: str) -> bool:
    """A directory of images, or an archive."""
    return os.path.isdir(path) if os.path.basename(path) == names.IMAGES_DIR else os.path.isfile(path)


def _below(base: str, tails: list[list[str]], roots: tuple[str, ...]) -> str:
    """The first of `base`/`tail` that is there, if it lies below one of the roots with no link on the way."""
    for root in roots:
        inner = os.path.relpath(os.path.normpath(base), os.path.normpath(root))
        if not os.path.isabs(base) or inner == ".." or inner.startswith("../"):
            continue
        start = os.path.normpath(os.path.join(os.path.realpath(root), inner))
        found = [path for tail in tails if _is_there(path := os.path.join(start, *tail))]
        path = found[0] if found else os.path.join(start, *tails[0])
        if os.path.realpath(path) != path:
            raise CheckpointError(
                f"checkpoint {path} is reached through a symbolic link", hint="links are not followed below a root"
            )
        if not found:
            # Not "not a directory": dockerd takes errno's words for a mount that failed (setExitCodeFromError).
            raise CheckpointError(f"no such checkpoint: {path} is no directory")
        return path
    raise CheckpointError(
        f"checkpoint {base} lies outside the checkpoint roots {', '.join(roots)}",
        hint="move it there, or add its root to `checkpoint-roots`",
    )
