"""A bundle: a directory with a config.json (OCI runtime spec, bundle.md and config.md)."""

import json
import os
import stat
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.errors import BundleError

MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle as it was read: its absolute path, the bytes of config.json, and what they say."""

    path: str
    raw: bytes
    config: dict[str, Any]

    @property
    def config_path(self) -> str:
        """The file that was read."""
        return os.path.join(self.path, names.CONFIG_JSON)

    @property
    def annotations(self) -> dict[str, str]:
        """`annotations`, only those that are strings."""
        found = self.config.get("annotations")
        return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}

    @property
    def rootfs(self) -> str:
        """`root.path`, relative to the bundle (config.md, "Root")."""
        return os.path.join(self.path, str(self.section("root").get("path", "")))

    @property
    def cgroups_path(self) -> str:
        """`linux.cgroupsPath`, empty where there is none."""
        return str(self.section("linux").get("cgroupsPath") or "")

    def section(self, *keys: str) -> dict[str, Any]:
        """An object within the config, empty where there is none."""
        found: Any = self.config
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def objects(self, *keys: str) -> list[dict[str, Any]]:
        """A list of objects within the config, empty where there is none."""
        found = self.section(*keys[:-1]).get(keys[-1])
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def strings(self, *keys: str) -> list[str]:
        """A list of strings within the config, empty where there is none."""
        found = self.section(*keys[:-1]).get(keys[-1])
        return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def load(path: str) -> Bundle:
    """Read the bundle at `path`.

    Raises:
        BundleError: there is no config.json, it can't be read, is too large, or isn't a JSON object.
    """
    try:
        path = os.path.abspath(path)
    except OSError as err:
        raise BundleError(f"cannot find the bundle {path}: the working directory: {err.strerror}") from None
    file = os.path.join(path, names.CONFIG_JSON)
    try:
        # A FIFO would keep us waiting for a writer.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise BundleError(f"{file} is no file")
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(f"JSON specification file {names.CONFIG_JSON} not found in bundle {path}") from None
    except OSError as err:
        raise BundleError(f"cannot read {file}: {err.strerror}") from None
    return parse(path, raw)


def parse(path: str, raw: bytes) -> Bundle:
    """Make a bundle of the bytes of its config.json."""
    file = os.path.join(path, names.CONFIG_JSON)
    if len(raw) > MAX_CONFIG_BYTES:
        raise BundleError(f"{file} is larger than {MAX_CONFIG_BYTES >> 20} MiB")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise BundleError(f"{file} is not valid JSON: {err}") from None
    if not isinstance(config, dict):
        raise BundleError(f"{file} holds no JSON object")
    return Bundle(path=path, raw=raw, config=config)
