"""The back end of the driver's own library, libcuda.so.1 (driver 570 or newer), through one helper process."""

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grit_runtime import names
from grit_runtime.cuda.api import Api, Arguments, Outcome, Settings
from grit_runtime.cuda.gpus import Node, parse_node
from grit_runtime.cuda.states import CudaError, NoCudaError, Operation, error_name
from grit_runtime.host import proc, run

# Where containers' hosts keep the driver's libraries outside of the linker's own directories: the images of cloud
# nodes, Google's, and the GPU operator's driver container (whose root is here if the host has no driver of its own).
LIBRARY_PATH = (
    "/usr/local/nvidia/lib64",
    "/home/kubernetes/bin/nvidia/lib64",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "/run/nvidia/driver/usr/lib/aarch64-linux-gnu",
    "/run/nvidia/driver/usr/lib64",
)
# They would hide GPUs from the helper, which must see what the container's processes see.
_HIDING = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY")
_AFTER_LAST = 65536


class Helper(Api):
    """A running helper process (helper.py)."""

    name = names.CUDA_DRIVER

    def __init__(self, settings: Settings) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.join(os.path.dirname(__file__), "helper.py"), _site()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(settings),
            close_fds=True,
            preexec_fn=proc.die_with_parent,  # cuInit may hang, too
        )
        self._sent = 0
        self._buffer = b""

    def hello(self, timeout: float) -> dict[str, Any]:
        """What the helper says once the library is loaded."""
        return self._answers([0], time.monotonic() + timeout, "the start of the CUDA driver")[0]

    def each(
        self,
        operation: Operation,
        pids: Sequence[int],
        *,
        timeout: float,
        arguments: Arguments = Arguments(),  # noqa: B008 - immutable
    ) -> list[Outcome]:
        """See `Api.each`."""
        more: dict[str, Any] = {}
        if operation is Operation.LOCK:
            more = {"timeout": max(1, int(arguments.lock_timeout * 1000))}
        elif operation is Operation.RESTORE:
            more = {"map": arguments.device_map}
        replies = self._ask(
            [{"do": operation.value, "pid": pid, **more} for pid in pids],
            timeout,
            f"cuCheckpointProcess{operation.value} of process {', '.join(str(pid) for pid in pids)}",
        )
        return [
            Outcome(pid=pid, code=reply["code"], value=reply.get("value", -1), seconds=reply["seconds"])
            for pid, reply in zip(pids, replies, strict=True)
        ]

    def node(self, timeout: float) -> Node:
        """The node's GPUs, by NVML.

        Raises:
            CudaError: NVML is missing, or does not answer.
        """
        reply = self._ask([{"do": "gpus"}], timeout, "NVML")[0]
        if reply["code"]:
            raise CudaError(f"NVML: {reply.get('error', error_name(reply['code']))}")
        return parse_node(reply["gpus"])

    def close(self) -> None:
        """End the helper, whatever it is doing."""
        run.end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue

    def _ask(self, requests: list[dict[str, Any]], timeout: float, what: str) -> list[dict[str, Any]]:
        numbers = []
        for request in requests:
            self._sent += 1
            numbers.append(self._sent)
            self._send({"id": self._sent, **request})
        return self._answers(numbers, time.monotonic() + timeout, what)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise CudaError("the helper that calls the CUDA driver ended by itself") from None

    def _answers(self, numbers: list[int], deadline: float, what: str) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        while not all(number in found for number in numbers):
            line = self._line(deadline)
            if line is None:
                self.close()
                raise CudaError(f"{what} did not return in time")
            found[line["id"]] = line
        for number in numbers:
            if found[number]["code"] == -1 and "error" in found[number]:
                raise CudaError(f"{what}: {found[number]['error']}")
        return [found[number] for number in numbers]

    def _line(self, deadline: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            data = os.read(fd, _AFTER_LAST)
            if not data:
                raise CudaError("the helper that calls the CUDA driver ended by itself")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


def connect(settings: Settings) -> Helper:
    """Start the helper.

    Raises:
        NoCudaError: there is no driver, or it is older than 570.
        CudaError: it can't be initialised.
    """
    helper = Helper(settings)
    try:
        hello = helper.hello(settings.timeout)
    except BaseException:
        helper.close()
        raise
    if hello.get("missing"):
        helper.close()
        raise NoCudaError(f"no CUDA driver: {hello['missing']}")
    if not hello["api"]:
        helper.close()
        raise NoCudaError("the CUDA driver is older than 570: its library cannot checkpoint processes")
    if hello["code"]:
        helper.close()
        raise CudaError(f"cuInit: {error_name(hello['code'])}")
    return helper


def environment(settings: Settings) -> Mapping[str, str]:
    """The caller's environment, with the driver's directories after those that it names for the linker."""
    env = {name: value for name, value in run.caller_environment().items() if name not in _HIDING}
    known = [path for path in (*settings.library_path, *LIBRARY_PATH) if os.path.isdir(path)]
    path = ":".join([*filter(None, [env.get("LD_LIBRARY_PATH")]), *known])
    return {**env, "LD_LIBRARY_PATH": path} if path else env


def _site() -> str:
    """Where nvidia-ml-py lies: `helper.py` is started without the paths that we have."""
    found = importlib.util.find_spec("pynvml")
    return os.path.dirname(found.origin) if found and found.origin else "/nonexistent"
