"""`e2e`: the whole way, tried on this node."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from grit_runtime.commands import common
from grit_runtime.errors import GritError, InterruptedCallError, UsageError
from grit_runtime.inspection import words

if TYPE_CHECKING:
    from grit_runtime.e2e.node import Node
    from grit_runtime.e2e.story import Report

FAILED, UNABLE, INTERRUPTED = 1, 2, 130
_ROOM = 3  # times the workload's memory must be free: the workload, its images in the page cache, and some


@dataclass(frozen=True, slots=True)
class End:
    """How it ended: the exit code, the error line, and what CRIU's log says."""

    code: int = 0
    problem: str = ""
    diagnosis: str = ""


@click.command("e2e")
@click.option(
    "--memory",
    default=64,
    show_default=True,
    metavar="MIB",
    type=click.IntRange(1, 1 << 20),
    help="How much memory the workload holds.",
)
@click.option(
    "--timeout",
    default=180,
    show_default=True,
    metavar="SECONDS",
    type=click.IntRange(1, 86400),
    help="How long all of it may take, cleaning up aside.",
)
@click.option(
    "--runtime",
    default="",
    metavar="FILE",
    type=click.Path(),
    help="The runtime to try.  [default: this installation's]",
)
@click.option(
    "--directory",
    default="/var/tmp",
    show_default=True,
    metavar="DIR",
    type=click.Path(),
    help="Where its one directory is made, with the checkpoint.",
)
@click.option("--no-gpu", is_flag=True, help="Give the workload no GPU, though there is one.")
@click.option("--keep", is_flag=True, help="Leave the files (bundles, checkpoint, logs), to look at them.")
@click.option(
    "--clean", is_flag=True, help="Try nothing: remove what runs that were killed, or kept, left in --directory."
)
@common.as_json_option
def command(
    memory: int, timeout: int, runtime: str, directory: str, no_gpu: bool, keep: bool, clean: bool, as_json: bool
) -> int:
    """Try the whole way on this node: start a pod, capture it, remove it, bring it back as another one, and look.

    The workload is a counter with a child and memory of random content, made of the node's own Python: no image and no
    network are needed, and no engine, for the runtime is called as one would. After the restore it must go on
    with the next number, know its token, have its memory to the last byte, and see the new pod's files. Its containers,
    cgroups and its one directory are named grit-e2e-SUFFIX, and are removed at the end, however it ends.

    \b
    grit-runtime e2e
    grit-runtime e2e --memory 4096 --directory /mnt/fast
    grit-runtime e2e --json | jq .phases

    Where there is an NVIDIA GPU and libcuda.so.1, it holds memory on the first one, too; else that part is reported as
    skipped, and why. Exits with 0 if all is so, 1 if not, 2 if it can't be tried
    here, 130 if it was interrupted.
    """

    def say() -> int:
        from grit_runtime.e2e import gpu, story
        from grit_runtime.e2e import node as nodes
        from grit_runtime.workflow import register

        place = common.absolute(directory)
        program = common.absolute(runtime) if runtime else register.launcher("--runtime")
        _require_able(place, 0 if clean else memory)
        found = nodes.leftovers(place)
        if clean:
            return _clean([nodes.Node.left(program, path) for path in found])
        for path in found:
            click.echo(words.shown(f"warning: an earlier run left {path} (`e2e --clean` removes it)"), err=True)
        try:
            node = nodes.Node.make(program, place, timeout)
        except OSError as err:
            raise UsageError(f"cannot make a directory in {place}: {err.strerror}", hint="--directory") from None
        device, why = (None, "--no-gpu") if no_gpu else gpu.find(common.config().cuda.library_path)
        report = story.Report(tell=lambda line: None if as_json else common.printed(words.shown(line) + "\n"))
        report.skipped += [] if device else [f"the GPU: {why}"]
        try:
            end = _ended(node, lambda: story.play(node, report, memory, device))
        finally:
            left = node.close(keep=keep)
        if left and not end.code:
            end = End(FAILED, f"could not be removed: {'; '.join(left)}")
        left += [node.base] if keep and not left else []
        if as_json:
            common.printed_json(_document(report, end, left))
        else:
            _tell(report, end, left)
        return end.code

    return common.said(say, failure=UNABLE)


def _ended(node: "Node", play: Callable[[], None]) -> End:
    try:
        play()
    except InterruptedCallError as err:
        return End(INTERRUPTED, str(err))
    except GritError as err:
        return End(FAILED, str(err), _diagnosed(node))
    except OSError as err:
        return End(FAILED, f"{err.strerror or err}{f': {err.filename}' if err.filename else ''}")
    return End()


def _require_able(directory: str, mebibytes: int) -> None:
    if os.geteuid() != 0:
        raise UsageError("e2e starts containers, which only root can", hint="sudo grit-runtime e2e")
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is no directory", hint="name one by --directory")
    needed = mebibytes << 20
    found = os.statvfs(directory)
    if found.f_bavail * found.f_frsize < needed + (256 << 20):
        raise UsageError(f"{directory} has not room enough for {mebibytes} MiB of memory", hint="--memory, --directory")
    with open("/proc/meminfo", encoding="ascii") as stream:
        free = next(int(line.split()[1]) << 10 for line in stream if line.startswith("MemAvailable:"))
    if free < _ROOM * needed:
        raise UsageError(
            f"{words.size(free)} of memory are free, and {_ROOM} times {mebibytes} MiB needed", hint="--memory"
        )


def _diagnosed(node: "Node") -> str:
    """What the logs of CRIU that were kept say, if anything."""
    from grit_runtime.diagnosis import output, read
    from grit_runtime.diagnosis.judge import judge

    try:
        logs = (
            [read.read(path) for path in read.logs(common.config(), node.logs)[:1]] if os.path.isdir(node.logs) else []
        )
    except (GritError, OSError):
        return ""
    return output.render([output.Judged(log.path, judge(log.lines, whole=log.whole)) for log in logs]) if logs else ""


def _clean(nodes: "list[Node]") -> int:
    failed = 0
    for node in nodes:
        left = node.close()
        failed = failed or int(bool(left))
        common.printed(words.shown(f"{node.base}: {'; '.join(left) or 'removed'}") + "\n")
    return failed


def _tell(report: "Report", end: End, left: list[str]) -> None:
    for line in report.skipped:
        common.printed(f" skipped: {line}\n")
    for line in left:
        common.printed(words.shown(f"    left: {line}") + "\n")
    if end.diagnosis:
        common.printed(f"CRIU's log says:\n{end.diagnosis}")
    if end.code:
        click.echo(words.shown(f"grit-runtime: e2e failed: {end.problem}", 4000), err=True)
    else:
        seconds, size = sum(taken for _, taken in report.phases), words.size(report.checkpoint_bytes)
        common.printed(f"passed: {len(report.checks)} checks, a checkpoint of {size}, {seconds:.1f} s\n")


def _document(report: "Report", end: End, left: list[str]) -> dict[str, Any]:
    return {
        "passed": end.code == 0,
        "problem": end.problem,
        "diagnosis": end.diagnosis,
        "phases": [{"phase": title, "seconds": round(seconds, 3)} for title, seconds in report.phases],
        "checks": [{"check": text, "holds": holds} for text, holds in report.checks],
        "skipped": report.skipped,
        "checkpoint_bytes": report.checkpoint_bytes,
        "left": left,
    }
