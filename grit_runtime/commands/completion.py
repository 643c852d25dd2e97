"""`completion`: having a shell complete our commands and their options.

click's own way calls the program without arguments, which is the downstream runtime's to answer: so its script is made
to call this command.
"""

import os
import re

import click
from click import shell_completion

from grit_runtime.commands import common

_VARIABLE = "_GRIT_RUNTIME_COMPLETE"  # click's name for it
_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> int:
    """Print what makes SHELL complete the commands of grit-runtime's own, and their options.

    \b
    grit-runtime completion bash >/usr/share/bash-completion/completions/grit-runtime
    grit-runtime completion zsh >/usr/share/zsh/vendor-completions/_grit-runtime
    grit-runtime completion fish >/usr/share/fish/vendor_completions.d/grit-runtime.fish

    The verbs of the OCI runtime are not completed. Exits with 0.
    """
    group, name = context.find_root().command, "grit-runtime"
    kind = shell_completion.get_completion_class(shell)
    assert kind is not None
    complete = kind(group, {}, name, _VARIABLE)
    if os.environ.get(_VARIABLE) == f"{shell}_complete":
        common.printed(complete.complete() + "\n")
    else:
        common.printed(_script(complete.source_template % complete.source_vars(), shell))
    return 0


def _script(source: str, shell: str) -> str:
    """click's script, which calls `grit-runtime completion SHELL` instead of `grit-runtime`."""
    asks = f"{_VARIABLE}={shell}_complete"
    lines = [
        re.sub(r"(\$1|grit-runtime)\)", rf"\1 completion {shell})", line) if asks in line else line
        for line in source.splitlines()
    ]
    return "\n".join(lines) + "\n"
