"""Checks of container engines, each made for every engine that is looked at. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from grit_runtime.doctor.facts import Engine, Facts
from grit_runtime.doctor.model import Check, Verdict, fail, ok, skip, warn

_RESTART = {
    "containerd": "systemctl restart containerd",
    "cri-o": "systemctl restart crio",
    "k3s": "systemctl restart k3s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCheck:
    """A check of one engine."""

    id: str
    judge: Callable[[Facts, Engine], Verdict]


def engine_found(facts: Facts) -> Verdict:
    """Whether there is any engine."""
    if not facts.engines_wanted:
        return skip("not looked for")
    if not facts.engines:
        return warn("no container engine runs here", "start one, or name it with --engine")
    return ok(", ".join(engine.name for engine in facts.engines))


CHECKS = (Check(id="engine.found", judge=engine_found),)


def engine_running(_: Facts, engine: Engine) -> Verdict:
    """Whether it runs."""
    if engine.name == "podman":
        return skip("podman has no process of its own")
    if engine.pid is None:
        return warn(f"no process of {engine.name} was found", "start it, if pods are to run here")
    return ok(f"process {engine.pid}")


def engine_registered(_: Facts, engine: Engine) -> Verdict:
    """Whether its configuration names us, and lets our annotations through."""
    install = f"grit-runtime install --engine {engine.name}"
    if not engine.registered:
        why = f": {'; '.join(engine.problems)}" if engine.problems else ""
        return fail(
            f"{engine.name} doesn't know the runtime, or otherwise than `install` writes it{why}", install, install
        )
    if engine.problems:
        return fail(f"{engine.name}: {'; '.join(engine.problems)}", "put that right in its configuration")
    return ok(f"{engine.name}'s configuration has the runtime and its annotations")


def engine_restart(_: Facts, engine: Engine) -> Verdict:
    """Whether it has read the configuration that is there."""
    command = _RESTART.get(engine.name)
    if engine.pid is None or command is None:
        return skip("it reads its configuration by itself" if command is None else "it doesn't run")
    if engine.restart:
        return warn(f"{engine.name} was started before its configuration was changed", command, command)
    return ok(f"{engine.name} was started after its configuration was changed")


def engine_path(_: Facts, engine: Engine) -> Verdict:
    """Programs that the runtime looks for in the PATH that the engine gives it."""
    whose = f"{engine.name}'s process" if engine.pid is not None else "this call"
    if engine.missing:
        return fail(
            f"{', '.join(engine.missing)} is not in the PATH of {whose}: {engine.path}",
            f"set Environment=PATH=... in a drop-in of {engine.name}'s unit, or link the program to /usr/local/sbin",
        )
    return ok(f"everything is in the PATH of {whose}")


ENGINE_CHECKS = (
    EngineCheck(id="engine.running", judge=engine_running),
    EngineCheck(id="engine.registered", judge=engine_registered),
    EngineCheck(id="engine.restart", judge=engine_restart),
    EngineCheck(id="engine.path", judge=engine_path),
)
