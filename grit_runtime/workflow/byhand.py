"""Working with the checkpoint roots by hand: a container by its id, a checkpoint by its name."""

import glob
import os
from dataclasses import dataclass

from grit_runtime import downstream, names
from grit_runtime.checkpoint import locate, manifest
from grit_runtime.config import Config
from grit_runtime.errors import CaptureError, CheckpointError, UsageError
from grit_runtime.oci import argv
from grit_runtime.oci.argv import Invocation
from grit_runtime.oci.bundle import Bundle
from grit_runtime.oci.log import Log
from grit_runtime.workflow import recorded
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.dump import Request

# Where the downstream's state is: its default, and what containerd (also k3s's), docker and `install` for CRI-O pass.
_ROOTS = ("/run/runc", "/run/containerd/runc/*", "/run/docker/runtime-runc/*", "/run/grit")
_SHORTEST = 4  # characters of an id that is not written out


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A capture that was asked for by a name."""

    context: Context
    request: Request
    pid: int
    """The container's first process."""
    sandbox: str = ""
    """The pod's sandbox, by the container's annotations; empty for a container of no pod."""


def find_container(config: Config, invocation: Invocation, word: str, log: Log) -> Context:
    """The container of an id or the beginning of one, below the `--root` of the call, or those of the engines.

    Raises:
        UsageError: there is none, or several.
        DownstreamError: there is no downstream.
    """
    given = "root" in invocation.options.values
    roots = [invocation.root] if given else [path for pattern in _ROOTS for path in sorted(glob.glob(pattern))]
    every = [(root, name) for root in roots for name in _listed(root)]
    found = [pair for pair in every if pair[1] == word] or [
        pair for pair in every if len(word) >= _SHORTEST and pair[1].startswith(word)
    ]
    if not found:
        raise UsageError(f"no container {word!r} in {', '.join(roots) or 'any root'}", hint="name its --root")
    if len(found) > 1:
        raise UsageError(
            f"{word!r} may be {', '.join(os.path.join(*pair) for pair in found[:5])}", hint="write more of it"
        )
    root, container = found[0]
    others = [token for token in invocation.options.tokens if token[0] != "root"]
    called = argv.scan(["--root", root, *(word for _, token in others for word in token), invocation.verb])
    program = downstream.find(config.downstream, called)
    return Context(invocation=called, config=config, downstream=program, log=log, container=container)


def _listed(root: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name)))
    except OSError:
        return []


def plan_capture(context: Context, name: str, *, stop: bool, replace: bool) -> Capture:
    """Where a checkpoint of this container belongs.

    Args:
        name: what a pod's annotation `grit.dev/restore-name` will say.
        stop: end the container afterwards.
        replace: there may be one of that name.

    Raises:
        CaptureError: it is a pod's sandbox.
        CheckpointError: a name can't be part of a path, or there is one already.
        DownstreamError: the downstream doesn't know the container.
    """
    state = context.downstream.state(context.container, timeout=context.config.timeouts.command)
    annotations = recorded.bundle_of(context, state).annotations
    if names.first(annotations, names.CONTAINER_TYPE) == names.SANDBOX:
        raise CaptureError(
            f"container {context.container} is a pod's sandbox, which is not restored",
            hint="name one of its containers",
        )
    images = place(context.config.checkpoint_roots, annotations, name)
    if os.path.realpath(images) != images:
        raise CheckpointError(f"checkpoint {images} is reached through a symbolic link")
    if os.path.lexists(os.path.join(images, names.MANIFEST)) and not replace:
        raise CheckpointError(f"there is a checkpoint at {images}", hint="choose another --name, or say --replace")
    request = Request(images=images, work="", parent="", leave_running=not stop, flags=())
    sandbox = names.first(annotations, names.SANDBOX_ID) or ""
    return Capture(context=context, request=request, pid=state.pid, sandbox=sandbox)


def place(roots: tuple[str, ...], annotations: dict[str, str], name: str) -> str:
    """Where `locate` finds a checkpoint of that name, of a container with these annotations: below the first root that
    is there.

    Raises:
        CheckpointError: there is no root, or a name can't be part of a path.
    """
    if not roots:
        raise CheckpointError("the configuration names no checkpoint root", hint="set `checkpoint-roots`")
    root = next((path for path in roots if os.path.isdir(path)), roots[0])
    namespace = names.first(annotations, names.POD_NAMESPACE) or "default"
    container = names.first(annotations, names.CONTAINER_NAME)
    words = [locate.component("pod namespace", namespace), locate.component("name", name)]
    words += [locate.component("container name", container)] if container is not None else []
    return os.path.join(os.path.realpath(root), *words, names.IMAGES_DIR)


def written(images: str) -> int:
    """Bytes that a capture into this directory has written so far."""
    total = 0
    for folder in (os.path.join(images, names.PARTIAL), images):
        try:
            total += sum(entry.stat(follow_symlinks=False).st_blocks for entry in os.scandir(folder)) * 512
        except OSError:
            continue
    return total


def size(images: str) -> int:
    """The bytes of a complete checkpoint, by its manifest."""
    found = manifest.read(images)
    return sum(found.sizes.values()) if found else 0


def images_of(config: Config, made: Bundle, name: str, *, namespace: str, container: str) -> str:
    """The checkpoint of that name, for a bundle: what its annotations say is what counts, unless it is said here.

    Raises:
        CheckpointError: there is none.
    """
    annotations = {key: value for key, value in made.annotations.items() if key != names.CHECKPOINT}
    said = {names.RESTORE_NAME: name}
    if namespace:
        said[names.POD_NAMESPACE[0]] = namespace
    if container:
        said[names.CONTAINER_NAME[0]] = container
    return locate.locate({**annotations, **said}, config.checkpoint_roots, config.trust.owners).images
