"""What a restore was asked for, and what is read and decided before anything is touched."""

import os
from dataclasses import dataclass, replace

from grit_runtime import names
from grit_runtime.checkpoint import manifest as manifests
from grit_runtime.criu import images
from grit_runtime.errors import CheckpointError, PlanError
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import connections, contents, facts, hostname, plan, preflight
from grit_runtime.workflow.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A restore as the caller asked for it; paths are absolute."""

    bundle: bundles.Bundle
    images: str
    work: str
    """Where CRIU logs; empty for a place of ours."""
    pid_file: str
    flags: tuple[str, ...]
    """What else is handed on to the downstream."""
    serves_create: bool = False
    """Leave the tasks stopped until `start`."""
    shell_job: bool = False
    """The container shares its caller's session: a stopped task there would be a job of the caller's shell, so it runs
    at once.
    """
    foreground: bool = False
    """Stay until the container ends, as `runc restore` without --detach does."""
    need_manifest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was read and decided before anything was touched."""

    plan: plan.Plan
    images: images.Images
    contents: contents.Found


def prepare(context: Context, request: Request) -> Prepared:
    """Read the checkpoint and plan its restore.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
        PlanError: the new container lacks something, everything named.
    """
    found = _read_manifest(request)
    decoded = images.read(request.images)
    beside = contents.beside(request.images, found)
    looked = facts.gather(context, request.bundle, decoded, found, contents.filled(beside))
    made = plan.make(context.container, decoded, request.bundle, found, looked, hold=not request.shell_job)
    problems = (*made.problems, *preflight.problems(request.bundle, request.images))
    if problems:
        raise PlanError(context.container, problems)
    established = any(flag.lstrip("-") == "tcp-established" for flag in request.flags)
    tcp = connections.decide(context.config, request.images, decoded.files, all_established=established)
    changes = plan.merge(made.rewrites, tcp.rewrites, hostname.rewrites(request.bundle, decoded.files))
    facts.check_rewritable(decoded, changes)
    closed = [f"the TCP connection {connection} is closed" for connection in tcp.closed]
    for warning in (*made.warnings, *closed):
        context.log.line("warning", f"container {context.container}: {warning}")
    return Prepared(
        plan=replace(made, criu={**made.criu, **tcp.criu}, rewrites=changes), images=decoded, contents=beside
    )


def _read_manifest(request: Request) -> manifests.Manifest | None:
    if not os.path.isdir(request.images):
        raise CheckpointError(f"no such checkpoint: {request.images} is not a directory")
    found = manifests.read(request.images)
    if found is None and (request.need_manifest or manifests.is_unfinished(request.images)):
        raise CheckpointError(
            f"checkpoint {request.images} is incomplete: it has no {names.MANIFEST}",
            hint="it is being written or copied, or that was cut short",
        )
    return found
