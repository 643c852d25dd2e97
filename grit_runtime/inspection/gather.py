"""Look at a checkpoint: the documents, the small images, and how they fit together."""

import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from grit_runtime import names
from grit_runtime.checkpoint import integrity, kinds
from grit_runtime.checkpoint import manifest as manifests
from grit_runtime.config import Archive
from grit_runtime.criu import raw
from grit_runtime.errors import CheckpointError
from grit_runtime.inspection import descriptors, mounts, processes
from grit_runtime.inspection.model import Gpu, Inspection, Part, State
from grit_runtime.inspection.reader import Reader, at, number, objects, text, texts
from grit_runtime.inspection.store import Store, open_store

_CONTENTS = (names.ROOTFS_DIFF, names.DEV_SHM, names.CONTAINER_LOG, names.DELETED_FILES)
_LOG = "dump.log"


def inspect(path: str, bounds: Archive, *, mappings: bool = False, compare: int = 0) -> Inspection:
    """What is in the checkpoint at `path`.

    Args:
        mappings: list the mappings of each process.
        compare: compare the checksums of all files, with so many threads.

    Raises:
        CheckpointError: there is nothing that could be said of it.
    """
    reader = Reader(store=open_store(path, bounds))
    for wrong in reader.store.wrong:
        reader.note(wrong)
    manifest = _manifest(reader)
    if compare:
        _compare(reader, manifest, compare)
    found = _read(reader, manifest, mappings=mappings)
    more = [f"and {reader.more} more"] if reader.more else []
    problems = (*reader.problems, *more)
    if reader.store.kind is kinds.Kind.ARCHIVE and not reader.store.complete and not problems:
        problems = (f"{names.CONFIG_DUMP} or {names.SPEC_DUMP} is missing",)
        return replace(found, state=State.INCOMPLETE, problems=problems)
    if reader.store.unfinished:
        problems = ("a dump into it was begun, and has not ended", *problems)
    return replace(found, state=_state(reader, problems), problems=problems, compared=bool(compare) and not problems)


def _state(reader: Reader, problems: tuple[str, ...]) -> State:
    store = reader.store
    if store.unfinished:
        return State.INCOMPLETE
    if problems:
        return State.DAMAGED
    return State.COMPLETE if store.complete else State.UNSAID


def _manifest(reader: Reader) -> manifests.Manifest | None:
    """The manifest, its sizes compared with what is there."""
    if names.MANIFEST not in reader.store.sizes:
        return None
    data = reader.document(names.MANIFEST)
    if not data:
        return None
    found = reader.attempt(names.MANIFEST, lambda: manifests.checked(names.MANIFEST, data), None)
    if found is not None:
        for wrong in manifests.wrong_sizes(found.sizes, reader.store.sizes):
            reader.note(wrong)
    return found


def _compare(reader: Reader, manifest: manifests.Manifest | None, workers: int) -> None:
    def differing() -> list[str]:
        expected = integrity.recorded(manifest.data, names.MANIFEST) if manifest else {}
        if not manifest or not expected:
            raise CheckpointError("it lists no checksums to compare its files with")
        same = [name for name, size in manifest.sizes.items() if reader.store.sizes.get(name) == size]
        places = {name: place for name in same if (place := reader.store.place(name))}
        if len(places) < len(same):
            raise CheckpointError("its checksums can't be compared while it is compressed", hint="decompress it first")
        return integrity.differing(places, expected, workers)

    none: list[str] = []
    for name in reader.attempt(names.MANIFEST, differing, none):
        reader.note(f"{name} is not what it was, by its checksum")


def _read(reader: Reader, manifest: manifests.Manifest | None, *, mappings: bool) -> Inspection:
    store, data = reader.store, manifest.data if manifest else {}
    config = reader.document(names.CONFIG_DUMP, beside=True)
    spec = at(data, "spec") or reader.document(names.SPEC_DUMP, beside=True)
    inventory = reader.first("inventory.img", "INVENTORY")
    if "pstree.img" not in store.sizes and not store.unfinished:
        reader.note("pstree.img is missing")
    files = descriptors.read_files(reader)
    cuda = at(data, "cuda")
    gpus = _gpu_processes(cuda)
    known = processes.Known(commands=_commands(data), gpu=gpus, paths=files.paths, listed=manifest is not None)
    found = processes.read(reader, known, mappings=mappings)
    log = _log(reader)
    return Inspection(
        path=store.path,
        kind=(kinds.Kind.OWN if manifest and store.images else store.kind).value,
        state=State.UNSAID,
        created=_created(store, data, config),
        machine=_machine(data, log),
        versions=_versions(data, config, log),
        container=_container(data, config, spec),
        size=sum(store.sizes.values()) + sum(store.beside.get(name, 0) for name in _CONTENTS),
        files=len(store.sizes) + sum(name in store.beside for name in _CONTENTS),
        checksums=bool(at(data, "checksums")),
        plugins=tuple(raw.word(name) for name in inventory.plugins_entry.plugins) if inventory is not None else (),
        processes=found,
        shared_memory=processes.shared_memory(reader),
        gpu={key: text(cuda[key]) for key in ("mode", "driver") if key in cuda},
        gpus=_gpus(cuda, gpus),
        open_files=descriptors.open_files(reader, [process.pid for process in found], files),
        sockets=files.sockets,
        mounts=mounts.read(reader, spec, data),
        contents=_contents(store, data),
        spec=spec,
    )


def _commands(data: dict[str, Any]) -> dict[int, str]:
    found = {}
    for entry in objects(data, "processes"):
        pid, words = number(entry.get("pid")), entry.get("command")
        if pid is not None and isinstance(words, list):
            found[pid] = shlex.join(str(word) for word in words)
    return found


def _gpu_processes(cuda: dict[str, Any]) -> dict[int, dict[str, int] | None]:
    found: dict[int, dict[str, int] | None] = {}
    for entry in objects(cuda, "processes"):
        pid, memory = number(entry.get("pid")), entry.get("memory")
        if pid is not None:
            sizes = {str(gpu): number(size) or 0 for gpu, size in memory.items()} if isinstance(memory, dict) else None
            found[pid] = sizes
    return found


def _gpus(cuda: dict[str, Any], used: Mapping[int, dict[str, int] | None]) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            index=number(entry.get("index")) or 0,
            uuid=(uuid := text(entry.get("uuid"))),
            name=text(entry.get("name")),
            memory=number(entry.get("memory")) or 0,
            used=sum((memory or {}).get(uuid, 0) for memory in used.values()),
        )
        for entry in objects(cuda, "gpus")
    )


def _created(store: Store, data: dict[str, Any], config: dict[str, Any]) -> str:
    said = text(data.get("created")) or text(config.get("checkpointedTime"))
    if said or not store.images:
        return said
    try:
        when = os.stat(os.path.join(store.images, "inventory.img")).st_mtime
    except OSError:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def _log(reader: Reader) -> dict[str, str]:
    """What CRIU says of itself and the machine at the beginning of its log (criu/log.c, criu/crtools.c)."""
    beside = _LOG in reader.store.beside
    if not beside and _LOG not in reader.store.sizes:
        return {}
    lines = reader.attempt(_LOG, lambda: reader.store.read(_LOG, beside=beside), b"").decode(errors="replace")
    found = {}
    for line in lines.splitlines()[:20]:
        _, _, said = line.partition(") ")
        for word, key in (("Version: ", "criu"), ("Running on ", "node")):
            if said.startswith(word):
                found[key] = said.removeprefix(word).partition(" (")[0].strip()
    return found


def _machine(data: dict[str, Any], log: dict[str, str]) -> dict[str, str]:
    cpu = at(data, "machine", "cpu")
    node = log.get("node", "").split()  # its name, and uname(2)'s words
    found = {
        "architecture": text(at(data, "machine").get("architecture")) or (node[-1] if len(node) > 2 else ""),
        "cpu": text(cpu.get("model")),
        "node": node[0] if node else "",
    }
    return {key: value for key, value in found.items() if value}


def _versions(data: dict[str, Any], config: dict[str, Any], log: dict[str, str]) -> dict[str, str]:
    found = texts(at(data, "versions"))
    downstream = at(data, "versions", "downstream")
    if downstream:
        found["downstream"] = text(downstream.get("version")) or text(downstream.get("path"))
    elif text(config.get("runtime")):
        found["downstream"] = text(config.get("runtime"))
    node = log.get("node", "").split()
    if "kernel" not in found and len(node) > 2:
        found["kernel"] = node[2]
    return {"criu": log["criu"], **found} if "criu" in log else found


def _container(data: dict[str, Any], config: dict[str, Any], spec: dict[str, Any]) -> dict[str, str]:
    said, annotations = at(data, "container"), texts(at(spec, "annotations"))
    pod = at(said, "pod")
    arguments = at(spec, "process").get("args")
    found = {
        "id": text(said.get("id")) or text(config.get("id")),
        "name": text(said.get("name")) or names.first(annotations, names.CONTAINER_NAME) or text(config.get("name")),
        "image": text(said.get("image")) or text(config.get("rootfsImageName")),
        "digest": text(said.get("imageDigest")) or text(config.get("rootfsImageRef")),
        "namespace": text(pod.get("namespace")) or names.first(annotations, names.POD_NAMESPACE) or "",
        "pod": text(pod.get("name")) or names.first(annotations, names.POD_NAME) or "",
        "uid": text(pod.get("uid")) or names.first(annotations, names.POD_UID) or "",
        "command": shlex.join(str(word) for word in arguments) if isinstance(arguments, list) else "",
    }
    return {key: value for key, value in found.items() if value}


def _contents(store: Store, data: dict[str, Any]) -> tuple[Part, ...]:
    listed = at(data, "contents")
    if not listed:
        there = {**store.sizes, **store.beside}
        return tuple(Part(name=name, bytes=there[name]) for name in _CONTENTS if name in there)
    return tuple(
        Part(
            name=name,
            bytes=number(part.get("bytes")),
            entries=number(part.get("entries")),
            left_out=text(part.get("left-out")),
        )
        for name in ("rootfs-diff", "dev-shm", "log", "queues")
        if (part := at(listed, name))
    )
