"""Checks of NVIDIA's part: driver, GPUs, devices. Pure."""

from grit_runtime import names
from grit_runtime.cuda.gpus import COMPUTE_EXCLUSIVE_PROCESS, COMPUTE_PROHIBITED
from grit_runtime.doctor.facts import Facts
from grit_runtime.doctor.model import Check, Verdict, fail, ok, skip, warn
from grit_runtime.inspection import words

_API_DRIVER, _MAPS_DEVICES = 570, 580  # the first drivers that have the API, and a map of devices


def gpu_api(facts: Facts) -> Verdict:
    """Who brings CUDA into memory."""
    gpus = facts.gpus
    if not gpus.present:
        return skip("no NVIDIA GPU")
    if gpus.error:
        return fail(gpus.error, f"install driver {_API_DRIVER} or newer, or cuda-checkpoint (docs/gpu.md)")
    how = f", at {gpus.program}" if gpus.by == names.CUDA_PROGRAM else ""
    return ok(f"CUDA's process checkpoint API answers, by {gpus.by}{how}")


def gpu_driver(facts: Facts) -> Verdict:
    """The driver's version, and what it lacks."""
    gpus = facts.gpus
    if not gpus.present:
        return skip("no NVIDIA GPU")
    if gpus.node is None:
        return warn(
            "NVML doesn't answer: GPUs, free memory and what comes back can't be checked",
            "install the driver's libnvidia-ml.so.1, and see that `nvidia-smi` works",
        )
    if gpus.node.branch < _MAPS_DEVICES:
        return warn(
            f"driver {gpus.node.driver} restores a container on the GPUs that it had only",
            f"install driver {_MAPS_DEVICES} or newer for others",
        )
    return ok(f"driver {gpus.node.driver}, {words.count(len(gpus.node.gpus), 'GPU')}")


def gpu_state(facts: Facts) -> Verdict:
    """What on the GPUs keeps CUDA from being restored."""
    node = facts.gpus.node
    if node is None:
        return skip("no NVIDIA GPU, or NVML doesn't answer")
    bad = []
    for gpu in node.gpus:
        bad += [f"GPU {gpu.index} is in MIG mode"] if gpu.mig else []
        bad += [f"GPU {gpu.index} is served by MPS"] if gpu.mps_clients else []
        bad += [f"GPU {gpu.index} is in compute mode Prohibited"] if gpu.compute_mode == COMPUTE_PROHIBITED else []
    if bad:
        return fail("; ".join(bad), "keep containers that are to be restored off these GPUs (docs/gpu.md)")
    single = [f"GPU {gpu.index}" for gpu in node.gpus if gpu.compute_mode == COMPUTE_EXCLUSIVE_PROCESS]
    if single:
        return warn(
            f"{', '.join(single)} in compute mode Exclusive_Process: one process each",
            "nothing, if containers have one CUDA process",
        )
    slow = [f"GPU {gpu.index}" for gpu in node.gpus if not gpu.persistence]
    if slow:
        return warn(
            f"{', '.join(slow)} not in persistence mode: the first use takes seconds",
            "run nvidia-persistenced",
            "systemctl enable --now nvidia-persistenced",
        )
    return ok("no GPU is in a mode that forbids it")


def gpu_devices(facts: Facts) -> Verdict:
    """Who gives containers their devices (docs/devices.md)."""
    gpus, config = facts.gpus, facts.config
    if not gpus.present:
        return skip("no NVIDIA GPU")
    if config.devices == names.DEVICES_NONE:
        return ok("nobody gives devices, by the configuration (`devices`)")
    if gpus.cdi_errors:
        return warn(
            f"CDI specifications: {'; '.join(gpus.cdi_errors[:3])}", "write them anew with nvidia-ctk cdi generate"
        )
    if gpus.cdi or gpus.toolkit:
        return ok(", ".join([*gpus.toolkit, *([f"CDI: {', '.join(gpus.cdi[:4])}"] if gpus.cdi else [])]))
    return warn(
        f"no CDI specification in {', '.join(config.cdi_spec_dirs)}, and no NVIDIA container toolkit",
        "install the toolkit, or have the specification written",
        "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    )


def gpu_huge_pages(facts: Facts) -> Verdict:
    """Device memory is copied several times faster into huge pages."""
    if not facts.gpus.present:
        return skip("no NVIDIA GPU")
    setting = facts.kernel.huge_pages
    if facts.config.cuda.huge_pages == names.HUGE_NEVER:
        return ok("not used, by the configuration (`cuda.huge-pages`)")
    if setting in ("always", "madvise"):
        return ok(f"transparent huge pages are to be had ({setting})")
    return warn(
        f"transparent huge pages are {setting or 'missing'}: device memory is copied more slowly",
        "set them to madvise",
        "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled",
    )


CHECKS = (
    Check(id="gpu.api", judge=gpu_api),
    Check(id="gpu.driver", judge=gpu_driver),
    Check(id="gpu.state", judge=gpu_state),
    Check(id="gpu.devices", judge=gpu_devices),
    Check(id="gpu.huge-pages", judge=gpu_huge_pages),
)
