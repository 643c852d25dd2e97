"""The custom resource definitions: structural, as the file in the examples, and right for GRIT's own manifests."""

from typing import Any

import jsonschema
import pytest
import yaml

from grit_runtime.agent import crds, words
from tests.requirements import ROOT
from tests.unit import agentobjects as objects

FILE = ROOT / "examples/kubernetes/agent/crds.yaml"
DEFINITIONS = {found["spec"]["names"]["kind"]: found for found in crds.definitions()}

# kaito-project/grit, examples/checkpoint-auto-migration.yaml and checkpoint.yaml, and a Restore as its controller makes
# one, with the group changed.
GRITS = """
apiVersion: grit.dev/v1alpha1
kind: Checkpoint
metadata: {name: checkpoint-demo, namespace: default}
spec:
  autoMigration: true
  podName: "falcon7b-tuning-fsczs"
  volumeClaim: {claimName: "checkpoint-pvc"}
---
apiVersion: grit.dev/v1alpha1
kind: Checkpoint
metadata: {name: demo, namespace: default}
spec:
  autoMigration: false
  podName: "falcon7b-tuning-fsczs"
  volumeClaim: {claimName: "ckpt-store"}
---
apiVersion: grit.dev/v1alpha1
kind: Restore
metadata: {name: demo, namespace: default}
spec:
  checkpointName: demo
  ownerRef: {apiVersion: batch/v1, kind: Job, name: falcon7b-tuning, uid: 0d5c9c0e, controller: true}
"""


def _schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = DEFINITIONS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_the_file_is_what_the_definitions_say() -> None:
    assert FILE.read_text() == crds.text(), "run `make crds`"
    assert [found for found in yaml.safe_load_all(FILE.read_text()) if found] == list(DEFINITIONS.values())


_KNOWN = {
    "type", "description", "properties", "required", "items", "enum", "default", "format", "pattern", "minLength",
    "maxLength", "minimum", "maxItems", "maxProperties", "additionalProperties", "x-kubernetes-validations",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
}  # fmt: skip


def _structural(schema: dict[str, Any], path: str) -> None:
    """The rules of apiextensions for a structural schema, as far as ours can break them."""
    assert set(schema) <= _KNOWN, path
    assert schema.get("type") in ("object", "array", "string", "integer", "boolean"), path
    assert not ("properties" in schema and "additionalProperties" in schema), path
    if schema["type"] == "array":
        assert "items" in schema, path
    assert set(schema.get("required", [])) <= set(schema.get("properties", {})), path
    if "default" in schema:
        jsonschema.validate(schema["default"], schema)
    for name, inner in schema.get("properties", {}).items():
        _structural(inner, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if inner is not None:
            _structural(inner, f"{path}[]")


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_schema_is_structural(kind: str) -> None:
    _structural(_schema(kind), kind)
    assert set(_schema(kind)["properties"]["metadata"]["properties"]) <= {"name", "generateName"}


@pytest.mark.needs("kubernetes-validate")
@pytest.mark.parametrize("version", ["1.31", "1.35"])
@pytest.mark.parametrize("kind", DEFINITIONS)
def test_the_definition_is_valid(kind: str, version: str) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(DEFINITIONS[kind], version, strict=True)


@pytest.mark.parametrize("found", list(yaml.safe_load_all(GRITS)), ids=lambda found: found["metadata"]["name"])
def test_manifests_of_grit_are_valid_in_our_group(found: dict[str, Any]) -> None:
    jsonschema.validate(found, _schema(found["kind"]))
    spec = _schema(found["kind"])["properties"]["spec"]["properties"]
    assert set(found["spec"]) <= set(spec)  # nothing would be pruned


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Checkpoint", {}),
        ("Checkpoint", {"podName": "../other"}),
        ("Checkpoint", {"podName": "default/web"}),
        ("Checkpoint", {"podName": "web", "volumeClaim": {}}),
        ("Checkpoint", {"podName": "web", "volumeClaim": {"claimName": "../../etc"}}),
        ("Checkpoint", {"podName": "web", "ttlSecondsAfterFinished": -1}),
        ("Restore", {"ownerRef": {}}),
        ("Restore", {"checkpointName": "other/one", "selector": {}}),
        ("Restore", {"checkpointName": "one", "onFailure": "Perhaps"}),
    ],
)
def test_what_names_something_else_is_not_valid(kind: str, spec: dict[str, Any]) -> None:
    found = {"apiVersion": words.API_VERSION, "kind": kind, "metadata": {"name": "one"}, "spec": spec}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, _schema(kind))


def test_the_phases_are_those_of_the_states() -> None:
    for kind, phases in (("Checkpoint", words.CHECKPOINT_PHASES), ("Restore", words.RESTORE_PHASES)):
        assert _schema(kind)["properties"]["status"]["properties"]["phase"]["enum"] == list(phases)
    jsonschema.validate(objects.checkpoint(), _schema("Checkpoint"))
    jsonschema.validate(objects.restore(), _schema("Restore"))
