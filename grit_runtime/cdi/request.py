"""What a container asks for, as NVIDIA's runtime reads it (internal/config/image/cuda_image.go, VisibleDevices).

Both the annotations and the environment may be a tenant's, so they are bounded, and only names come out.
"""

from typing import Any

from grit_runtime.cdi import names
from grit_runtime.errors import CdiError

ANNOTATIONS = "cdi.k8s.io/"
VARIABLE = "NVIDIA_VISIBLE_DEVICES"
KIND = "nvidia.com/gpu"
_MOST = 1024


def requested(config: dict[str, Any]) -> list[str]:
    """The fully qualified names of the devices that a config.json asks for, each once.

    Annotations take precedence over the environment, as in NVIDIA's runtime; `void`, `none` and an empty value ask for
    nothing.

    Raises:
        CdiError: it asks for what is no name, or for too much.
    """
    words = _of_annotations(config.get("annotations")) or _of_environment(config.get("process"))
    if len(words) > _MOST:
        raise CdiError(f"the container asks for {len(words)} devices, and {_MOST} are the most")
    found = []
    for word in words:
        name = word if names.is_qualified(word) else f"{KIND}={word}"
        if not names.is_qualified(name):
            raise CdiError(f"the container asks for a device {word[:100]!r}, which is no name of one")
        found.append(name)
    return list(dict.fromkeys(found))


def _of_annotations(annotations: Any) -> list[str]:
    if not isinstance(annotations, dict):
        return []
    asking = sorted(key for key in annotations if key.startswith(ANNOTATIONS) and isinstance(annotations[key], str))
    return [word for key in asking for word in annotations[key].split(",")]


def _of_environment(process: Any) -> list[str]:
    entries = process.get("env") if isinstance(process, dict) else None
    value = ""
    for entry in entries if isinstance(entries, list) else []:
        name, _, said = entry.partition("=") if isinstance(entry, str) else ("", "", "")
        value = said if name == VARIABLE else value
    words = [word for word in (part.strip() for part in value.split(",")) if word]
    if "void" in words or "none" in words:
        return []
    return ["all"] if "all" in words else words
