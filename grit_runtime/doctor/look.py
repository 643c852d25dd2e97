"""Gathering all facts of a node. What is written is one file without a name in each checkpoint root, for its speed."""

import os
import stat
import time
from dataclasses import replace

from grit_runtime import names
from grit_runtime.cdi import registry as cdi
from grit_runtime.config import Config
from grit_runtime.cuda import api as cuda
from grit_runtime.cuda.states import CudaError
from grit_runtime.doctor import lookengines, lookprograms
from grit_runtime.doctor.facts import Facts, Folder, Gpus, Leftovers
from grit_runtime.errors import GritError
from grit_runtime.host import files, mounts, run, workspace
from grit_runtime.host.transaction import read_journal
from grit_runtime.toolkit import RUNTIME
from grit_runtime.workflow import recover
from grit_runtime.workflow.cudastate import settings

_BLOCK, _BLOCKS = 1 << 20, 32
_MOST_SECONDS = 2.0
_DRIVER = "/proc/driver/nvidia/version"
_GPU_KIND = "nvidia.com/gpu"


def gather(config: Config, *, engines: tuple[str, ...] | None, runtime_name: str, speed: bool) -> Facts:
    """Look at everything.

    Args:
        engines: which; empty for those that are here, None for none.
        runtime_name: what they know the runtime as.
        speed: measure the speed of disks.
    """
    found = () if engines is None else lookengines.engines(config, engines, runtime_name)
    env = lookengines.environment(found)
    program, lacks = lookprograms.find_downstream(config, env)
    roots = [_folder(path, "checkpoints", speed) for path in config.checkpoint_roots]
    return Facts(
        config=config,
        kernel=lookprograms.kernel(),
        launcher=lookprograms.find_launcher(),
        downstream=program,
        lacks=lacks,
        criu=lookprograms.criu(config, env),
        engines=found,
        engines_wanted=engines is not None,
        folders=(*roots, _folder(config.archive.unpack_dir, "unpacked archives", False)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        state_fs=_file_system(config.state_dir),
        gpus=_gpus(config),
        leftovers=_leftovers(config),
    )


def _file_system(path: str) -> str:
    """The type of the file system that holds a path, or will."""
    real = os.path.realpath(path) + "/"
    holding = [entry for entry in mounts.own() if real.startswith(entry.mountpoint.rstrip("/") + "/")]
    return max(holding, key=lambda entry: len(entry.mountpoint)).fstype if holding else ""


def _folder(path: str, use: str, speed: bool) -> Folder:
    if not os.path.isdir(path):
        return Folder(path=path, use=use, exists=False)
    room = os.statvfs(path)
    write, read = _speed(path) if speed else (None, None)
    return Folder(
        path=path,
        use=use,
        exists=True,
        trusted=_trusted(path),
        free=room.f_bavail * room.f_frsize,
        write=write,
        read=read,
    )


def _trusted(path: str) -> str:
    try:
        real = files.trusted_path("/", path)
        there = os.stat(real)
    except OSError as err:
        return f"{err.filename or path}: {err.strerror}"
    if there.st_uid != 0 or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"it belongs to user {there.st_uid}, with mode {stat.S_IMODE(there.st_mode):o}"
    return ""


def _speed(path: str) -> tuple[float | None, float | None]:
    """Bytes a second, written to the disk and read from it, by a file that has no name and goes with its descriptor."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return None, None
    block = os.urandom(_BLOCK)
    try:
        begun, done = time.monotonic(), 0
        while done < _BLOCKS and time.monotonic() - begun < _MOST_SECONDS:
            os.write(fd, block)
            done += 1
        os.fdatasync(fd)
        written = time.monotonic()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(fd, 0, os.SEEK_SET)
        while os.read(fd, _BLOCK) and time.monotonic() - written < _MOST_SECONDS:
            pass
        size, end = done * _BLOCK, time.monotonic()
        return size / max(written - begun, 1e-6), size / max(end - written, 1e-6)
    except OSError:
        return None, None
    finally:
        os.close(fd)


def _leftovers(config: Config) -> Leftovers:
    journals, damaged = [], []
    for path, container in recover.workspaces(config.state_dir):
        try:
            record = read_journal(os.path.join(path, names.JOURNAL))
        except (GritError, OSError) as err:
            damaged.append(str(err))
            continue
        if record is not None and record.phase != recover.CREATED and not workspace.is_held(path):
            journals.append(container)
    return Leftovers(journals=tuple(journals), damaged=tuple(damaged), unpacked=tuple(_unpacked(config)))


def _unpacked(config: Config) -> list[str]:
    """Unpacked archives whose call is gone: `ROOT!CONTAINER` (workflow/source.py)."""
    folder = config.archive.unpack_dir
    try:
        listed = sorted(os.listdir(folder))
    except OSError:
        return []
    return [
        os.path.join(folder, name)
        for name in listed
        if not os.path.isdir(os.path.join(config.state_dir, *name.split("!", 1)))
    ]


def _gpus(config: Config) -> Gpus:
    if not os.path.exists(_DRIVER) and not config.cuda.library_path:
        return Gpus(present=False)
    env, asked = run.caller_environment(), settings(config)
    specs = cdi.scan(config.cdi_spec_dirs)
    programs = (run.find_program(name, env) for name in (RUNTIME, config.nvidia_hook))
    known = Gpus(
        present=True,
        program=run.find_program(config.cuda.program, env) or "",
        cdi=tuple(sorted(name for name in specs.devices if name.startswith(f"{_GPU_KIND}="))),
        cdi_errors=tuple(specs.errors),
        toolkit=tuple(path for path in programs if path),
    )
    try:
        api = cuda.connect(asked)
    except CudaError as err:
        return replace(known, error=str(err), node=cuda.survey(asked))
    try:
        return replace(known, by=api.name, node=cuda.survey(asked, api))
    finally:
        api.close()
