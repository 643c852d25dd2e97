"""`create [flags] ID`: of a container whose annotations name a checkpoint, a restore that waits for `start`; of any
other, the downstream's, with the devices that it asks for where they are ours to give.
"""

import os

from grit_runtime import downstream, names
from grit_runtime.checkpoint import locate
from grit_runtime.config import Config
from grit_runtime.errors import BundleError, CheckpointError, RestoreError, UsageError
from grit_runtime.oci import argv, bundle
from grit_runtime.verbs import waiting
from grit_runtime.verbs.call import Call, pass_through
from grit_runtime.workflow import devices, operations, restore
from grit_runtime.workflow.prepare import Request

# What `restore` has no flag for: a restored process has its keyring, and its descriptors are in the images.
_OURS = ("bundle", "pid-file", "no-new-keyring", "preserve-fds")


def run(call: Call) -> int:
    """Restore by annotation, or pass on."""
    try:
        made = bundle.load(_bundle_path(call.invocation.args))
    except BundleError:
        return _as_ever(call, None)
    if not locate.wanted(made.annotations):
        return _as_ever(call, made)
    flags = argv.read_flags("create", call.invocation.args, argv.CREATE)
    if "help" in flags.switches:
        return _as_ever(call, None)
    container = argv.container_id("create", flags)
    if "pidfd-socket" in flags.values:
        raise RestoreError(
            f"cannot restore container {container} at create: --pidfd-socket is not supported with a checkpoint"
        )
    try:
        return _restore(call, container, made, flags)
    except (RestoreError, CheckpointError) as err:
        from grit_runtime.workflow.cudaplan import on_failure

        if on_failure(made.annotations, call.config.on_restore_failure) == names.FAIL or waiting.find(call):
            raise
        call.log.line("warning", f"container {container} starts cold, without its checkpoint: {err}")
        return _as_ever(call, made)


def _restore(call: Call, container: str, made: bundle.Bundle, flags: argv.Flags) -> int:
    context = call.context(container)
    with operations.recorded(context, "create"):
        return restore.restore(context, request(call.config, made, flags))


def request(config: Config, made: bundle.Bundle, flags: argv.Flags) -> Request:
    """The restore that a bundle's annotations and these arguments ask for.

    Raises:
        CheckpointError: the annotations contradict each other, lead out of the roots, or lead to nothing.
    """
    pid_file = flags.value("pid-file")
    found = locate.locate(made.annotations, config.checkpoint_roots, config.trust.owners)
    return Request(
        bundle=made,
        images=found.images,
        pin=found.pin,
        place=found.place,
        work="",
        pid_file=os.path.abspath(pid_file) if pid_file else "",
        flags=("--detach", "--no-subreaper", *flags.without(*_OURS)),
        serves_create=True,
        need_manifest=config.require_manifest,
    )


def _as_ever(call: Call, made: bundle.Bundle | None) -> int:
    """Pass on, with the devices that the container asks for; what a killed restore left under this id is put right
    first.
    """
    waiting.find(call)
    if made is not None:
        devices.at_create(call.config, downstream.resolve(call.config.downstream), made)
    pass_through(call.config, call.argv, call.ignored_signals)


def _bundle_path(args: tuple[str, ...]) -> str:
    """The bundle, also of a call whose other flags we don't know: such a call is only ours to refuse if it asks for a
    restore.
    """
    try:
        return argv.read_flags("create", args, argv.CREATE).value("bundle") or "."
    except UsageError:
        for word, following in zip(args, (*args[1:], ""), strict=True):
            name, equals, value = word.lstrip("-").partition("=")
            if word.startswith("-") and name in ("bundle", "b"):
                return value if equals else following
    return "."
