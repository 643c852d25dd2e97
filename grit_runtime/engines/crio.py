"""CRI-O: a drop-in (crio.conf.d.5).

A pod's annotations reach config.json by themselves: CRI-O's `allowed_annotations` filters its own ones only, and CRI-O
does not start if another stands there (cri-o pkg/config, validateAllowedAndGenerateDisallowedAnnotations).
CDI is always on.
"""

from grit_runtime.engines import mark
from grit_runtime.engines.plan import Plan, Request, Tree, toml_table


def plan(_: Tree, request: Request) -> Plan:
    """A handler of its own; a table of runtimes is merged by its keys, and the default runtime stays what it is."""
    handler = {"runtime_path": request.binary, "runtime_type": "oci", "runtime_root": f"/run/{request.name}"}
    text = mark.marked(toml_table(("crio", "runtime", "runtimes", request.name), handler))
    return Plan(path=_path(request.name), text=text, restart="systemctl restart crio")


def places(_: Tree, name: str) -> tuple[str, ...]:
    """Where `plan` writes."""
    return (_path(name),)


def _path(name: str) -> str:
    return f"/etc/crio/crio.conf.d/90-{name}.conf"
