"""`kubectl grit checkpoint|restore|status|drain`: what `kubectl apply` and `kubectl get` do, in one command.

A plugin of kubectl's: a program of this name in PATH. It has kubectl make every request, with the context, the
credentials and the namespace that the user has there. Standard library only.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from grit_runtime.agent import words

_CAPTURED = frozenset({words.CHECKPOINTED, words.SUBMITTING, words.SUBMITTED})
_GONE = frozenset({words.SUBMITTED})
_RESTORED = frozenset({words.RESTORED})


def main(arguments: list[str]) -> int:
    """Do it; the exit code is kubectl's, 1 for one that failed, and 124 for one that wasn't done in time."""
    options = _parser().parse_args(arguments)
    given = [f"--{name}={value}" for name in ("namespace", "context", "kubeconfig") if (value := vars(options)[name])]
    if options.command == "status":
        return _status(given, options.kind, options.name)
    if options.command == "drain":
        return _drain(given, options)
    made = _checkpoint(options) if options.command == "checkpoint" else _restore(options)
    code = _create(given, made)
    if code or not options.wait:
        return code
    deadline = time.monotonic() + options.timeout
    if made["kind"] == words.RESTORE:
        return _wait(given, made, _RESTORED, deadline)
    return _wait(given, made, _GONE if options.migrate or options.stop else _CAPTURED, deadline)


def _create(given: list[str], made: dict[str, Any]) -> int:
    argv = ["kubectl", *given, "create", "-f", "-"]
    return subprocess.run(argv, input=json.dumps(made), text=True, check=False).returncode


def _drain(given: list[str], options: argparse.Namespace) -> int:
    """Have the pods of a node that can be restored go on elsewhere; the others are `kubectl drain`'s."""
    if subprocess.run(["kubectl", *given, "cordon", options.node], check=False).returncode:
        return 1
    argv = ["kubectl", *given, "get", "pods", "--all-namespaces", "--selector", f"{words.OPT_IN}=true"]
    argv += ["--field-selector", f"spec.nodeName={options.node},status.phase=Running", "-o", "json"]
    listed = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode:
        return 1
    made = [_of_drain(pod, options) for pod in json.loads(listed.stdout)["items"] if _moves(pod)]
    code, waiting = 0, []
    for one in made:
        where = [*given, f"--namespace={one['metadata']['namespace']}"]
        if _create(where, one):
            code = 1
        else:
            waiting.append((where, one))
    deadline = time.monotonic() + options.timeout
    for where, one in waiting:
        code = _wait(where, one, _GONE, deadline) or code
    sys.stderr.write(
        f"{options.node}: a pod that isn't captured has stayed, and runs on, or its data is here alone\n" if code else
        f"{options.node}: pods that were captured, to go on elsewhere: {len(made)}; now kubectl drain {options.node}\n"
    )  # fmt: skip
    return code


def _moves(pod: dict[str, Any]) -> bool:
    """Whether its owner makes another one, on another node."""
    owners = pod["metadata"].get("ownerReferences") or []
    replaced = any(owner.get("controller") and owner["kind"] != "DaemonSet" for owner in owners)
    return replaced and not pod["metadata"].get("deletionTimestamp")


def _of_drain(pod: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    meta = pod["metadata"]
    registry = f"{options.registry}/{meta['namespace']}" if options.registry else None
    spec = {"podName": meta["name"], "autoMigration": True, **_kept(options.claim, registry)}
    made = _object(words.CHECKPOINT, f"{meta['name'][:50].rstrip('.-')}-{meta['uid'][:8]}", spec)
    made["metadata"]["namespace"] = meta["namespace"]
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kubectl grit", description="Checkpoint and restore pods.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-n", "--namespace", default="")
    common.add_argument("--context", default="")
    common.add_argument("--kubeconfig", default="")
    making = argparse.ArgumentParser(add_help=False)
    making.add_argument("--wait", action="store_true", help="until it is done; exits with 1 if it failed")
    making.add_argument("--timeout", type=float, default=600, help="seconds to wait [600]; then it exits with 124")
    making.add_argument("--ttl", type=int, help="seconds after which it is deleted once it is done")
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoint = commands.add_parser("checkpoint", parents=[common, making], help="capture a pod")
    checkpoint.add_argument("pod")
    checkpoint.add_argument("--name", help="the Checkpoint's [the pod's]")
    kept = checkpoint.add_mutually_exclusive_group()
    kept.add_argument("--claim", help="the volume claim where the data is kept for other nodes")
    kept.add_argument(
        "--registry",
        metavar="HOST/PATH[:TAG]",
        help="the same in a registry; the agents say which paths a namespace has",
    )
    checkpoint.add_argument("--migrate", action="store_true", help="delete the pod, and have its replacement go on")
    checkpoint.add_argument("--stop", action="store_true", help="delete the pod")
    restore = commands.add_parser("restore", parents=[common, making], help="have a pod start from a checkpoint")
    restore.add_argument("checkpoint")
    restore.add_argument("--name", help="the Restore's [the Checkpoint's]")
    restore.add_argument("-l", "--selector", required=True, help="labels of the pod, NAME=VALUE,...")
    restore.add_argument("--cold-start", action="store_true", help="let the pod start from scratch if it must")
    drain = commands.add_parser(
        "drain", parents=[common], help="cordon a node, and have its pods with grit.dev/restorable=true go on elsewhere"
    )
    drain.add_argument("node")
    kept = drain.add_mutually_exclusive_group(required=True)
    kept.add_argument("--claim", help="the volume claim by which other nodes get the data")
    kept.add_argument("--registry", metavar="HOST[/PREFIX]", help="the registry, as the agents have it; by namespace")
    drain.add_argument("--timeout", type=float, default=1800, help="seconds for all [1800]; then it exits with 124")
    status = commands.add_parser("status", parents=[common], help="what there is, or how one stands, and why")
    status.add_argument("kind", nargs="?", choices=["checkpoint", "restore"])
    status.add_argument("name", nargs="?")
    return parser


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": words.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    spec: dict[str, Any] = {"podName": options.pod, **_kept(options.claim, options.registry)}
    if options.migrate:
        spec["autoMigration"] = True
    if options.stop:
        spec["leaveRunning"] = False
    return _object(words.CHECKPOINT, options.name or options.pod, _with_ttl(spec, options.ttl))


def _kept(claim: str | None, registry: str | None) -> dict[str, Any]:
    """Where the data is kept for other nodes."""
    if registry:
        return {"registry": {"reference": registry}}
    return {"volumeClaim": {"claimName": claim}} if claim else {}


def _restore(options: argparse.Namespace) -> dict[str, Any]:
    labels = dict(word.partition("=")[::2] for word in options.selector.split(","))
    spec: dict[str, Any] = {"checkpointName": options.checkpoint, "selector": {"matchLabels": labels}}
    if options.cold_start:
        spec["onFailure"] = words.COLD_START
    return _object(words.RESTORE, options.name or options.checkpoint, _with_ttl(spec, options.ttl))


def _with_ttl(spec: dict[str, Any], ttl: int | None) -> dict[str, Any]:
    return spec if ttl is None else {**spec, "ttlSecondsAfterFinished": ttl}


def _status(given: list[str], kind: str | None, name: str | None) -> int:
    if name is None:
        wanted = (
            f"{kind}s.{words.GROUP}" if kind else f"{words.CHECKPOINTS}.{words.GROUP},{words.RESTORES}.{words.GROUP}"
        )
        return subprocess.run(["kubectl", *given, "get", wanted], check=False).returncode
    found = _found(given, f"{kind}s.{words.GROUP}", name)
    if found is None:
        return 1
    _say(found)
    return 0


def _found(given: list[str], resource: str, name: str) -> dict[str, Any] | None:
    argv = ["kubectl", *given, "get", resource, name, "-o", "json"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def _say(found: dict[str, Any]) -> None:
    status = found.get("status") or {}
    lines = [f"{found['kind']} {found['metadata']['name']}: {status.get('phase', words.CREATED)}"]
    for name in ("nodeName", "targetPod", "bytes", "storedBytes", "bytesPerSecond", "image"):
        if status.get(name) not in (None, ""):
            lines.append(f"  {name}: {status[name]}")
    for entry in status.get("conditions") or []:
        lines.append(f"  {entry['type']}={entry['status']} {entry['reason']}: {entry['message']}")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _wait(given: list[str], made: dict[str, Any], done: frozenset[str], deadline: float) -> int:
    """Until its phase is one of `done` and, if its data is to be kept elsewhere, it is: a node may go then."""
    kind, name, last = made["kind"], made["metadata"]["name"], ""
    kept = "volumeClaim" in made["spec"] or "registry" in made["spec"]
    while time.monotonic() < deadline:
        found = _found(given, f"{kind.lower()}s.{words.GROUP}", name)
        if found is None:
            return 1
        status = found.get("status") or {}
        phase = status.get("phase", "")
        stored: dict[str, Any] = next((e for e in status.get("conditions") or [] if e["type"] == words.STORED), {})
        failed = phase == words.FAILED or stored.get("reason") == "DataLost"
        if failed or (phase in done and (not kept or stored.get("status") == "True")):
            _say(found)
            return int(failed)
        line = phase or words.CREATED
        if phase in done and stored:
            line += f", {stored['reason']}: {stored['message']}"
        if line != last:
            sys.stderr.write(f"{kind} {name}: {line}\n")
            last = line
        time.sleep(1)
    sys.stderr.write(f"kubectl grit: {kind} {name} is not done in time\n")
    return 124


def console() -> None:
    """The script `kubectl-grit`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
