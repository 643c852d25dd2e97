"""A restore that was looked at, as a document and for people. Pure."""

import os
from collections.abc import Iterator
from typing import Any

from grit_runtime import names
from grit_runtime.inspection import words
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import plan
from grit_runtime.workflow.cudaplan import on_failure
from grit_runtime.workflow.facts import old_mounts
from grit_runtime.workflow.foresee import Foreseen
from grit_runtime.workflow.mounts import bind_mounts


def document(seen: Foreseen) -> dict[str, Any]:
    """What `--json` prints (docs/plan.md)."""
    request, context, made = seen.request, seen.context, _plan(seen)
    return {
        "works": seen.works,
        "problems": seen.problems,
        "warnings": seen.warnings,
        "container": context.container,
        "bundle": request.bundle.path,
        "checkpoint": request.images,
        "kind": seen.found.kind.value if seen.found else None,
        "serves": "create" if request.serves_create else "restore",
        "on_failure": _on_failure(seen),
        "downstream": {"program": context.downstream.program, "command": list(seen.command)},
        "steps": list(steps(seen)),
        "mounts": _mounts(seen),
        "rewrites": made.rewrites if made else {},
        "mountpoints": [{"base": e.base, "path": e.path, "directory": e.directory} for e in seen.mountpoints],
        "links": [{"path": link.path, "target": link.target} for link in seen.links],
        "contents": [
            {"name": part.name, "bytes": part.bytes, "target": part.target, "left_out": part.left_out}
            for part in seen.contents
        ],
        "criu": {"options": made.criu if made else {}, "configuration": seen.criu},
        "processes": [
            {"pid": process.pid, "parent": process.ppid, "threads": process.threads, "stopped": process.stopped}
            for process in (seen.survey.images.processes if seen.survey else ())
        ],
        "memory": _memory(seen),
        "cuda": _cuda(seen),
    }


def render(seen: Foreseen) -> str:
    """Plain text."""
    return "".join(f"{words.shown(line, 4000)}\n" for line in _lines(seen))


def _lines(seen: Foreseen) -> Iterator[str]:
    request, made = seen.request, _plan(seen)
    yield f"restore of {request.images or '(no checkpoint)'} as container {seen.context.container}, by {_serves(seen)}"
    yield f"  bundle       {request.bundle.path}"
    if seen.found:
        yield f"  kind         {seen.found.kind.value}"
    yield f"  downstream   {seen.context.downstream.program}"
    if request.serves_create:
        yield f"  on failure   {_on_failure(seen)}"
    yield from _section("steps", [f"{number:>3}. {text}" for number, text in enumerate(steps(seen), 1)])
    if made:
        yield from _section("mounts", list(_mount_lines(seen)))
        yield from _section("rewritten entries of images", list(_rewrites(made)))
    yield from _section("CRIU's configuration", seen.criu.splitlines())
    yield from _section("warnings", seen.warnings)
    yield from _section("problems", seen.problems)
    yield ""
    yield "it would work, as far as can be seen" if seen.works else f"it would fail: {_count(seen)}"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield title
        yield from (f"  {line}" for line in lines)


def _count(seen: Foreseen) -> str:
    return words.count(len(seen.problems), "problem")


def steps(seen: Foreseen) -> Iterator[str]:
    """What would be done, in turn; nothing where the checkpoint couldn't be read."""
    survey, made = seen.survey, _plan(seen)
    if survey is None or made is None:
        return
    request, context, place = seen.request, seen.context, seen.context.workspace_path
    if seen.first:
        yield seen.first
    if not os.path.isdir(request.images):
        yield f"unpack {request.images} below {context.config.archive.unpack_dir}, for as long as the restore takes"
    changed = f", {words.count(len(made.rewrites), 'image')} of them rewritten" if made.rewrites else ""
    yield f"stage {words.count(len(survey.images.files), 'file')} in {os.path.join(place, 'images')}{changed}"
    yield (
        f"write CRIU's configuration to {os.path.join(place, 'criu.conf')}, and name it in "
        f"{request.bundle.config_path} until {_downstream(seen)} has read it"
    )
    for part in seen.contents:
        yield _content(part.name, part.bytes, part.target, part.left_out)
    yield from (effect.describe() for effect in seen.mountpoints)
    yield from (f"{link.describe()}, for as long as the restore takes" for link in seen.links)
    count = words.count(len(survey.images.processes), "process", "processes")
    yield f"call {_downstream(seen)} restore: {count}, {'running' if request.shell_job else 'stopped'}"
    yield "verify the container from outside: its processes, cgroup and namespaces"
    yield _memory_step(seen)
    yield from _cuda_steps(seen)
    if request.pid_file:
        yield f"write {request.pid_file}"
    kept = f", but for {_pids(made.stopped)}, stopped at the dump" if made.stopped else ""
    if request.serves_create:
        yield f"wait for `start`, which lets the processes run{kept}"
    elif not request.shell_job:
        yield f"let the processes run{kept}"


def _content(name: str, size: int, target: str, left_out: str) -> str:
    if left_out:
        return f"leave out {name} ({words.size(size)}): {left_out}"
    hows = {names.DELETED_FILES: "remove what it lists from", names.CONTAINER_LOG: "append it to"}
    how = hows.get(name, "unpack it into")
    return f"{name} ({words.size(size)}): {how} {target}"


def _memory_step(seen: Foreseen) -> str:
    memory = _memory(seen)
    if memory is None:
        return "memory: not decided"
    if memory["way"] == names.MEMORY_CRIU:
        return f"CRIU itself has brought all memory back: {memory['why']}"
    if not memory["processes"]:
        return "CRIU itself has brought all memory back: no mapping is large enough for more"
    count = words.count(len(memory["processes"]), "process", "processes")
    return f"fill {words.size(memory['bytes'])} of memory of {count} past CRIU, by {memory['workers']} threads"


def _cuda_steps(seen: Foreseen) -> Iterator[str]:
    cuda = _cuda(seen)
    if cuda is None:
        return
    for device in cuda["devices"]:
        yield f"give the container {device['path']} ({device['major']}:{device['minor']})"
    moved = ", ".join(f"{pair['old']} on {pair['new']}" for pair in cuda["device_map"])
    how = f", {moved}" if moved else ""
    yield f"bring CUDA back, by {cuda['by'] or 'nobody'}, while the processes are held{how}"


def _rewrites(made: plan.Plan) -> Iterator[str]:
    for image, changes in sorted(made.rewrites.items()):
        for index, fields in sorted(changes.items()):
            said = "left out" if fields is None else ", ".join(f"{key}={value!r}" for key, value in fields.items())
            yield f"{image} entry {index}: {said}"


def _mounts(seen: Foreseen) -> list[dict[str, Any]]:
    made, former = _plan(seen), _former_sources(seen)
    return [
        {
            "destination": step.destination,
            "action": step.action.name.lower(),
            "meaning": step.action.value,
            "key": step.key,
            "type": step.mount.fstype,
            "old_source": step.old_source if step.key == names.AUTOGENERATED else former.get(step.destination, ""),
            "new_source": step.new_source if step.from_host else "",
        }
        for step in (made.mounts if made else ())
    ]


def _former_sources(seen: Foreseen) -> dict[str, str]:
    """Destination to source of the old container's bind mounts, where the manifest has its config.json."""
    manifest = seen.survey.manifest if seen.survey else None
    spec = manifest.data.get("spec") if manifest else None
    if not isinstance(spec, dict):
        return {}
    old = Bundle(path="", raw=b"", config=spec)
    hooks = {to: known.source for to, known in old_mounts(manifest).items() if known.source}
    return {**hooks, **bind_mounts(old)}


def _mount_lines(seen: Foreseen) -> Iterator[str]:
    """Those from the host each on a line, the rest together."""
    rest: dict[str, list[str]] = {}
    for mount in _mounts(seen):
        if mount["new_source"]:
            yield f"{mount['destination']} {mount['meaning']}: {mount['old_source'] or '?'} -> {mount['new_source']}"
        elif mount["action"] == "missing":
            was = f" (it was {mount['old_source']})" if mount["old_source"] else ""
            yield f"{mount['destination']} {mount['meaning']}{was}"
        else:
            rest.setdefault(mount["meaning"], []).append(mount["destination"])
    for meaning, destinations in rest.items():
        yield f"{meaning.removeprefix('is ')}: {', '.join(destinations)}"


def _memory(seen: Foreseen) -> dict[str, Any] | None:
    if seen.prepared is None:
        return None
    from grit_runtime.host import pool

    memory, config = seen.prepared.memory, seen.context.config.memory
    sizes = {pid: sum(run.size for run in split.runs) for pid, (_, split) in memory.parts.items()}
    return {
        "way": names.MEMORY_CRIU if memory.why else names.MEMORY_PARALLEL,
        "why": memory.why,
        "bytes": sum(sizes.values()),
        "processes": [{"pid": pid, "bytes": size} for pid, size in sizes.items()],
        "workers": pool.workers(config.workers),
    }


def _cuda(seen: Foreseen) -> dict[str, Any] | None:
    cuda = seen.survey.cuda if seen.survey else None
    if cuda is None:
        return None
    recording = cuda.plan.recording
    return {
        "by": cuda.api.name if cuda.api else None,
        "devices": [{"path": d.path, "major": d.major, "minor": d.minor} for d in cuda.plan.devices],
        "device_map": [{"old": old, "new": new} for old, new in cuda.plan.device_map],
        "processes": [{"pid": p.pid, "memory": p.memory} for p in recording.processes] if recording else None,
    }


def _plan(seen: Foreseen) -> plan.Plan | None:
    if seen.prepared:
        return seen.prepared.plan
    return seen.survey.plan if seen.survey else None


def _downstream(seen: Foreseen) -> str:
    return os.path.basename(seen.context.downstream.program)


def _serves(seen: Foreseen) -> str:
    return "`create` and its annotations" if seen.request.serves_create else "`restore`"


def _on_failure(seen: Foreseen) -> str:
    if not seen.request.serves_create:
        return names.FAIL
    return on_failure(seen.request.bundle.annotations, seen.context.config.on_restore_failure)


def _pids(pids: tuple[int, ...]) -> str:
    return ", ".join(str(pid) for pid in pids)
