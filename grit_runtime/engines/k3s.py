"""k3s: it renders containerd's configuration at each start, from a template where there is one.

docs.k3s.io, advanced, "Configuring containerd": `config-v3.toml.tmpl` for containerd 2, `config.toml.tmpl` for older
ones, and `{{ template "base" . }}` for what k3s would have written. Newer ones also import `config-v3.toml.d/*.toml`.
"""

from grit_runtime.engines import containerd, mark
from grit_runtime.engines.plan import Plan, Request, Tree, read_toml, toml_table

_ETC = "/var/lib/rancher/k3s/agent/etc/containerd"
MAIN = f"{_ETC}/config.toml"
_TEMPLATES = {2: f"{_ETC}/config.toml.tmpl", 3: f"{_ETC}/config-v3.toml.tmpl"}
_RESTART = "systemctl restart k3s (k3s-agent on an agent)"
# A field of what k3s renders its templates with (k3s pkg/agent/templates, ContainerdConfig).
_SYSTEMD = "{{ .SystemdCgroup }}"


def plan(tree: Tree, request: Request) -> Plan:
    """A drop-in where k3s imports some, else a template of ours, which is k3s's own with the handler behind it."""
    rendered = tree.read(MAIN)
    config = read_toml(rendered, MAIN) if rendered is not None else {}
    version = 3 if config.get("version", 3) == 3 else 2
    if version == 3 and any(f"{_ETC}/config-v3.toml.d/" in pattern for pattern in config.get("imports", [])):
        return containerd.plan(tree, request, main=MAIN, restart=_RESTART)
    path = _TEMPLATES[version]
    notes = () if rendered is not None else (f"{MAIN} is not there: taken for k3s 1.31.6, 1.32.2 or newer",)
    return Plan(path=path, text=mark.marked(_template(version, request)), restart=_RESTART, notes=notes)


def places(tree: Tree, name: str) -> tuple[str, ...]:
    """The drop-in and both templates: k3s may have been updated since."""
    return (*containerd.places(tree, name, main=MAIN), *_TEMPLATES.values())


def _template(version: int, request: Request) -> str:
    handler = containerd.handler({}, request)
    options = handler.pop("options")
    path = ("plugins", containerd.SECTION[version], "containerd", "runtimes", request.name)
    return (
        '{{ template "base" . }}\n\n'
        + toml_table(path, handler)
        + "\n"
        + toml_table((*path, "options"), options)
        + f"SystemdCgroup = {_SYSTEMD}\n"
    )
