"""The first GPU of the node, as a container gets it without any tool of NVIDIA's: nodes, device rules and libraries."""

import glob
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

_INSIDE = "/driver"
_LIBRARY = "libcuda.so.1"
_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
)
_SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU to be given: its nodes, and the directory of the driver's libraries."""

    nodes: tuple[str, ...]
    libraries: str

    def give(self, config: dict[str, Any]) -> None:
        """Put it into a config.json."""
        rules = config["linux"].setdefault("resources", {}).setdefault("devices", [])
        for path in self.nodes:
            found = os.stat(path)
            number = {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
            node = {"path": path, "type": "c", **number, "fileMode": 0o666, "uid": 0, "gid": 0}
            config["linux"].setdefault("devices", []).append(node)
            rules.append({"allow": True, "type": "c", **number, "access": "rwm"})
        config["process"]["env"] = [*config["process"].get("env", []), f"LD_LIBRARY_PATH={_INSIDE}"]
        # Not within the /usr that is bound: they may be a mount of their own there, and links lead to them.
        bind = {"destination": _INSIDE, "type": "bind", "source": self.libraries, "options": ["bind", "rprivate", "ro"]}
        config["mounts"].append(bind)


def find(more: tuple[str, ...] = ()) -> tuple[Gpu | None, str]:
    """The first GPU that can be given, or None and why not.

    Args:
        more: directories that may hold the driver's libraries, before the usual ones.
    """
    own = sorted(path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", path))
    if not own:
        return None, "there is no NVIDIA GPU"
    here = [path for path in (*more, *_DIRECTORIES) if os.path.exists(os.path.join(path, _LIBRARY))]
    if not here:
        return None, f"there is no {_LIBRARY} in {', '.join((*more, *_DIRECTORIES))}"
    nodes = [path for path in (own[0], *_SHARED) if os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode)]
    libraries = os.path.dirname(os.path.realpath(os.path.join(here[0], _LIBRARY)))
    return Gpu(nodes=tuple(nodes), libraries=libraries), ""
