"""Registering grit-runtime with a container engine: what to write for each, pure (docs/engines.md)."""

from grit_runtime.engines import containerd, crio, docker, k3s, podman
from grit_runtime.engines.plan import Engine

ENGINES: dict[str, Engine] = {
    "containerd": Engine(plan=containerd.plan, places=containerd.places),
    "cri-o": Engine(plan=crio.plan, places=crio.places),
    "podman": Engine(plan=podman.plan, places=podman.places),
    "docker": Engine(plan=docker.plan, places=docker.places, whose=docker.whose),
    "k3s": Engine(plan=k3s.plan, places=k3s.places),
}
