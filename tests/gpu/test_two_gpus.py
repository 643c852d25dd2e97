"""Two GPUs: another one than the checkpoint's, and processes that use both."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.gpu.conftest import PYTHON, GpuMachine, References, lines

pytestmark = [pytest.mark.needs("root", "runc", "criu", "gpu", "two GPUs"), pytest.mark.timeout(300)]

# What leads NCCL past memory that another process has exported (NCCL's environment variables).
APART = ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1", "NCCL_SOCKET_IFNAME=lo", "NCCL_IB_DISABLE=1")
QUIET = ("NCCL_NVLS_ENABLE=0", "TORCH_SYMM_MEM_DISABLE_MULTICAST=1", "NVSHMEM_DISABLE_NVLS=1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> References:
    """The runs that these tests compare with, ended before the first of them: memory is counted."""
    made = References(tmp_path_factory.mktemp("pair"))
    for mode in ("training", "both"):
        made.begin(mode, 150)
    made.ended()
    return made


def _query(words: str) -> list[str]:
    query = ["nvidia-smi", f"--query-gpu={words}", "--format=csv,noheader,nounits"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()


def _used() -> list[int]:
    """MiB in use on each GPU."""
    return [int(word) for word in _query("memory.used")]


def _lingering() -> list[str]:
    """TCP connections in TIME_WAIT (proc_pid_net(5))."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    return [line for table in tables for line in table if line.split()[3] == "06"]


def _swapped() -> dict[str, str]:
    first, second = _query("uuid")[:2]
    return {"grit.dev/device-map": f"{first}={second},{second}={first}"}


def _nodes(gpu: GpuMachine, name: str) -> str:
    """What of NVIDIA lies in the container's /dev, and what its first process has open of it."""
    pid = gpu.state_of(name)["pid"]
    inside = sorted(path.name for path in Path(f"/proc/{pid}/root/dev").glob("nvidia*"))
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return f"nodes {inside} open {sorted({link for link in links if 'nvidia' in link})}"


@pytest.mark.parametrize("visible", ["one", "both"])
def test_a_container_moves_to_the_other_gpu(gpu: GpuMachine, pair: References, visible: str) -> None:
    """By its devices alone, or by the annotation where it has both."""
    empty = _used()
    old = gpu.begin("old", "training", gpus=[0] if visible == "one" else [0, 1])
    before, nodes = _used(), _nodes(gpu, "old")
    images = gpu.capture("old")
    begun = time.monotonic()
    if visible == "one":
        new = gpu.bring_back(images, "new", old, gpus=[1])
    else:
        new = gpu.bring_back(images, "new", old, gpus=[0, 1], annotations=_swapped())
    print(visible, f"restore {time.monotonic() - begun:.2f} s; MiB", empty, before, _used())
    print(visible, "before", nodes, "after", _nodes(gpu, "new"))
    first, second = _used()
    assert first < empty[0] + 100, "the checkpoint's GPU holds something"
    assert second > empty[1] + 400
    gpu.goes_on(new)
    inside = "import torch; print(int(torch.ones(8, device='cuda').sum()), torch.cuda.device_count())"
    print("a new context inside:", gpu.runc("exec", "new", PYTHON, "-c", inside).ok().out.strip())
    print(gpu.runc("exec", "new", "nvidia-smi", "-L").ok().out.strip())
    pair.check("training", lines(new))
    # And back again: its GPU is the second one now.
    again = gpu.capture("new")
    if visible == "one":
        third = gpu.bring_back(again, "third", new, gpus=[0])
    else:
        third = gpu.bring_back(again, "third", new, gpus=[0, 1], annotations=_swapped())
    assert _used()[0] > empty[0] + 400
    gpu.goes_on(third)
    pair.check("training", lines(third))


def test_as_many_gpus_as_it_saw_are_asked_for(gpu: GpuMachine) -> None:
    old = gpu.begin("old", "training", gpus=[0, 1])
    images = gpu.capture("old")
    new = gpu.gpu_bundle("new", "none", gpus=[0])
    failed = gpu.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    assert failed.code != 0
    assert "which the old container could open" in failed.err
    assert "nothing was touched" in failed.err
    back = gpu.bring_back(images, "back", old, gpus=[0, 1])
    gpu.goes_on(back)


@pytest.mark.parametrize("moved", [False, True])
def test_more_gpus_than_it_saw(gpu: GpuMachine, moved: bool) -> None:
    first, second = _query("uuid")[:2]
    old = gpu.begin("old", "training", gpus=[0])
    images = gpu.capture("old")
    chosen = {"grit.dev/device-map": f"{first}={second}"} if moved else {}
    new = gpu.bring_back(images, "new", old, gpus=[0, 1], annotations=chosen)
    assert _used()[int(moved)] > 400
    gpu.goes_on(new)


def test_a_process_with_both_gpus_is_refused_and_runs_on(gpu: GpuMachine) -> None:
    """What PyTorch's own allocator maps across GPUs is what the driver takes and doesn't give back."""
    old = gpu.begin("old", "both", gpus=[0, 1])
    failed = gpu.grit("checkpoint", "--leave-running", "--image-path", str(gpu.checkpoints / "x"), "old")
    assert failed.code != 0
    assert "has memory on 2 GPUs" in failed.err
    gpu.goes_on(old)


@pytest.mark.parametrize("swapped", [False, True])
def test_one_process_with_both_gpus(gpu: GpuMachine, pair: References, swapped: bool) -> None:
    gpu.configure(cuda={"multi-gpu": "allow"})
    old = gpu.begin("old", "both", gpus=[0, 1], env=["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"])
    before = _used()
    images = gpu.capture("old")
    new = gpu.bring_back(images, "new", old, gpus=[0, 1], annotations=_swapped() if swapped else {})
    after = _used()
    print("swapped" if swapped else "same", "MiB", before, after)
    assert all(abs(a - b) < 200 for a, b in zip(before, after, strict=True))
    gpu.goes_on(new)
    pair.check("both", lines(new))


def test_two_containers_on_one_gpu(gpu: GpuMachine, pair: References) -> None:
    """One is captured and comes back; the other one is not disturbed."""
    old = gpu.begin("old", "training", gpus=[0])
    other = gpu.begin("other", "training", gpus=[0])
    images = gpu.capture("old")
    gpu.goes_on(other)
    new = gpu.bring_back(images, "new", old, gpus=[0])
    for bundle in (new, other):
        gpu.goes_on(bundle)
        pair.check("training", lines(bundle))


def test_nccl_is_refused_at_once_and_the_job_runs_on(gpu: GpuMachine) -> None:
    old = gpu.begin("old", "ddp", gpus=[0, 1], env=QUIET)
    begun = time.monotonic()
    failed = gpu.grit("checkpoint", "--image-path", str(gpu.checkpoints / "x"), "old")
    print(f"refused after {time.monotonic() - begun:.2f} s:", failed.err)
    assert failed.code != 0
    assert "are ranks of NCCL" in failed.err
    assert "NCCL_P2P_DISABLE=1" in failed.err
    gpu.goes_on(old)


def test_nccl_without_shared_memory_goes_on(gpu: GpuMachine) -> None:
    """Sockets between the processes, which come along as they are within one container."""
    gpu.configure(criu={"dump": {"network-lock": "skip"}, "restore": {"network-lock": "skip"}})
    old = gpu.begin("old", "ddp", gpus=[0, 1], env=(*QUIET, *APART))
    images = gpu.capture("old")
    # Here they share the host's network, in which the ports of what was ended are taken for a minute.
    gpu.wait(lambda: not _lingering(), timeout=90)
    new = gpu.bring_back(images, "new", old, gpus=[0, 1])
    gpu.goes_on(new)
    numbers = [int(line.split()[0]) for line in lines(new)]
    assert numbers == list(range(len(numbers)))
