"""`checkpoint [flags] ID`: capture a container (runc-checkpoint(8))."""

import os

from grit_runtime.oci import argv
from grit_runtime.verbs.call import Call, pass_through
from grit_runtime.workflow import capture, filling
from grit_runtime.workflow.dump import Request

# These make something other than a complete checkpoint, in a conversation between CRIU and the caller, or nothing.
_NOT_A_CAPTURE = ("pre-dump", "lazy-pages", "page-server")
_OURS = ("image-path", "work-path", "parent-path", "leave-running")


def run(call: Call) -> int:
    """Capture, or pass on what isn't a whole checkpoint."""
    flags = argv.read_flags("checkpoint", call.invocation.args, argv.CHECKPOINT)
    if "help" in flags.switches:
        pass_through(call.config, call.argv, call.ignored_signals)
    context = call.context(argv.container_id("checkpoint", flags))
    if any(name in flags.values or name in flags.switches for name in _NOT_A_CAPTURE):
        filling.wait(context)
        pass_through(call.config, call.argv, call.ignored_signals)
    work = flags.value("work-path")
    request = Request(
        images=os.path.abspath(flags.value("image-path", "checkpoint")),  # runc: ./checkpoint
        work=os.path.abspath(work) if work else "",
        parent=flags.value("parent-path"),
        leave_running="leave-running" in flags.switches,
        flags=tuple(flags.without(*_OURS)),
    )
    capture.capture(context, request)
    return 0
