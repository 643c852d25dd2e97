"""What a restore does to the machine, made of its plan: the restore does it, and `foresee` shows it."""

import os
from collections.abc import Sequence

from grit_runtime import names
from grit_runtime.criu import conf
from grit_runtime.errors import RestoreError
from grit_runtime.host import effects, files, links
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import plan
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.prepare import Request


def mountpoints(made: plan.Plan) -> list[effects.MakeMountpoint]:
    """What is missing of the mountpoints that only CRIU mounts on; outer ones are shared."""
    found = [
        effect
        for point in made.mountpoints
        for effect in effects.missing_mountpoints(point.base, point.path, directory=point.directory)
    ]
    return list(dict.fromkeys(found))


def place_for_old_root(bundle: Bundle, made: Sequence[effects.MakeMountpoint]) -> list[effects.MakeMountpoint]:
    """/tmp of a read-only rootfs that has none: CRIU puts the old root there for a moment, or else makes a directory
    for it, which it can't there (criu/mount.c, cr_pivot_root).

    Args:
        made: what is made anyway.
    """
    place = effects.MakeMountpoint(bundle.rootfs, "tmp", True)
    if not bundle.section("root").get("readonly") or place in made:
        return []
    return [] if os.path.lexists(os.path.join(bundle.rootfs, "tmp")) else [place]


def shared_links(context: Context, made: plan.Plan) -> list[links.SharedLink]:
    """The links of the plan."""
    registry = os.path.join(context.config.state_dir, links.REGISTRY)
    root, container = os.path.split(context.workspace_path)
    owner = f"{os.path.basename(root)}!{container}"
    return [
        links.SharedLink(link.path, link.target, registry, owner, context.config.timeouts.lock) for link in made.links
    ]


def criu_configuration(context: Context, bundle: Bundle, made: plan.Plan) -> str:
    """The text of CRIU's configuration.

    Raises:
        ConfigError: an option of the site's can't be written in one.
    """
    users = files.read_text(bundle.annotations.get(names.CRIU_CONFIG_ANNOTATION, names.CRIU_DEFAULT_CONFIG))
    return conf.merge(context.config.criu_restore, users, made.criu)


def command(context: Context, request: Request, staged: str, *, log_file: str, work: str, pid_file: str) -> list[str]:
    """How the downstream is called; its pid file is ours until all is verified."""
    return context.downstream.argv(
        log_file, "restore", "--image-path", staged, "--work-path", work, "--pid-file", pid_file,
        "--bundle", request.bundle.path, *request.flags, context.container,
    )  # fmt: skip


def taken(container: str) -> RestoreError:
    """What is said of an id that is taken, in runc's words."""
    return RestoreError(f"container with id {container} exists: container with given ID already exists")
