"""What a restore would do and whether it would work, by the code that does it. Nothing is changed.

The steps are those of `restore.restore`, in its order. Where that one ends at the first error, this one goes on as far
as it can, so that every problem is found at once.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from grit_runtime import names
from grit_runtime.checkpoint.kinds import Found
from grit_runtime.contents import podlog, shm
from grit_runtime.errors import GritError, InterruptedCallError
from grit_runtime.host import files, workspace
from grit_runtime.host.effects import MakeMountpoint
from grit_runtime.host.links import SharedLink
from grit_runtime.host.transaction import read_journal
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import hollow, intended, prepare, recover, source
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.effects import restored_container
from grit_runtime.workflow.prepare import Prepared, Request, Survey

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What comes back beside the images: what, how much, where to, or why it is left out."""

    name: str
    bytes: int
    target: str
    left_out: str = ""


@dataclass(slots=True, kw_only=True)
class Foreseen:
    """A restore that was looked at, as far as it could be."""

    context: Context
    request: Request
    found: Found | None = None
    survey: Survey | None = None
    prepared: Prepared | None = None
    mountpoints: tuple[MakeMountpoint, ...] = ()
    links: tuple[SharedLink, ...] = ()
    contents: tuple[Content, ...] = ()
    criu: str = ""
    """CRIU's configuration, as it would be written."""
    command: tuple[str, ...] = ()
    """How the downstream would be called."""
    first: str = ""
    """What would be put right before."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether nothing is known that would make it fail."""
        return not self.problems

    def attempt(self, do: Callable[[], _T]) -> _T | None:
        """Do one step; that it fails is a problem."""
        try:
            return do()
        except InterruptedCallError:
            raise
        except GritError as err:
            self.problems.append(str(err))
        except OSError as err:
            self.problems.append(f"{err.filename}: {err.strerror}" if err.filename else str(err.strerror or err))
        return None


def foresee(context: Context, request: Request) -> Foreseen:
    """Look at a restore.

    Args:
        context: its log gets what the restore would log, and is best a `Notes`.
    """
    seen = Foreseen(context=context, request=request)
    scratch = os.path.join(os.environ.get("TMPDIR") or "/tmp", f"grit-runtime-plan-{secrets.token_hex(8)}")
    try:
        _look(seen, scratch)
    finally:
        if os.path.isdir(scratch):
            files.remove_tree(scratch)
        if seen.survey:
            seen.survey.close()
    said = context.log.for_people
    seen.problems[:] = dict.fromkeys(said(text.replace(scratch, request.images)) for text in seen.problems)
    seen.warnings[:] = map(said, seen.warnings)
    return seen


def _look(seen: Foreseen, scratch: str) -> None:
    context, request = seen.context, seen.request
    _look_at_id(seen)
    found = seen.found = seen.attempt(lambda: _find(context, request, scratch))
    with_devices = seen.attempt(lambda: prepare.with_devices(context, request, f"{scratch}-toolkit"))
    seen.attempt(lambda: _look_at_cgroup(context, request.bundle))
    if found is None:
        return
    request = seen.request = with_devices or request
    survey = seen.survey = seen.attempt(lambda: prepare.survey(context, request, found))
    if survey is None:
        return
    seen.problems += survey.problems
    prepared = seen.prepared = seen.attempt(lambda: prepare.decide(context, survey, compare=False))
    made = prepared.plan if prepared else survey.plan
    seen.warnings += prepared.warnings if prepared else survey.warnings
    points = seen.attempt(lambda: intended.mountpoints(made)) or []
    seen.mountpoints = (*points, *intended.place_for_old_root(request.bundle, points))
    seen.links = tuple(intended.shared_links(context, made))
    seen.criu = seen.attempt(lambda: intended.criu_configuration(context, request.bundle, made)) or ""
    seen.contents = tuple(_contents(context, request.bundle, survey))
    place = context.workspace_path
    seen.command = tuple(
        intended.command(
            context,
            request,
            os.path.join(place, "images"),
            log_file=os.path.join(place, "runc.log"),
            work=request.work or os.path.join(place, "work"),
            pid_file=os.path.join(place, "init.pid"),
        )
    )


def _find(context: Context, request: Request, scratch: str) -> Found:
    return hollow.find(source.hold(context, request.images, request.pin), context.config.archive, scratch)


def _look_at_id(seen: Foreseen) -> None:
    """Whether the id is free, and what a killed call left of it."""
    context = seen.context
    record = seen.attempt(lambda: read_journal(os.path.join(context.workspace_path, names.JOURNAL)))
    waits = record is not None and record.phase == recover.CREATED
    if waits or context.downstream.has(context.container):
        seen.problems.append(str(intended.taken(context.container)))
    elif workspace.is_held(context.workspace_path):
        seen.problems.append(f"container {context.container} is busy: another grit-runtime works on it")
    elif record is not None:
        operation = record.header.get("operation")
        seen.first = f"what a killed {operation} of container {context.container} left is put right"


def _look_at_cgroup(context: Context, bundle: Bundle) -> None:
    timeout = context.config.timeouts.command
    restored_container(context.downstream, context.container, bundle.rootfs, bundle.cgroups_path, timeout)


def _contents(context: Context, bundle: Bundle, survey: Survey) -> list[Content]:
    """What `contents.apply` would do."""
    parts, found = survey.contents, []
    for path, target in ((parts.deleted_files, bundle.rootfs), (parts.rootfs_diff, bundle.rootfs)):
        if path:
            found.append(_content(path, target))
    if parts.devshm:
        own = "" if shm.source(bundle) else "the new container has a /dev/shm of its own"
        found.append(_content(parts.devshm, shm.source(bundle), own))
    if parts.log:
        try:
            found.append(_content(parts.log, podlog.find(context.config.contents.pod_logs, bundle.annotations).path))
        except podlog.NoLogError as err:
            found.append(_content(parts.log, "", str(err)))
    return found


def _content(path: str, target: str, left_out: str = "") -> Content:
    size = os.stat(path).st_size
    return Content(name=os.path.basename(path), bytes=size, target=target, left_out=left_out)
