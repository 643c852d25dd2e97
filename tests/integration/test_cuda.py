"""CUDA by the SIMULATED driver (tests/simulated): sequences, failures, kills. The real one is in tests/gpu."""

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from grit_runtime.errors import RestoreError
from grit_runtime.host import hugepages, proc
from grit_runtime.workflow import cudarestore
from grit_runtime.workflow.cudaplan import Device
from tests.integration.machine import Bundle, Machine, tree
from tests.simulated.driver import SimulatedGpu, expected, lines

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "cc"), pytest.mark.timeout(300)]


def _annotated(gpu: SimulatedGpu, old: Bundle) -> Bundle:
    images = gpu.machine.checkpoints / "ns/first/app/checkpoint"
    gpu.grit("checkpoint", "--image-path", str(images), "old").ok()
    new = gpu.copy_of(old)
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")
    return new


@pytest.mark.parametrize("mode", ["driver", "cuda-checkpoint", "auto"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_container_comes_back_with_its_gpu_memory(gpu: SimulatedGpu, mode: str, paused: bool) -> None:
    gpu.configure(mode=mode, program=str(gpu.built / "cuda-checkpoint"))
    old = gpu.start("old")
    if paused:
        gpu.machine.runc("pause", "old").ok()
    gpu.capture().ok()
    assert gpu.machine.status("old") == "gone"
    assert gpu.used() == 0
    manifest = json.loads((gpu.machine.checkpoints / "c/grit.json").read_text())["cuda"]
    assert manifest["mode"] == ("driver" if mode == "auto" else mode)
    assert [sum(p["memory"].values()) >> 20 for p in manifest["processes"]] == [64]
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    assert gpu.used() == 64
    gpu.goes_on(new)


def test_two_processes(gpu: SimulatedGpu) -> None:
    old = gpu.start("old", two=True)
    gpu.machine.wait(lambda: len(lines(old, "out.")) > 3)
    gpu.capture().ok()
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    assert gpu.used() == 128
    gpu.goes_on(new)
    gpu.goes_on(new, "out.")


def test_three_generations(gpu: SimulatedGpu) -> None:
    bundle = gpu.start("g0")
    for number in range(3):
        gpu.capture(name=f"g{number}").ok()
        bundle = gpu.copy_of(bundle, f"g{number + 1}")
        gpu.restore(bundle, f"g{number + 1}").ok()
        gpu.goes_on(bundle)


@pytest.mark.parametrize("paused", [False, True])
def test_leave_running_brings_the_gpu_back(gpu: SimulatedGpu, paused: bool) -> None:
    old = gpu.start("old")
    if paused:
        gpu.machine.runc("pause", "old").ok()
    gpu.capture("--leave-running").ok()
    assert gpu.used() == 64
    if paused:
        assert gpu.machine.status("old") == "paused"
        gpu.machine.runc("resume", "old").ok()
    gpu.goes_on(old)


@pytest.mark.parametrize("before", ["locked", "checkpointed"])
def test_a_state_from_before_is_kept_in_the_source_and_running_in_the_copy(gpu: SimulatedGpu, before: str) -> None:
    old = gpu.start("old")
    pid = str(gpu.machine.state_of("old")["pid"])
    tool = str(gpu.built / "cuda-checkpoint")
    subprocess.run([tool, "--action", "lock", "--timeout", "1000", "--pid", pid], check=True)
    if before == "checkpointed":
        subprocess.run([tool, "--action", "checkpoint", "--pid", pid], check=True)
    gpu.capture("--leave-running").ok()
    said = subprocess.run([tool, "--get-state", "--pid", pid], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == before
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    gpu.goes_on(new)


def test_nothing_of_the_container_runs_before_start(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    new = _annotated(gpu, old)
    gpu.grit("create", "--bundle", str(new.path), "new").ok()
    assert gpu.used() == 64
    before = lines(new)
    time.sleep(0.3)
    assert lines(new) == before
    gpu.grit("start", "new").ok()
    gpu.goes_on(new)


FAULTS = {
    "Lock hang": "did not return in time",
    "Lock 304": "CUDA_ERROR_OPERATING_SYSTEM (304)",
    "Checkpoint 999": "CUDA_ERROR_UNKNOWN (999)",
    "Checkpoint 801": "managed memory",
    "Checkpoint 401": "CUDA_ERROR_ILLEGAL_STATE (401)",
    "GetRestoreThreadId 304": "CUDA_ERROR_OPERATING_SYSTEM (304)",
    "GetState =3": "failed",
    "GetState =9": "unknown CUDA state",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_capture_that_the_driver_refuses_leaves_the_container_running(gpu: SimulatedGpu, fault: str) -> None:
    gpu.configure(top={"timeouts": {"command": 5}})
    old = gpu.start("old", two=True)
    gpu.faults(fault)
    failed = gpu.capture()
    gpu.faults()
    assert failed.code != 0
    assert FAULTS[fault] in failed.err
    if "hang" in fault:
        gpu.grit("recover").ok()
    assert gpu.machine.status("old") == "running"
    assert not (gpu.machine.checkpoints / "c").exists()
    gpu.goes_on(old)
    gpu.goes_on(old, "out.")


def test_work_that_does_not_end_in_time(gpu: SimulatedGpu) -> None:
    gpu.configure(lock_timeout=0.5)
    bundle = gpu.bundle("old", seconds=3)
    gpu.machine.runc("run", "-d", "--bundle", str(bundle.path), "old").ok()
    gpu.machine.wait(lambda: gpu.used() == 64)
    time.sleep(0.2)
    failed = gpu.capture()
    assert failed.code != 0
    assert "did not end within 0.5 s" in failed.err
    gpu.machine.wait(lambda: len(lines(bundle)) >= 2, timeout=15)


def test_a_memory_limit_that_the_gpu_memory_does_not_fit_into(gpu: SimulatedGpu) -> None:
    bundle = gpu.bundle("old", mib=512)
    bundle.edit(lambda c: c["linux"]["resources"].update(memory={"limit": 256 << 20}))
    gpu.machine.runc("run", "-d", "--bundle", str(bundle.path), "old").ok()
    gpu.machine.wait(lambda: len(lines(bundle)) >= 3)
    failed = gpu.capture()
    assert failed.code != 0
    assert "512 MiB on the GPU do not fit" in failed.err
    assert "MiB are missing" in failed.err
    gpu.goes_on(bundle)


def test_mps_and_mig_are_refused_by_name(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    gpu.settings(mps=[gpu.machine.state_of("old")["pid"]])
    assert "client of MPS" in gpu.capture().err
    gpu.settings(mig=1)
    assert "in MIG mode" in gpu.capture().err
    gpu.settings()
    gpu.goes_on(old)


def test_a_process_on_two_gpus_is_refused_and_may_be_allowed(gpu: SimulatedGpu) -> None:
    """The second one of the simulated NVML is a mirror of the first: the driver knows one."""
    gpu.settings(mirrored=1)
    old = gpu.start("old")
    failed = gpu.capture()
    assert failed.code != 0
    assert "has memory on 2 GPUs" in failed.err
    gpu.goes_on(old)
    gpu.configure(multi_gpu="allow")
    gpu.capture("--leave-running").ok()
    gpu.goes_on(old)


@pytest.mark.parametrize("mode", ["driver", "cuda-checkpoint"])
def test_another_gpu_of_the_model_takes_the_old_ones_place(gpu: SimulatedGpu, mode: str) -> None:
    gpu.configure(mode=mode, program=str(gpu.built / "cuda-checkpoint"))
    old = gpu.start("old")
    gpu.capture().ok()
    gpu.settings(uuid="GPU-00000000-0000-0000-0000-000000000002")
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    assert gpu.used() == 64
    gpu.goes_on(new)


@pytest.mark.parametrize(
    ("by", "why"),
    [
        ("shared", "share memory (/dev/zero (deleted)), as users of CUDA IPC do"),
        ("ranks", "are ranks of NCCL and may have mapped each other's memory"),
    ],
)
def test_processes_that_may_have_mapped_each_others_memory(gpu: SimulatedGpu, by: str, why: str) -> None:
    old = gpu.start("old", two=True, by=by)
    gpu.machine.wait(lambda: len(lines(old, "out.")) > 3)
    failed = gpu.capture()
    assert failed.code != 0
    assert why in failed.err
    gpu.goes_on(old)
    gpu.configure(ipc="ignore")
    gpu.capture().ok()
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    gpu.goes_on(new)
    gpu.goes_on(new, "out.")


def test_a_process_that_begins_to_use_a_gpu_while_the_container_is_frozen(gpu: SimulatedGpu) -> None:
    """One that has NVIDIA's devices open, and isn't among those that were taken into memory."""
    old = gpu.bundle("old")
    script = "mount -t tmpfs t /dev && touch /dev/nvidia0 && exec sleep 100 < /dev/nvidia0"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script])
    try:
        gpu.machine.wait(lambda: "/dev/nvidia0" in proc.open_paths(process.pid))
        gpu.machine.runc("run", "-d", "--bundle", str(old.path), "old").ok()
        gpu.machine.wait(lambda: len(lines(old)) >= 3)
        for path in old.cgroups():
            (path / "cgroup.procs").write_text(str(process.pid))
        failed = gpu.capture()
        assert failed.code != 0
        assert "has /dev/nvidia0 open without CUDA" in failed.err
        gpu.goes_on(old)
    finally:
        process.kill()
        process.wait()


def test_the_nodes_of_the_old_host_are_replaced(machine: Machine) -> None:
    """CRIU makes /dev/nvidia0 with the numbers that it had on the checkpoint's host."""
    root = machine.path / "root"
    for directory in ("dev", "bin"):
        (root / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy(busybox, root / "bin/busybox")
    os.mknod(root / "dev/nvidia0", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev/nvidia1").symlink_to("/etc/passwd")
    wanted = tuple(Device(path=f"/dev/nvidia{n}", major=1, minor=5 + n) for n in range(3))
    process = subprocess.Popen(["chroot", str(root), "/bin/busybox", "sleep", "100"])
    try:
        machine.wait(lambda: os.path.samefile(f"/proc/{process.pid}/root", root))
        cudarestore.repair_devices(process.pid, wanted)
        made = [(root / f"dev/nvidia{n}").lstat() for n in range(3)]
        assert [(m.st_rdev, stat.S_ISCHR(m.st_mode), m.st_mode & 0o777) for m in made] == [
            (os.makedev(1, 5 + n), True, 0o666) for n in range(3)
        ]
        cudarestore.repair_devices(process.pid, wanted)
        assert [m.st_ino for m in made] == [(root / f"dev/nvidia{n}").lstat().st_ino for n in range(3)]
        shutil.rmtree(root / "dev")
        (root / "dev").symlink_to("/tmp")
        with pytest.raises(RestoreError, match="/dev"):
            cudarestore.repair_devices(process.pid, wanted)
    finally:
        process.kill()
        process.wait()


def test_no_driver_at_all(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    gpu.configure(library_path=[])
    assert "no CUDA driver" in gpu.capture().err
    gpu.goes_on(old)


PROBLEMS = {
    "driver": ({"driver": "999.1"}, "was taken with driver 580.00.00, and this node has 999.1"),
    "free": ({"taken": 1000}, "has 24 MiB free, and 64 MiB are needed"),
    "model": ({"name": "Another GPU", "uuid": "GPU-00000000-0000-0000-0000-000000000002"}, "no GPU for GPU-"),
    "mig": ({"mig": 1}, "is in MIG mode"),
    "compute": ({"compute": 2}, "compute mode Prohibited"),
    "several": ({"mig": 1, "driver": "999.1"}, "2 problems"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_node_that_does_not_fit_is_refused_before_anything_is_touched(gpu: SimulatedGpu, case: str) -> None:
    old = gpu.start("old")
    gpu.capture().ok()
    settings, said = PROBLEMS[case]
    gpu.settings(**settings)
    new = gpu.copy_of(old)
    before = tree(gpu.machine.checkpoints)
    failed = gpu.restore(new)
    assert failed.code != 0
    assert said in failed.err
    assert "nothing was touched" in failed.err
    assert tree(gpu.machine.checkpoints) == before
    gpu.settings()
    gpu.restore(new).ok()
    gpu.goes_on(new)


def test_a_container_without_a_gpu_is_refused(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    gpu.capture().ok()
    new = gpu.copy_of(old)
    new.edit(lambda c: c["process"].update(env=[]))
    assert "gives the container no GPU" in gpu.restore(new).err


RESTORE_FAULTS = {
    "Restore 2": "CUDA_ERROR_OUT_OF_MEMORY (2)",
    "Restore 304": "CUDA_ERROR_OPERATING_SYSTEM (304)",
    "Restore hang": "did not return in time",
    "Unlock 999": "CUDA_ERROR_UNKNOWN (999)",
    "GetState =3": "failed",
}


@pytest.mark.parametrize("fault", RESTORE_FAULTS)
@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_gpu_that_does_not_come_back_ends_the_container(gpu: SimulatedGpu, fault: str, verb: str) -> None:
    gpu.configure(timeout=3)
    old = gpu.start("old")
    new = _annotated(gpu, old)
    images = str(gpu.machine.checkpoints / "ns/first/app/checkpoint")
    gpu.faults(fault)
    more = ["-d", "--image-path", images] if verb == "restore" else []
    failed = gpu.grit(verb, *more, "--bundle", str(new.path), "new")
    assert failed.code != 0
    assert RESTORE_FAULTS[fault] in failed.err
    assert "cannot bring back CUDA in container new" in failed.err
    assert gpu.machine.status("new") == "gone"
    assert gpu.used() == 0
    gpu.faults()
    gpu.grit(verb, *more, "--bundle", str(new.path), "new").ok()
    if verb == "create":
        gpu.grit("start", "new").ok()
    gpu.goes_on(new)


@pytest.mark.parametrize("where", ["annotation", "configuration"])
def test_a_cold_start_is_taken_only_where_it_was_asked_for(gpu: SimulatedGpu, where: str) -> None:
    old = gpu.start("old")
    new = _annotated(gpu, old)
    gpu.settings(taken=1000)
    assert gpu.grit("create", "--bundle", str(new.path), "new").code != 0
    if where == "annotation":
        new.edit(lambda c: c["annotations"].update({"grit.dev/on-restore-failure": "cold-start"}))
    else:
        gpu.configure(top={"on_restore_failure": "cold-start"})
    gpu.settings()
    gpu.faults("Restore 2")
    gpu.grit("create", "--bundle", str(new.path), "new").ok()
    said = (gpu.machine.path / "log.json").read_text()
    assert "starts cold, without its checkpoint" in said
    assert "CUDA_ERROR_OUT_OF_MEMORY" in said
    for file in new.data.iterdir():
        file.write_text("")
    gpu.machine.runc("start", "new").ok()
    gpu.machine.wait(lambda: len(lines(new)) > 3)
    assert lines(new)[0] == expected(1)[0]


def test_a_checkpoint_that_is_not_there_may_be_a_cold_start_too(gpu: SimulatedGpu) -> None:
    new = gpu.bundle("new")
    new.annotate(type="container", name="app", namespace="ns", restore_name="absent")
    assert gpu.grit("create", "--bundle", str(new.path), "new").code != 0
    new.edit(lambda c: c["annotations"].update({"grit.dev/on-restore-failure": "cold-start"}))
    gpu.grit("create", "--bundle", str(new.path), "new").ok()
    assert "starts cold" in (gpu.machine.path / "log.json").read_text()
    gpu.machine.runc("start", "new").ok()
    gpu.machine.wait(lambda: len(lines(new)) > 3)


def _kill_at(gpu: SimulatedGpu, argv: list[str], delay: float) -> None:
    process = subprocess.Popen(
        gpu.machine.argv(*argv),
        env={**gpu.machine.environment(), **gpu.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=gpu.machine.path,
    )
    time.sleep(delay)
    process.kill()
    process.wait()


@pytest.mark.parametrize("phase", ["Lock", "Checkpoint"])
def test_a_capture_killed_in_a_cuda_phase_leaves_the_container_running(gpu: SimulatedGpu, phase: str) -> None:
    old = gpu.start("old")
    gpu.faults(f"{phase} slow")
    process = subprocess.Popen(
        gpu.machine.argv("checkpoint", "--image-path", str(gpu.machine.checkpoints / "c"), "old"),
        env={**gpu.machine.environment(), **gpu.environment},
        cwd=gpu.machine.path,
    )
    gpu.machine.wait_for_effect("cuda")
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gpu.faults()
    assert "could not" not in gpu.grit("recover").ok().out
    assert gpu.machine.status("old") == "running"
    gpu.goes_on(old)


def test_a_capture_killed_at_any_step_costs_nothing(gpu: SimulatedGpu) -> None:
    old = gpu.start("old")
    steps = gpu.machine.path / "steps"
    probe = str(gpu.machine.checkpoints / "probe")
    gpu.machine.grit(
        "checkpoint", "--leave-running", "--image-path", probe, "old", GRIT_TEST_STEPS=str(steps), **gpu.environment
    ).ok()
    for step in range(1, int(steps.read_text()) + 1, 2):
        images = gpu.machine.checkpoints / f"step-{step}"
        gpu.machine.grit(
            "checkpoint", "--leave-running", "--image-path", str(images), "old",
            GRIT_TEST_KILL_AT=str(step), **gpu.environment,
        )  # fmt: skip
        assert "could not" not in gpu.grit("recover").ok().out
        assert gpu.machine.leftovers() == [], f"step {step}"
        assert not images.exists() or (images / "grit.json").exists()
        gpu.goes_on(old)


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9, 1.2])
def test_a_restore_killed_leaves_nothing(gpu: SimulatedGpu, delay: float) -> None:
    old = gpu.start("old")
    gpu.capture().ok()
    new = gpu.copy_of(old)
    gpu.faults("Restore slow")
    images = str(gpu.machine.checkpoints / "c")
    _kill_at(gpu, ["restore", "-d", "--image-path", images, "--bundle", str(new.path), "new"], delay)
    gpu.faults()
    gpu.grit("recover").ok()
    assert gpu.machine.status("new") == "gone"
    gpu.machine.wait(lambda: gpu.used() == 0)
    gpu.restore(new).ok()
    gpu.goes_on(new)


class TestTheSimulation:
    """It must fail when a step is skipped, or it would prove nothing."""

    def test_a_process_that_was_not_checkpointed_cannot_be_dumped(self, gpu: SimulatedGpu) -> None:
        gpu.start("old")
        images = str(gpu.machine.checkpoints / "c")
        assert gpu.machine.runc("checkpoint", "--leave-running", "--image-path", images, "old").code != 0

    @pytest.mark.parametrize("skipped", ["lock", "restore", "unlock"])
    def test_a_step_is_missed(self, gpu: SimulatedGpu, skipped: str) -> None:
        old = gpu.start("old")
        tool = str(gpu.built / "cuda-checkpoint")

        def act(action: str, name: str) -> int:
            pid = str(gpu.machine.state_of(name)["pid"])
            return subprocess.run(
                [tool, "--action", action, "--timeout", "1000", "--pid", pid],
                env={**os.environ, **gpu.environment},
                check=False,
            ).returncode

        if skipped == "lock":
            assert act("checkpoint", "old") != 0
            return
        assert act("lock", "old") == 0
        assert act("checkpoint", "old") == 0
        images = str(gpu.machine.checkpoints / "c")
        gpu.machine.runc("checkpoint", "--image-path", images, "old").ok()
        new = gpu.copy_of(old)
        gpu.machine.runc("restore", "-d", "--image-path", images, "--bundle", str(new.path), "new").ok()
        if skipped == "unlock":
            assert act("restore", "new") == 0
        before = lines(new)
        time.sleep(1)
        assert lines(new) == before, "it went on, and nobody brought the GPU back"
        assert gpu.used() == (0 if skipped == "restore" else 64)


def test_images_that_runc_wrote_of_a_checkpointed_process(gpu: SimulatedGpu) -> None:
    """No manifest says what used CUDA: it is found, brought back and verified all the same, or refused."""
    old = gpu.start("old")
    pid = str(gpu.machine.state_of("old")["pid"])
    for action in ("lock", "checkpoint"):
        tool = [str(gpu.built / "cuda-checkpoint"), "--action", action, "--timeout", "1000", "--pid", pid]
        subprocess.run(tool, check=True, env={**os.environ, **gpu.environment})
    gpu.machine.runc("checkpoint", "--image-path", str(gpu.machine.checkpoints / "c"), "old").ok()
    new = gpu.copy_of(old)
    gpu.configure(library_path=[])
    assert "no CUDA driver" in gpu.restore(new).err
    gpu.configure()
    gpu.restore(new).ok()
    assert gpu.used() == 64
    gpu.goes_on(new)


def test_memory_is_in_huge_pages_only_while_cuda_is_moved(gpu: SimulatedGpu) -> None:
    """Also when the runtime is killed meanwhile. The node's own setting is put back as it was."""
    before = hugepages.setting()
    Path(hugepages.SETTING).write_text("madvise")
    gpu.configure(staging="never")
    try:
        old = gpu.start("old")
        gpu.faults("Checkpoint slow")
        argv = gpu.machine.argv("checkpoint", "--image-path", str(gpu.machine.checkpoints / "killed"), "old")
        environment = {**gpu.machine.environment(), **gpu.environment}
        process = subprocess.Popen(argv, env=environment, cwd=gpu.machine.path)
        gpu.machine.wait_for_effect("huge-pages")
        gpu.machine.wait(lambda: hugepages.setting() == "always")
        process.kill()
        process.wait()
        gpu.grit("recover").ok()
        assert hugepages.setting() == "madvise"
        gpu.faults()
        gpu.capture().ok()
        assert hugepages.setting() == "madvise"
        new = gpu.copy_of(old)
        gpu.restore(new).ok()
        assert hugepages.setting() == "madvise"
        gpu.goes_on(new)
        for record in sorted((gpu.machine.logs / "operations").iterdir())[-2:]:
            phases = json.loads(record.read_text())["phases"]
            (span,) = [phase for phase in phases if phase["name"] == "huge pages"]
            steps = [phase["name"] for phase in phases if phase["name"].startswith("cuda ")]
            assert steps == (["cuda checkpoint", "cuda lock"] if "-checkpoint-" in record.name else [])
            assert span["detail"] == f"set {hugepages.SETTING} from madvise to always"
            assert span["begin"] < span["end"]
            assert "unended" not in span
    finally:
        Path(hugepages.SETTING).write_text(before)
