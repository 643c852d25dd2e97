"""Signs of CUDA: cheap, so that all else of it is imported for containers that have it only."""

import os

from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu.images import Images
from grit_runtime.host import proc

LIBRARY = "libcuda.so"
DEVICES = "/dev/nvidia"
PLUGIN = "cuda_plugin"


def may_use_cuda(pid: int) -> bool:
    """Whether a process has the driver's library mapped or one of its devices open. No driver is asked."""
    return proc.maps_file(pid, LIBRARY) or any(path.startswith(DEVICES) for path in proc.open_paths(pid))


def in_checkpoint(decoded: Images, manifest: Manifest | None) -> bool:
    """Whether a checkpoint may hold CUDA processes.

    Images of others count as having one as soon as CRIU's plugin was there or the driver's library is mapped: nobody
    can ask without a driver.
    """
    if manifest is not None:
        section = manifest.data.get("cuda")
        return isinstance(section, dict) and bool(section.get("processes"))
    return PLUGIN in decoded.plugins or any(LIBRARY in os.path.basename(file.path) for file in decoded.open_files)
