"""All specs of a node, and which of them a device is taken from (pkg/cdi/cache.go, refresh and InjectDevices)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grit_runtime.cdi import spec as specs
from grit_runtime.cdi.spec import Spec
from grit_runtime.errors import CdiError

_MOST_FILES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Devices by their qualified names, and what is wrong with the specs that can't be used."""

    devices: dict[str, Spec]
    errors: list[str]

    def edits(self, devices: Sequence[str]) -> list[dict[str, Any]]:
        """The edits of these devices, each spec's own before those of its first device."""
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        for device in devices:
            spec = self.devices[device]
            if spec.path not in seen:
                seen.add(spec.path)
                found.append(spec.edits)
            found.append(spec.devices[device.partition("=")[2]])
        return found


def scan(directories: Sequence[str]) -> Registry:
    """Read every spec. One that isn't valid keeps no other from being used. A device that two specs of one directory
    have is nobody's.
    """
    devices: dict[str, tuple[int, Spec]] = {}
    conflicts: set[str] = set()
    errors: list[str] = []
    for priority, directory in enumerate(directories):
        for path in _files(directory):
            try:
                spec = specs.read(path)
            except CdiError as err:
                errors.append(str(err))
                continue
            for name in (f"{spec.kind}={device}" for device in spec.devices):
                there = devices.get(name)
                if there and there[0] == priority:
                    errors.append(f"{name} is in {there[1].path} and in {path}")
                    conflicts.add(name)
                else:
                    devices[name] = (priority, spec)
    return Registry(devices={name: spec for name, (_, spec) in devices.items() if name not in conflicts}, errors=errors)


def _files(directory: str) -> list[str]:
    try:
        found = sorted(name for name in os.listdir(directory) if name.endswith(specs.SUFFIXES))
    except OSError:
        return []
    paths = [os.path.join(directory, name) for name in found[:_MOST_FILES]]
    return [path for path in paths if not os.path.isdir(path) or os.path.islink(path)]
