"""CUDA checkpoint and restore of several processes side by side, against one after another, in one run.

    python -m tests.bench.cuda [--gib 8] [--processes 4] [--runs 3]

For a machine with an NVIDIA GPU, PyTorch and this checkout's Python packages; the processes are spread over the GPUs.
Every process holds as much as was asked for. What is timed is the driver's part alone, by the calls that a capture and
a restore make (grit_runtime/cuda/processes.py); the order alternates.
"""

import argparse
import statistics
import subprocess
import sys
import time

from grit_runtime.cuda import api as cuda
from grit_runtime.cuda import processes
from grit_runtime.cuda.states import State

HOLDER = """
import sys, torch
data = torch.ones(int(sys.argv[1]) << 28, device=f"cuda:{sys.argv[2]}")
torch.cuda.synchronize()
print("ready", flush=True)
sys.stdin.read()
"""


def start(gib: int, number: int) -> "subprocess.Popen[str]":
    """A process that holds memory on one GPU."""
    argv = [sys.executable, "-c", HOLDER, str(gib), str(number)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def cycle(api: cuda.Api, groups: list[list[int]]) -> tuple[float, float]:
    """Checkpoint and restore, one group after another; the seconds that each took."""
    begun = time.monotonic()
    for pids in groups:
        processes.suspend(api, dict.fromkeys(pids, State.RUNNING), lock_timeout=10, timeout=300)
    between = time.monotonic()
    for pids in groups:
        processes.resume(api, dict.fromkeys(pids, State.RUNNING), timeout=300)
    return between - begun, time.monotonic() - between


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    for name, default in (("--gib", 8), ("--processes", 4), ("--runs", 3)):
        parser.add_argument(name, type=int, default=default)
    args = parser.parse_args()
    settings = cuda.Settings()
    api = cuda.connect(settings)
    node = cuda.survey(settings, api)
    gpus = len(node.gpus) if node else 1
    running = [start(args.gib, number % gpus) for number in range(args.processes)]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        pids = [process.pid for process in running]
        ways = {"one after another": [[pid] for pid in pids], "side by side": [pids]}
        cycle(api, [pids])  # the first one is slower
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(args.runs):
            for way, groups in ways.items():
                times[way].append(cycle(api, groups))
    finally:
        api.close()
        for process in running:
            process.kill()
            process.wait()
    print(f"{args.processes} processes of {args.gib} GiB on {gpus} GPUs, median of {args.runs}, seconds")
    for way, found in times.items():
        checkpoint, restore = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{way:20} checkpoint {checkpoint:6.2f}  restore {restore:6.2f}")


if __name__ == "__main__":
    main()
