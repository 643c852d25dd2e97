"""`restore [flags] ID`: bring a checkpoint back (runc-restore(8)), as the container of another bundle if that is what
the caller has.
"""

import os

from grit_runtime.oci import argv, bundle
from grit_runtime.verbs.call import Call, pass_through
from grit_runtime.workflow import operations, restore
from grit_runtime.workflow.prepare import Request

_OURS = ("image-path", "work-path", "parent-path", "bundle", "pid-file")


def run(call: Call) -> int:
    """Restore with the caller's arguments; `--lazy-pages` is a conversation between CRIU and the caller, and passed
    on.
    """
    flags = argv.read_flags("restore", call.invocation.args, argv.RESTORE)
    if flags.switches & {"lazy-pages", "help"}:
        pass_through(call.config, call.argv, call.ignored_signals)
    context = call.context(argv.container_id("restore", flags))
    with operations.recorded(context, "restore"):
        return restore.restore(context, request(flags))


def request(flags: argv.Flags) -> Request:
    """What these arguments ask for. Raises BundleError: there is no bundle that can be read."""
    work, pid_file = flags.value("work-path"), flags.value("pid-file")
    return Request(
        bundle=bundle.load(flags.value("bundle") or "."),
        images=os.path.abspath(flags.value("image-path", "checkpoint")),  # runc: ./checkpoint
        work=os.path.abspath(work) if work else "",
        pid_file=os.path.abspath(pid_file) if pid_file else "",
        flags=tuple(flags.without(*_OURS)),
        shell_job="shell-job" in flags.switches,
        foreground="detach" not in flags.switches,
    )
