"""The process that calls the driver: `python3 -I -S helper.py SITE`, SITE being the directory that holds pynvml.

It reads one JSON request a line and answers each when it is done, in whatever order; every request has a thread of its
own. So cuInit is paid once, several processes are worked on side by side, and a call that does not return is ended by
killing this process: what a call has begun in another process goes on there by itself (measured, driver 580). It ends
when its stdin does. It runs on the host, not in the container: the API takes the pids of its own pid namespace, and
libcuda reads /proc/self (ai-dynamo/dynamo#12227).

    {"id": 1, "do": "Lock", "pid": 42, "timeout": 3000}       -> {"id": 1, "code": 0, "value": -1, "seconds": 0.01}
    {"id": 2, "do": "Restore", "pid": 42, "map": [["GPU-..", "GPU-.."]]}
    {"id": 3, "do": "gpus"}                                    -> {"id": 3, "code": 0, "gpus": {..}}
"""

import ctypes
import json
import os
import sys
import threading
import time
from typing import Any

_LOCK_ARGS = 64  # bytes; CUcheckpointLockArgs: u32 timeoutMs, u32 reserved0, u64 reserved1[7]


class _Pair(ctypes.Structure):
    """CUcheckpointGpuPair (cuda.h 13.0): two CUuuid."""

    _fields_ = (("old", ctypes.c_uint8 * 16), ("new", ctypes.c_uint8 * 16))


class _RestoreArgs(ctypes.Structure):
    """CUcheckpointRestoreArgs (cuda.h 13.0), 64 bytes; before that all of it was reserved."""

    _fields_ = (
        ("pairs", ctypes.POINTER(_Pair)),
        ("count", ctypes.c_uint32),
        ("reserved0", ctypes.c_uint32),
        ("reserved1", ctypes.c_uint64 * 6),
    )


def _serve() -> None:
    answers = threading.Lock()

    def answer(request: dict[str, Any], what: dict[str, Any]) -> None:
        line = json.dumps({"id": request["id"], **what}).encode() + b"\n"
        with answers:
            os.write(1, line)

    started, library = time.monotonic(), None
    try:
        library = ctypes.CDLL("libcuda.so.1")
        has_api = hasattr(library, "cuCheckpointProcessLock")
        hello = {"code": library.cuInit(0) if has_api else 0, "api": has_api}
    except OSError as err:
        hello = {"code": -1, "missing": str(err)}
    answer({"id": 0}, {**hello, "seconds": time.monotonic() - started})

    def work(request: dict[str, Any]) -> None:
        begun = time.monotonic()
        try:
            done = _gpus() if request["do"] == "gpus" else _call(library, request)
        except Exception as err:  # noqa: BLE001 - the edge of this process: the other end must get an answer
            done = {"code": -1, "error": f"{type(err).__name__}: {err}"}
        answer(request, {**done, "seconds": time.monotonic() - begun})

    for line in sys.stdin.buffer:
        threading.Thread(target=work, args=(json.loads(line),), daemon=True).start()


def _call(library: Any, request: dict[str, Any]) -> dict[str, Any]:
    function = getattr(library, f"cuCheckpointProcess{request['do']}")
    pid, value = ctypes.c_int(request["pid"]), ctypes.c_int(-1)
    if request["do"] in ("GetState", "GetRestoreThreadId"):
        code = function(pid, ctypes.byref(value))
    elif request["do"] == "Lock":
        words = (ctypes.c_uint32 * (_LOCK_ARGS // 4))()
        words[0] = request["timeout"]
        code = function(pid, ctypes.byref(words))
    elif request["do"] == "Restore":
        code = function(pid, _restore_arguments(request["map"]))
    else:
        code = function(pid, None)
    return {"code": code, "value": value.value}


def _restore_arguments(pairs: list[list[str]]) -> Any:
    if not pairs:
        return None
    listed = (_Pair * len(pairs))()
    for pair, (old, new) in zip(listed, pairs, strict=True):
        pair.old[:] = _uuid(old)
        pair.new[:] = _uuid(new)
    return ctypes.byref(_RestoreArgs(pairs=listed, count=len(pairs)))


def _uuid(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("GPU-").replace("-", ""))


def _gpus() -> dict[str, Any]:
    """What NVML knows: the driver, every GPU, and how much memory each process has on it."""
    import pynvml as nvml

    def ask(name: str, *args: Any) -> Any:
        try:
            return getattr(nvml, name)(*args)
        except nvml.NVMLError:
            return None

    nvml.nvmlInit()
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        modes = ask("nvmlDeviceGetMigMode", handle)
        processes = ask("nvmlDeviceGetComputeRunningProcesses", handle)
        mps = ask("nvmlDeviceGetMPSComputeRunningProcesses", handle)
        gpus.append({
            "index": index,
            "uuid": nvml.nvmlDeviceGetUUID(handle),
            "name": nvml.nvmlDeviceGetName(handle),
            "minor": nvml.nvmlDeviceGetMinorNumber(handle),
            "memory": memory.total,
            "free": memory.free,
            "computeMode": ask("nvmlDeviceGetComputeMode", handle),
            "persistence": ask("nvmlDeviceGetPersistenceMode", handle),
            "mig": bool(modes and modes[0]),
            "processes": None if processes is None else {str(p.pid): p.usedGpuMemory for p in processes},
            "mps": [p.pid for p in mps or ()],
        })  # fmt: skip
    return {"code": 0, "gpus": {"driver": nvml.nvmlSystemGetDriverVersion(), "gpus": gpus}}


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    _serve()
    os._exit(0)  # a thread may be in a driver call that does not return
