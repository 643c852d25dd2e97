"""`kill ID [SIGNAL]` of a container that `create` restored.

A stopped task keeps a signal until it runs. Of a created container it is runc's init that gets it, and dies of it at
once: so must this one.
"""

import signal

from grit_runtime.oci import argv
from grit_runtime.verbs.call import pass_through
from grit_runtime.verbs.waiting import Waiting

_HARMLESS = frozenset({
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
})  # fmt: skip


def run(waiting: Waiting) -> int:
    """Kill the container for every signal that ends a process without handlers; pass on any other."""
    flags = argv.read_flags("kill", waiting.call.invocation.args, argv.KILL)
    name = flags.positional[1] if len(flags.positional) > 1 else "TERM"
    if not ends_a_process(name):
        call = waiting.call
        pass_through(call.config, call.argv, call.ignored_signals)
    context = waiting.context
    context.downstream.require("kill", context.container, "KILL", timeout=context.config.timeouts.command)
    return 0


def ends_a_process(name: str) -> bool:
    """Whether a signal, by name or number, ends a process that has no handler for it (signal(7)); an unknown one is
    the downstream's to refuse.
    """
    word = name.upper().removeprefix("SIG")
    try:
        number = signal.Signals(int(word)) if word.isdigit() else signal.Signals[f"SIG{word}"]
    except (ValueError, KeyError):
        return False
    return number not in _HARMLESS
