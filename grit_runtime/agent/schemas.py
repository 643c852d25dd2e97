"""What the fields of a Checkpoint and of a Restore are: OpenAPI schemas, structural, as apiextensions wants them."""

from typing import Any

from grit_runtime.agent import reference, words

Schema = dict[str, Any]

_NAME = {"type": "string", "minLength": 1, "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
_IMMUTABLE = [{"rule": "self == oldSelf", "message": "spec is immutable: make another object"}]


def _string(description: str, **more: Any) -> Schema:
    return {"description": description, "type": "string", **more}


def an_object(description: str, properties: dict[str, Schema], **more: Any) -> Schema:
    return {"description": description, "type": "object", "properties": properties, **more}


def _integer(description: str) -> Schema:
    return {"description": description, "type": "integer", "format": "int64", "minimum": 0}


def _time(description: str) -> Schema:
    return _string(description, format="date-time")


_CONDITIONS: Schema = {
    "description": "The observations of the state, with their reasons.",
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
            "message": {"type": "string", "maxLength": 32768},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        },
    },
}

_TTL = _integer("Seconds after which a finished one is deleted, and its data with it; without it, never.")

CHECKPOINT_SPEC = an_object(
    "What is captured, and what becomes of it.",
    {
        "podName": {**_NAME, "description": "The pod, of this namespace. Every container of it is captured."},
        "volumeClaim": an_object(
            "Where the data is kept for other nodes: a claim that the agent has mounted. Without it the data is on the "
            "pod's node alone.",
            {"claimName": {**_NAME, "description": "Its name."}, "readOnly": {"type": "boolean"}},
            required=["claimName"],
        ),
        "registry": an_object(
            "Where the data is kept for other nodes, in place of a volume claim: a registry that the agent uses.",
            {
                "reference": _string(
                    "HOST[:PORT]/PATH[:TAG], in a place for this namespace. The tag is the Checkpoint's name if there "
                    "is none.",
                    maxLength=reference.MOST,
                    pattern=reference.PATTERN,
                )
            },
            required=["reference"],
        ),
        "autoMigration": {
            "description": "Delete the pod once it is captured, and have the pod by which its owner replaces it start "
            "from there.",
            "type": "boolean",
        },
        "leaveRunning": {
            "description": "Whether the pod runs on. False deletes it once it is captured, as autoMigration does.",
            "type": "boolean",
            "default": True,
        },
        "ttlSecondsAfterFinished": _TTL,
    },
    required=["podName"],
    **{
        "x-kubernetes-validations": [
            *_IMMUTABLE,
            {
                "rule": "!(has(self.volumeClaim) && has(self.registry))",
                "message": "the data is kept in a volumeClaim or in a registry, not in both",
            },
        ]
    },
)

_CONTAINER = an_object(
    "A container's checkpoint.",
    {
        "name": _string("The container's name."),
        "bytes": _integer("What its files have."),
        "digest": _string("SHA-256 of its manifest, which lists its files with their checksums."),
    },
    required=["name"],
)

CHECKPOINT_STATUS = an_object(
    "What was seen.",
    {
        "phase": _string("Where it stands.", enum=list(words.CHECKPOINT_PHASES)),
        "nodeName": _string("The node of the pod, which has the data."),
        "podUID": _string("The pod's UID: one of the same name is another."),
        "podSpecHash": _string("A pod must have this to be restored from here."),
        "dataPath": _string("Where the data lies below the node's checkpoint root, and in the volume."),
        "image": _string("The image in the registry, by its digest: HOST[:PORT]/PATH@sha256:..."),
        "containers": {"description": "What was captured.", "type": "array", "items": _CONTAINER},
        "bytes": _integer("What all have."),
        "storedBytes": _integer("What of it is in the volume or the registry."),
        "bytesPerSecond": _integer("The rate of that copy."),
        "startTime": _time("When the capture began."),
        "completionTime": _time("When it was complete, or had failed."),
        "conditions": _CONDITIONS,
    },
)

RESTORE_SPEC = an_object(
    "Which pod starts from which checkpoint.",
    {
        "checkpointName": {**_NAME, "description": "A Checkpoint of this namespace."},
        "ownerRef": an_object(
            "The owner of the pod, such as a ReplicaSet or a Job: the next pod of it whose spec is the captured pod's.",
            {
                "apiVersion": {"type": "string", "maxLength": 253},
                "kind": {"type": "string", "maxLength": 253},
                "name": {"type": "string", "maxLength": 253},
                "uid": {"type": "string", "maxLength": 253},
                "controller": {"type": "boolean"},
                "blockOwnerDeletion": {"type": "boolean"},
            },
            required=["apiVersion", "kind", "name", "uid"],
        ),
        "selector": an_object(
            "Labels of the pod, for one without an owner.",
            {
                "matchLabels": {
                    "type": "object",
                    "maxProperties": 64,
                    "additionalProperties": {"type": "string", "maxLength": 63},
                },
                "matchExpressions": {
                    "type": "array",
                    "maxItems": 16,
                    "items": {
                        "type": "object",
                        "required": ["key", "operator"],
                        "properties": {
                            "key": {"type": "string", "maxLength": 316},
                            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                            "values": {
                                "type": "array",
                                "maxItems": 64,
                                "items": {"type": "string", "maxLength": 63},
                            },
                        },
                    },
                },
            },
        ),
        "onFailure": {
            "description": "If the pod can't be restored: it waits and is tried again, or starts from scratch.",
            "type": "string",
            "enum": [words.WAIT, words.COLD_START],
            "default": words.WAIT,
        },
        "ttlSecondsAfterFinished": _TTL,
    },
    required=["checkpointName"],
    **{
        "x-kubernetes-validations": [
            *_IMMUTABLE,
            {
                "rule": "has(self.ownerRef) || has(self.selector)",
                "message": "say by ownerRef or selector which pod it is",
            },
        ]
    },
)

RESTORE_STATUS = an_object(
    "What was seen.",
    {
        "phase": _string("Where it stands.", enum=list(words.RESTORE_PHASES)),
        "targetPod": _string("The pod that was chosen."),
        "nodeName": _string("Its node."),
        "containers": {
            "description": "With onFailure ColdStart: whether each goes on from the checkpoint, or has started from "
            "scratch.",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "restored": {"type": "boolean"}},
            },
        },
        "startTime": _time("When the pod was chosen."),
        "completionTime": _time("When it ran, or had failed."),
        "conditions": _CONDITIONS,
    },
)
