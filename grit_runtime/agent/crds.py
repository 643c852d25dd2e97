"""The custom resource definitions, by one description. `python -m grit_runtime.agent.crds` prints them.

Fields and phases are GRIT's (kaito-project/grit, pkg/apis/v1alpha1): its manifests are valid once their group is
changed. What is ours besides stands in docs/kubernetes.md.
"""

from typing import Any

from grit_runtime.agent import schemas, words


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}


_REASON = _column("Reason", '.status.conditions[?(@.type=="Ready")].reason')
_AGE = _column("Age", ".metadata.creationTimestamp", "date")


def _definition(
    kind: str,
    plural: str,
    short: list[str],
    spec: schemas.Schema,
    status: schemas.Schema,
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": short,
        "categories": ["grit"],
    }
    schema = schemas.an_object(
        f"{kind}: see docs/kubernetes.md.",
        {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                # A pod's label holds it.
                "properties": {"name": {"type": "string", "maxLength": 63}},
            },
            "spec": spec,
            "status": status,
        },
        required=["spec"],
    )
    version = {
        "name": words.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{words.GROUP}"},
        "spec": {"group": words.GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of Checkpoint and Restore."""
    pod, phase, node = (
        _column("Pod", ".spec.podName"),
        _column("Phase", ".status.phase"),
        _column("Node", ".status.nodeName"),
    )
    return [
        _definition(
            words.CHECKPOINT,
            words.CHECKPOINTS,
            ["cp", "cps"],
            schemas.CHECKPOINT_SPEC,
            schemas.CHECKPOINT_STATUS,
            [pod, phase, _REASON, node, _column("Bytes", ".status.bytes", "integer", 1), _AGE],
        ),
        _definition(
            words.RESTORE,
            words.RESTORES,
            ["rt"],
            schemas.RESTORE_SPEC,
            schemas.RESTORE_STATUS,
            [
                _column("Checkpoint", ".spec.checkpointName"),
                _column("Pod", ".status.targetPod"),
                phase,
                _REASON,
                node,
                _AGE,
            ],
        ),
    ]


def text() -> str:
    """Both as YAML (JSON is YAML, but nobody reads it)."""
    from grit_runtime.documents import dump_yaml

    head = "# Written by `make crds`, from grit_runtime/agent/crds.py.\n"
    return head + "".join(f"---\n{dump_yaml(definition)}" for definition in definitions())


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 - a program that prints
