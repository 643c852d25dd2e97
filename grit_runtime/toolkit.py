"""NVIDIA's container toolkit: what its runtime would make of a config.json, and its hooks.

The runtime edits config.json at `create` only, and passes `restore` on as it came (internal/runtime/runtime_factory.go,
HasCreateSubcommand). So that the new container has at its restore what it would have had at its creation, the runtime
is called for `create` here, on a copy of config.json, with a low-level runtime that does nothing.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from grit_runtime import documents
from grit_runtime.errors import DownstreamError
from grit_runtime.host import files, run
from grit_runtime.oci import log

RUNTIME = "nvidia-container-runtime"
CONFIG = "/etc/nvidia-container-runtime/config.toml"
# Who makes its hooks (internal/modifier/hook_remover.go); the second name is that of the first before 1.14.
HOOKS = ("nvidia-container-runtime-hook", "nvidia-container-toolkit", "nvidia-cdi-hook", "nvidia-ctk")
_MAX_BYTES = 16 << 20
# Where there is none of these in config.json, nobody asks for devices.
_SIGNS = (b"nvidia", b"NVIDIA", b"cdi.k8s.io")
_CONTAINER = "grit-runtime-dry-run"
_SECTION = "nvidia-container-runtime"
# Where it looks for its configuration (api/config/v1/config.go); the first since 1.18.
_CONFIG_FILE = "NVIDIA_CTK_CONFIG_FILE_PATH"
_CONFIG_HOME = "XDG_CONFIG_HOME"
_RELATIVE = "nvidia-container-runtime/config.toml"


def is_runtime(program: str) -> bool:
    """Whether a downstream is NVIDIA's runtime, by its name: one of its modes may be a suffix of it, or `.real`."""
    return os.path.basename(program).startswith(RUNTIME)


def may_ask(raw: bytes) -> bool:
    """Whether the bytes of a config.json may ask the toolkit for something."""
    return any(sign in raw for sign in _SIGNS)


def edited(program: str, config: dict[str, Any], rootfs: str, scratch: str, *, timeout: float) -> dict[str, Any]:
    """The config.json that NVIDIA's runtime makes of `config` at `create`.

    Args:
        rootfs: the container's, absolute.
        scratch: a directory that doesn't exist yet; it is removed.
        timeout: seconds.

    Raises:
        DownstreamError: the runtime said no, or isn't what it should be.
    """
    os.mkdir(scratch, 0o700)
    try:
        return _edited(program, config, rootfs, scratch, timeout)
    except OSError as err:
        raise DownstreamError(f"{program} cannot be asked for devices: {err.filename}: {err.strerror}") from None
    finally:
        files.remove_tree(scratch)


def _edited(program: str, config: dict[str, Any], rootfs: str, scratch: str, timeout: float) -> dict[str, Any]:
    env = run.caller_environment()
    real, settings = _behind_wrapper(program, env)
    own = os.path.join(scratch, _RELATIVE)
    os.mkdir(os.path.dirname(own))
    nothing = run.find_program("true", env)
    if nothing is None:
        raise DownstreamError(f"{program} cannot be asked for devices: there is no program `true` in PATH")
    files.write_atomically(own, documents.dump_toml(_with_runtime(_read_toml(settings), nothing)).encode())
    root = {**(config.get("root") or {}), "path": rootfs}
    file, log_file = os.path.join(scratch, "config.json"), os.path.join(scratch, "log")
    files.write_atomically(file, json.dumps({**config, "root": root}).encode())
    state = os.path.join(scratch, "root")
    argv = [real, "--root", state, "--log", log_file, "--log-format", "json", "create", "--bundle", scratch, _CONTAINER]
    env |= {_CONFIG_HOME: scratch, _CONFIG_FILE: own}
    result = run.run(argv, timeout=timeout, env=env)
    if os.path.lexists(os.path.join(state, _CONTAINER)):
        run.run([real, "--root", state, "delete", "--force", _CONTAINER], timeout=timeout, env=env)
        raise DownstreamError(
            f"{program} made a container where it should only have edited config.json: it does not read the "
            "configuration that it is given",
            hint="set `downstream` to NVIDIA's program itself, not to a wrapper of it",
        )
    if not result.ok:
        said = log.last_error(files.read_text(log_file)) or (result.err.splitlines() or [result.describe()])[-1]
        raise DownstreamError(f"{program} cannot give the container its devices: {said}")
    made = files.read_json(file, _MAX_BYTES)
    if not isinstance(made, dict):
        raise DownstreamError(f"{program} made a config.json that is no JSON object")
    return {**made, "root": {**(made.get("root") or {}), "path": (config.get("root") or {}).get("path")}}


def without_hooks(config: dict[str, Any]) -> dict[str, Any]:
    """The config.json without the toolkit's hooks.

    Of all hooks runc runs `prestart` and `createRuntime` at a restore, before CRIU has mounted anything
    (libcontainer/criu_linux.go, criuNotifications, "setup-namespaces"): the toolkit's prestart hook fails there.
    """
    hooks = config.get("hooks")
    if not isinstance(hooks, dict):
        return config
    return {**config, "hooks": {name: _others(listed) for name, listed in hooks.items()}}


def with_hook(config: dict[str, Any], path: str) -> dict[str, Any]:
    """The config.json with the toolkit's prestart hook, unless it is there (internal/modifier/stable.go)."""
    hooks = config.get("hooks") or {}
    listed = list(hooks.get("prestart") or [])
    if len(_others(listed)) != len(listed):
        return config
    hook = {"path": path, "args": [os.path.basename(path), "prestart"]}
    return {**config, "hooks": {**hooks, "prestart": [*listed, hook]}}


def _others(listed: Any) -> list[Any]:
    kept: Iterable[Any] = listed if isinstance(listed, list) else []
    return [hook for hook in kept if not (isinstance(hook, dict) and os.path.basename(str(hook.get("path"))) in HOOKS)]


def _behind_wrapper(program: str, env: Mapping[str, str]) -> tuple[str, str]:
    """The program itself and its configuration: the GPU operator puts a script before `NAME.real`, which chooses the
    configuration beside it (cmd/nvidia-ctk-installer/toolkit/installer/executables.go).
    """
    real, beside = f"{program}.real", os.path.join(os.path.dirname(program), ".config", _RELATIVE)
    if os.path.isfile(real):
        return real, beside if os.path.isfile(beside) else CONFIG
    if env.get(_CONFIG_FILE):
        return program, env[_CONFIG_FILE]
    return program, os.path.join(env[_CONFIG_HOME], _RELATIVE) if env.get(_CONFIG_HOME) else CONFIG


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            return documents.load_toml(stream.read())
    except FileNotFoundError:
        return {}
    except ValueError as err:
        raise DownstreamError(f"{path} is not valid TOML: {err}") from None


def _with_runtime(settings: dict[str, Any], program: str) -> dict[str, Any]:
    section = settings.get(_SECTION)
    return {**settings, _SECTION: {**(section if isinstance(section, dict) else {}), "runtimes": [program]}}
