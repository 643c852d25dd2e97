"""podman: a drop-in of containers.conf (containers-common, containers.conf.5: `containers.conf.d/*.conf`)."""

from grit_runtime.engines import mark
from grit_runtime.engines.plan import Plan, Request, Tree, toml_table


def plan(_: Tree, request: Request) -> Plan:
    """A table of runtimes is merged by its keys: the others stay (seen with podman 4.3.1)."""
    text = mark.marked(toml_table(("engine", "runtimes"), {request.name: [request.binary]}))
    return Plan(
        path=_path(request.name),
        text=text,
        restart=f"nothing: podman reads it at each call; `podman --runtime {request.name} run ...`",
    )


def places(_: Tree, name: str) -> tuple[str, ...]:
    """Where `plan` writes."""
    return (_path(name),)


def _path(name: str) -> str:
    return f"/etc/containers/containers.conf.d/90-{name}.conf"
