"""Bringing a checkpoint back as another container.

Read everything, plan, and only then touch the machine, within a transaction: a staged copy of the images, CRIU's
configuration by the annotation `org.criu.config` in the bundle's config.json (put back as soon as the downstream has
read it), the downstream's `restore`, verification. CRIU leaves every task stopped (`leave-stopped`), so that what is
verified cannot end meanwhile, and no instruction runs in a container that is found wrong. The tasks are continued at
the end, or by `start` where the restore serves `create`: the journal stays open in the phase `created` until then.
"""

import json
import os
import signal
import subprocess
import time

from grit_runtime import names
from grit_runtime.criu import hints, images, logs, stage
from grit_runtime.downstream import relay
from grit_runtime.errors import RestoreError
from grit_runtime.host import effects, files, oom, proc, remount, run
from grit_runtime.host.transaction import Transaction
from grit_runtime.host.workspace import Workspace, open_workspace
from grit_runtime.workflow import contents, intended, operations, recover, verify
from grit_runtime.workflow.context import Context, new_marker
from grit_runtime.workflow.effects import restored_container
from grit_runtime.workflow.prepare import Prepared, Request, prepare, with_devices
from grit_runtime.workflow.source import Source, open_source


def restore(context: Context, request: Request) -> int:
    """Restore the container.

    Returns:
        The exit code for the caller: the container's own if it ran in the foreground, else 0.

    Raises:
        GritError: nothing is left of the attempt.
    """
    with operations.recorded(context, "create" if request.serves_create else "restore", request.images):
        running = _restore(context, request)
    return _wait(running) if running else 0


def _restore(context: Context, request: Request) -> subprocess.Popen[bytes] | None:
    log, record = context.log, context.record
    record.mark("lock")
    recover.other_restores(context.config.state_dir, context.workspace_path, lambda text: log.line("warning", text))
    workspace = open_workspace(context.workspace_path, timeout=context.config.timeouts.lock)
    try:
        if recover.settle(workspace) is not None or context.downstream.has(context.container):
            raise intended.taken(context.container)
    except BaseException:
        workspace.close(remove=not os.path.exists(workspace.journal))
        raise
    transaction = Transaction(workspace, {**context.header("restore"), "images": request.images})
    try:
        record.mark("open")
        source = open_source(context, transaction, request.images, request.pin)
        record.mark("plan")
        request = with_devices(context, request, f"{context.workspace_path}/toolkit")
        prepared = prepare(context, request, source.found)
        mine = proc.namespace("self", "mnt")
        transaction.amend({"stopped": list(prepared.plan.stopped), "mount-namespace": mine})
        try:
            running = _apply(context, request, prepared, source, transaction)
        finally:
            if prepared.cuda:
                prepared.cuda.close()
    except BaseException as err:
        transaction.abort(err)
        raise
    transaction.close(keep=request.serves_create)
    return running


def _apply(
    context: Context, request: Request, prepared: Prepared, source: Source, transaction: Transaction
) -> subprocess.Popen[bytes] | None:
    mark = context.record.mark
    mark("stage")
    staged = _stage(transaction.workspace, prepared)
    edit = _configure(context, request, prepared, transaction)
    mark("contents")
    contents.apply(context, transaction, prepared.contents, request.bundle)
    mark("mountpoints")
    timeout = context.config.timeouts.command
    kept = effects.cgroup_options(context.config.state_dir)
    led = intended.shared_links(context, prepared.plan)
    try:
        points = intended.mountpoints(prepared.plan)
        for_a_moment = intended.place_for_old_root(request.bundle, points)
        for effect in (*kept, *points, *for_a_moment, *led):
            transaction.do(effect)
    except OSError as err:
        raise RestoreError(f"cannot restore container {context.container}: {err.filename}: {err.strerror}") from None
    transaction.do(
        restored_container(
            context.downstream, context.container, request.bundle.rootfs, request.bundle.cgroups_path, timeout
        )
    )
    marker = new_marker()
    transaction.do(effects.Programs(marker, staged, grace=0, timeout=timeout))
    mark("criu")
    pid, running = _run(context, request, staged, transaction.workspace, marker)
    try:
        mark("verify")
        for done in (*reversed(led), *for_a_moment, *kept, edit, *source.effects):
            transaction.undo(done)
        pids = _verify(context, request, prepared, pid)
        _bring_back(context, request, prepared, transaction, pid, pids)
        mark("release")
        if request.pid_file:
            transaction.do(effects.WriteFile(request.pid_file, str(pid)))
        files.remove_tree(staged)
        if request.serves_create:
            transaction.phase(recover.CREATED)
        elif not request.shell_job:
            # What took long may have outlived a process, and another one have its pid.
            late = prepared.memory.parts or prepared.cuda
            release(context, list(prepared.plan.stopped), None if late else pids)
    except BaseException:
        if running:
            running.kill()
        raise
    return running


def _stage(workspace: Workspace, prepared: Prepared) -> str:
    staged = workspace.file("images")
    os.mkdir(staged, 0o700)
    source = prepared.plan.images
    rewritten = {name: images.rewrite(source, name, changes) for name, changes in prepared.plan.rewrites.items()}
    stage.build(source, staged, {**rewritten, **prepared.made_up}, as_parent=bool(prepared.memory.staged))
    return staged


def _configure(context: Context, request: Request, prepared: Prepared, transaction: Transaction) -> effects.ReplaceFile:
    """Write CRIU's configuration and name it in config.json; the rest of config.json stays as it is."""
    bundle, workspace, made, cuda = request.bundle, transaction.workspace, prepared.plan, prepared.cuda
    if cuda:
        os.makedirs(workspace.file(names.NO_PLUGINS), mode=0o700)
    configuration = workspace.file("criu.conf")
    files.write_atomically(configuration, intended.criu_configuration(context, bundle, made).encode())
    annotations = {**bundle.section("annotations"), names.CRIU_CONFIG_ANNOTATION: configuration}
    config = cuda.with_devices(bundle.config) if cuda else bundle.config
    edited = json.dumps({**config, "annotations": annotations}).encode()
    effect = effects.replace_file(bundle.config_path, bundle.raw, edited, workspace.path)
    transaction.do(effect)
    return effect


def _run(
    context: Context, request: Request, staged: str, workspace: Workspace, marker: str
) -> tuple[int, subprocess.Popen[bytes] | None]:
    """Have the downstream restore, with our caller's stdio for the container; its pid file is ours until all is
    verified.
    """
    log_file, pid_file = workspace.file("runc.log"), workspace.file("init.pid")
    work = request.work or workspace.file("work")
    if not request.work:
        os.mkdir(work, 0o700)
    argv = intended.command(context, request, staged, log_file=log_file, work=work, pid_file=pid_file)
    name, _, value = marker.partition("=")
    env = {**run.caller_environment(), name: value}
    # Killed with us: a shim whose `create` was killed takes the rootfs away at once, and a runc that goes on would make
    # mountpoints in what is left of it. (Not so at a dump: CRIU must end by itself there.)
    process = subprocess.Popen(argv, env=env, close_fds=False, preexec_fn=proc.die_with_parent)
    ended = _await_restore(process, pid_file if request.foreground else "", context.config.timeouts.restore)
    said = relay(context.log, log_file)
    if ended not in (None, 0):
        cause = (
            logs.reason(os.path.join(work, "restore.log"))
            or said
            or f"{context.downstream.program} restore exited with {ended}"
        )
        criu_log = os.path.join(work, "restore.log")
        from grit_runtime.workflow import describe

        kept = describe.keep_log(context.config.log_dir, context.container, criu_log)
        raise RestoreError(
            f"cannot restore container {context.container} from {request.images}: {cause}",
            hint=hints.with_log(criu_log, kept),
        )
    try:
        pid = int(files.read_text(pid_file))
    except ValueError:
        raise RestoreError(f"{context.downstream.program} restore wrote no pid file") from None
    return pid, process if ended is None else None


def _await_restore(process: subprocess.Popen[bytes], pid_file: str, timeout: float) -> int | None:
    """Wait until the downstream ended, or, where `pid_file` is given, until it wrote that and stays as the container's
    parent.

    Returns:
        Its exit code, or None if it stays.
    """
    deadline = time.monotonic() + timeout
    if not pid_file:
        try:
            return run.wait(process, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RestoreError(f"the restore did not end within {timeout:.0f} s") from None
    while process.poll() is None and not os.path.exists(pid_file):  # runc writes it by rename, when CRIU is done
        if not run.wait_until(deadline):
            process.kill()
            raise RestoreError(f"the restore did not end within {timeout:.0f} s")
    return None if os.path.exists(pid_file) else process.returncode


def _verify(context: Context, request: Request, prepared: Prepared, pid: int) -> list[int]:
    """Look at the container from outside; the processes in its cgroup."""
    pids = context.downstream.processes(context.container, timeout=context.config.timeouts.command)
    processes = prepared.images.processes
    alive = sum(not process.zombie for process in processes)
    verify.restored(context.container, request.bundle, pids, pid, alive, processes[0].pid)
    if request.bundle.section("root").get("readonly"):
        remount.make_root_read_only(pid)  # CRIU restores the flags of the root mount since 4.2
    score = request.bundle.section("process").get("oomScoreAdj")
    if isinstance(score, int):
        try:
            oom.raise_to(score, pids)  # CRIU gives back the one that was in the images
        except OSError as err:
            raise RestoreError(
                f"cannot give container {context.container} the oomScoreAdj {score} of config.json: {err.strerror}"
            ) from None
    return pids


def _bring_back(
    context: Context, request: Request, prepared: Prepared, transaction: Transaction, pid: int, pids: list[int]
) -> None:
    """What CRIU has left out: memory and CUDA."""
    if not prepared.cuda:
        if prepared.memory.parts:
            context.record.mark("memory")
            if context.config.memory.fill == names.FILL_BEHIND:
                from grit_runtime.workflow import memorybehind

                if memorybehind.begin(context, prepared.memory, request.images, pid, pids):
                    return
            from grit_runtime.workflow import memoryfill

            memoryfill.fill(context, prepared.memory, pids)
        return
    from grit_runtime.workflow import cudamemory

    stopped = not request.shell_job
    cudamemory.bring_back(context, prepared.memory, prepared.cuda, transaction, pid, pids, stopped=stopped)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Stay as the foreground downstream's parent: hand on signals, return its exit code."""
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGINT,
        signal.SIGQUIT,
    ):
        signal.signal(number, lambda received, _: process.send_signal(received))
    code = process.wait()
    return 128 - code if code < 0 else code


def release(context: Context, stopped: list[int], pids: list[int] | None = None) -> None:
    """Let a container's tasks run, but for those that were stopped at the dump.

    Args:
        pids: its processes, where they were looked at just now.
    """
    keep = frozenset(stopped)
    if pids is None:
        pids = context.downstream.processes(context.container, timeout=context.config.timeouts.command)
    for pid in pids:
        if proc.inner_pid(pid) not in keep:
            proc.send_signal(pid, signal.SIGCONT)
