"""What a restore was asked for, and what is read and decided before anything is touched."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grit_runtime import names
from grit_runtime.checkpoint import manifest as manifests
from grit_runtime.checkpoint.kinds import Found, Kind
from grit_runtime.criu import descriptors, images
from grit_runtime.errors import CheckpointError, PlanError
from grit_runtime.host.beneath import Pin
from grit_runtime.oci import bundle as bundles
from grit_runtime.workflow import (
    connections,
    contents,
    cudasigns,
    devices,
    facts,
    hostname,
    memoryplan,
    plan,
    preflight,
    trust,
)
from grit_runtime.workflow.context import Context

if TYPE_CHECKING:
    from grit_runtime.workflow import cudarestore


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A restore as the caller asked for it; paths are absolute."""

    bundle: bundles.Bundle
    images: str
    """The directory of a checkpoint, or an archive."""
    pin: Pin | None = None
    """What is there, if it was found by annotation."""
    place: str = ""
    """Its namespace by where it lies, if it was found by annotation."""
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
class Survey:
    """What was read of the checkpoint and seen of the machine, and every problem with it."""

    request: Request
    found: Found
    manifest: manifests.Manifest | None
    images: images.Images
    contents: contents.Found | Found
    plan: plan.Plan
    cuda: "cudarestore.Prepared | None"
    problems: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will be otherwise than in the old container."""
        return (*self.plan.warnings, *(self.cuda.plan.warnings if self.cuda else ()))

    def close(self) -> None:
        """Let go of the driver."""
        if self.cuda:
            self.cuda.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was read and decided before anything was touched."""

    plan: plan.Plan
    images: images.Images
    contents: contents.Found | Found
    made_up: dict[str, bytes]
    """Files that the staged directory has beside the checkpoint's, or in place of them."""
    memory: memoryplan.Prepared
    cuda: "cudarestore.Prepared | None" = None
    warnings: tuple[str, ...] = ()
    """What will be otherwise than in the old container."""


def with_devices(context: Context, request: Request, scratch: str) -> Request:
    """The request with the bundle as it will be restored: with its devices, and what its mounts' sources lead to.

    Args:
        scratch: as for `devices.at_restore`.
    """
    return replace(request, bundle=facts.follow(devices.at_restore(context, request.bundle, scratch)))


def prepare(context: Context, request: Request, found: Found) -> Prepared:
    """Read the checkpoint and plan its restore.

    Args:
        found: the checkpoint's parts; those of an archive are unpacked.

    Raises:
        CheckpointError: it is incomplete, damaged, or another container's.
        PlanError: the new container lacks something, everything named.
    """
    looked = survey(context, request, found)
    try:
        if looked.problems:
            raise PlanError(context.container, looked.problems)
        return decide(context, looked)
    except BaseException:
        looked.close()
        raise


def survey(context: Context, request: Request, found: Found) -> Survey:
    """Read the checkpoint, look at the machine, and collect every problem. The caller closes what it gets.

    Raises:
        CheckpointError: it is incomplete, damaged, or another container's.
    """
    _check_name(request, found)
    manifest = _read_manifest(request, found)
    decoded = images.read(found.images)
    parts = contents.beside(found.images, manifest) if found.kind is Kind.OWN else found
    looked = facts.gather(context, request.bundle, decoded, manifest, contents.filled(parts))
    made = plan.make(context.container, decoded, request.bundle, manifest, looked, hold=not request.shell_job)
    verdict = trust.judge(context, request, decoded, manifest, found.namespace, made.mounts, looked.offer)
    made = replace(made, problems=(*made.problems, *verdict.problems), warnings=(*made.warnings, *verdict.warnings))
    cuda = None
    if cudasigns.in_checkpoint(decoded, manifest):
        from grit_runtime.workflow import cudarestore

        cuda = cudarestore.prepare(context, request.bundle, decoded, manifest)
    try:
        problems = (*made.problems, *(cuda.problems if cuda else ()), *preflight.problems(request.bundle, found.images))
    except BaseException:
        if cuda:
            cuda.close()
        raise
    return Survey(
        request=request,
        found=found,
        manifest=manifest,
        images=decoded,
        contents=parts,
        plan=made,
        cuda=cuda,
        problems=problems,
    )


def decide(context: Context, looked: Survey, *, compare: bool = True) -> Prepared:
    """What will be done about connections, the host name and memory, and what changes in the images.

    Args:
        compare: compare the checkpoint's files with their checksums, which reads them.

    Raises:
        CheckpointError: an image is damaged, can't be adapted, or holds a connection that the configuration refuses.
        RestoreError: the configuration asks for what can't be done.
    """
    request, decoded, made, cuda = looked.request, looked.images, looked.plan, looked.cuda
    established = any(flag.lstrip("-") == "tcp-established" for flag in request.flags)
    tcp = connections.decide(context.config, looked.found.images, decoded.files, all_established=established)
    changes = plan.merge(
        made.rewrites, tcp.rewrites, hostname.rewrites(request.bundle, decoded.files), cuda.rewrites if cuda else {}
    )
    facts.check_rewritable(decoded, changes)
    closed = [f"the TCP connection {connection} is closed" for connection in tcp.closed]
    memory = memoryplan.prepare(context, decoded, looked.manifest, stopped=not request.shell_job, compare=compare)
    warnings = (*looked.warnings, *closed)
    for warning in warnings:
        context.log.line("warning", f"container {context.container}: {warning}")
    return Prepared(
        plan=replace(made, criu={**made.criu, **tcp.criu, **(cuda.criu if cuda else {})}, rewrites=changes),
        images=decoded,
        contents=looked.contents,
        made_up={**_missing(decoded), **memory.staged},
        memory=memory,
        cuda=cuda,
        warnings=warnings,
    )


def _missing(decoded: images.Images) -> dict[str, bytes]:
    """The files that the downstream needs beside the images and that aren't there."""
    if names.DESCRIPTORS in decoded.files:
        return {}
    return {names.DESCRIPTORS: descriptors.make(decoded.path, decoded.processes[0].pid)}


def _check_name(request: Request, found: Found) -> None:
    """An archive holds one container, and a pod's annotation reaches all of them."""
    name = names.first(request.bundle.annotations, names.CONTAINER_NAME) or ""
    if request.serves_create and found.container and name and found.container != name:
        raise CheckpointError(
            f"{request.images} holds a container {found.container!r}, and this one is {name!r}",
            hint="of a pod with several containers, put their archives as NAME.tar into one directory, and name that",
        )


def _read_manifest(request: Request, found: Found) -> manifests.Manifest | None:
    manifest = manifests.read(found.images)
    complete = found.complete or not request.need_manifest
    if manifest is None and (not complete or manifests.is_unfinished(found.images)):
        raise CheckpointError(
            f"checkpoint {request.images} is incomplete: it has no {names.MANIFEST}",
            hint="it is being written or copied, or that was cut short",
        )
    return manifest
