"""The Container Device Interface, natively: what a container asks for, what the specs on this node know, and the edits.

The result is that of the Go library which containerd, CRI-O and NVIDIA's runtime use
(tags.cncf.io/container-device-interface, pkg/cdi): shown by tests/unit/test_cdi_golden.py. Pure but for reading specs
and looking at device nodes.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from grit_runtime.cdi.request import requested
from grit_runtime.errors import UnknownDeviceError

if TYPE_CHECKING:
    from grit_runtime.cdi.edits import Node
    from grit_runtime.cdi.registry import Registry

__all__ = ["inject", "requested"]


def inject(
    config: dict[str, Any],
    devices: Sequence[str],
    directories: Sequence[str],
    look_at: "Callable[[str], Node] | None" = None,
) -> dict[str, Any]:
    """The config.json with the devices in it.

    Args:
        devices: fully qualified names, such as `nvidia.com/gpu=0`.
        directories: where the specs are; a device of a later directory takes precedence.
        look_at: what is at a path of the host; None looks.

    Raises:
        UnknownDeviceError: no spec knows one of them.
        CdiError: what a spec says of them can't be had.
    """
    from grit_runtime.cdi.edits import apply, look
    from grit_runtime.cdi.registry import scan

    registry = scan(directories)
    missing = [device for device in devices if device not in registry.devices]
    if missing:
        raise UnknownDeviceError(
            f"unresolvable CDI devices {', '.join(missing)}", hint=_why(registry, missing, directories)
        )
    return apply(config, registry.edits(devices), look_at or look)


def _why(registry: "Registry", missing: Sequence[str], directories: Sequence[str]) -> str:
    if registry.errors:
        return "; ".join(registry.errors[:3])
    kinds = {device.partition("=")[0] for device in missing}
    others = sorted(name for name in registry.devices if name.partition("=")[0] in kinds)
    if others:
        return f"known are {', '.join(others[:16])}"
    where = ", ".join(directories)
    return f"there is no spec of {', '.join(sorted(kinds))} in {where}; `nvidia-ctk cdi generate` makes one"
