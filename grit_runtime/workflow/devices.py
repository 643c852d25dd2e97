"""The devices that a container asks for, at its creation and at its restore (docs/devices.md).

NVIDIA's runtime gives them at `create` only. At a restore the new container's config.json must hold them too: CRIU
takes the driver's libraries for mounts that the new container has to have, and the device cgroup is made of it.
"""

import json
import os
import stat
from dataclasses import replace
from typing import Any

from grit_runtime import cdi, names, toolkit
from grit_runtime.config import Config
from grit_runtime.downstream import Downstream
from grit_runtime.errors import BundleError, CdiError, DownstreamError, RestoreError, UnknownDeviceError
from grit_runtime.host import files, run
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow.context import Context


def at_create(config: Config, program: str, bundle: Bundle) -> str:
    """Write the devices into config.json where that is ours to do, as NVIDIA's runtime does.

    Args:
        program: the downstream's.

    Returns:
        By which way; empty if there was nothing to do.

    Raises:
        CdiError: a device is asked for that no spec knows, in the mode `cdi`.
        DownstreamError: there is no hook, in the mode `hook`.
        BundleError: config.json can't be written.
    """
    made = _edited(config, program, bundle)
    if made is None:
        return ""
    way, edited = made
    annotations = {**bundle.section("annotations"), names.DEVICES: way}
    data = json.dumps({**edited, "annotations": annotations}).encode()
    try:
        files.write_atomically(bundle.config_path, data, stat.S_IMODE(os.stat(bundle.config_path).st_mode))
    except OSError as err:
        raise BundleError(f"cannot write {bundle.config_path}: {err.strerror}") from None
    return way


def at_restore(context: Context, bundle: Bundle, scratch: str) -> Bundle:
    """The bundle as it would be after a creation, without what must not happen at a restore. The file stays as it is.

    Args:
        scratch: a directory that doesn't exist yet, for NVIDIA's runtime; it is removed.

    Raises:
        RestoreError: the devices can't be had.
    """
    config, downstream = context.config, context.downstream
    try:
        if _chained(config, downstream.program) and toolkit.may_ask(bundle.raw):
            edited = _by_toolkit(context, downstream, bundle, scratch)
        else:
            made = _edited(config, downstream.program, bundle)
            edited = made[1] if made else bundle.config
    except (CdiError, DownstreamError) as err:
        raise RestoreError(f"cannot restore container {context.container}: {err}") from None
    return replace(bundle, config=toolkit.without_hooks(edited))


def _by_toolkit(context: Context, downstream: Downstream, bundle: Bundle, scratch: str) -> dict[str, Any]:
    return toolkit.edited(
        downstream.program, bundle.config, bundle.rootfs, scratch, timeout=context.config.timeouts.command
    )


def _chained(config: Config, program: str) -> bool:
    if config.devices == names.DEVICES_AUTO:
        return toolkit.is_runtime(program)
    return config.devices == names.DEVICES_CHAIN


def _edited(config: Config, program: str, bundle: Bundle) -> tuple[str, dict[str, Any]] | None:
    """What we do ourselves: the way, and the config.json of it."""
    if _chained(config, program) or config.devices == names.DEVICES_NONE or names.DEVICES in bundle.annotations:
        return None
    wanted = cdi.requested(bundle.config)
    if not wanted:
        return None
    if config.devices == names.DEVICES_HOOK:
        hook = run.find_program(config.nvidia_hook, run.caller_environment())
        if hook is None:
            raise DownstreamError(
                f"the hook {config.nvidia_hook} is not in PATH", hint="set `nvidia-hook` in the configuration"
            )
        return names.DEVICES_HOOK, toolkit.with_hook(bundle.config, hook)
    try:
        return names.DEVICES_CDI, cdi.inject(bundle.config, wanted, config.cdi_spec_dirs)
    except UnknownDeviceError:
        if config.devices == names.DEVICES_AUTO:
            return None
        raise
