"""docker: one file without drop-ins. It is written where there is none; else what to add is said.

JSON has no comments, so a file is ours if it holds what `install` writes and nothing else, byte for byte.
"""

import json
from typing import Any

from grit_runtime.engines.mark import Whose
from grit_runtime.engines.plan import Plan, Request, Tree
from grit_runtime.errors import ConfigError

PATH = "/etc/docker/daemon.json"
_RELOAD = "systemctl reload docker"  # dockerd reads `runtimes` again at SIGHUP (dockerd.8, reloadable options)


def plan(tree: Tree, request: Request) -> Plan:
    """The whole file if there is none or it is ours, or what to merge into it.

    Raises:
        ConfigError: the file that is there is no JSON object.
    """
    text = _text(request.name, request.binary)
    there = tree.read(PATH)
    if there is None or whose(there) is Whose.OURS:
        return Plan(path=PATH, text=text, restart=_RELOAD)
    registered = _runtimes(there).get(request.name)
    if isinstance(registered, dict) and registered.get("path") == request.binary:
        return Plan(path=PATH, text="", restart=_RELOAD, notes=(f"{PATH} has it already, by another's hand",))
    refused = f"{PATH} is there and not ours: merge this into it, then run `{_RELOAD}`:\n{text}"
    return Plan(path=PATH, text="", restart=_RELOAD, refused=refused)


def places(_: Tree, __: str) -> tuple[str, ...]:
    """The one file."""
    return (PATH,)


def whose(text: str) -> Whose:
    """Ours is a file that holds one runtime, written as we write it."""
    try:
        ((name, runtime),) = _runtimes(text).items()
        ours = text == _text(name, runtime["path"])
    except (ConfigError, ValueError, KeyError, TypeError):
        return Whose.FOREIGN
    return Whose.OURS if ours else Whose.FOREIGN


def _text(name: str, binary: str) -> str:
    return json.dumps({"runtimes": {name: {"path": binary}}}, indent=2) + "\n"


def _runtimes(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
        found = data.get("runtimes", {})
    except (ValueError, AttributeError, RecursionError):
        raise ConfigError(f"{PATH} holds no JSON object") from None
    return found if isinstance(found, dict) else {}
