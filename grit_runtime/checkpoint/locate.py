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
    tail = [names.IMAGES_DIR] if container is None else [_component("container name", container), names.IMAGES_DIR]
    if base is not None:
        return Request(images=_below(base, tail, roots), annotation=f"{names.CHECKPOINT}={base}")
    assert by_name is not None
    namespace = _component("pod namespace", names.first(annotations, names.POD_NAMESPACE) or "default")
    parts = [namespace, _component(names.RESTORE_NAME, by_name), *tail]
    annotation = f"{names.RESTORE_NAME}={by_name}"
    for root in roots:
        images = os.path.join(root, *parts)
        if os.path.isdir(images):
            return Request(images=_below(os.path.dirname(images), [names.IMAGES_DIR], roots), annotation=annotation)
    places = ", ".join(os.path.join(root, *parts) for root in roots)
    raise CheckpointError(f"no such checkpoint: annotation {annotation}: none of {places} is a directory")


def _component(what: str, value: str) -> str:
    if not value or value in (".", "..") or "/" in value or "\0" in value:
        raise CheckpointError(f"{what} {value!r} cannot be part of a path")
    return value


def _below(base: str, tail: list[str], roots: tuple[str, ...]) -> str:
    """The directory `base`/`tail` if it lies below one of the roots with no link on the way."""
    path = os.path.normpath(os.path.join(base, *tail))
    for root in roots:
        inner = os.path.relpath(path, os.path.normpath(root))
        if not os.path.isabs(base) or inner == ".." or inner.startswith("../"):
            continue
        real = os.path.join(os.path.realpath(root), inner)
        if os.path.realpath(real) != real:
            raise CheckpointError(
                f"checkpoint {path} is reached through a symbolic link", hint="links are not followed below a root"
            )
        if not os.path.isdir(real):
            raise CheckpointError(f"no such checkpoint: {path} is not a directory")
        return real
    raise CheckpointError(
        f"checkpoint {base} lies outside the checkpoint roots {', '.join(roots)}",
        hint="move it there, or add its root to `checkpoint-roots`",
    )
