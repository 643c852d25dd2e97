"""Having the runtime capture a pod's containers.

kubelet's checkpoint API and the CRI's CheckpointContainer take one container at a time, each paused for its own dump
alone, so what they make of a pod is no state that it was ever in. So `grit-runtime capture` is called on the node, with
all containers: it freezes them all before it dumps the first.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from grit_runtime.errors import CaptureError

_LOG = logging.getLogger("grit-agent")
_COMPLETE = b"complete\n"
_GRACE = 30.0  # seconds that the runtime has to undo what it began


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How the runtime is called on the node: `nsenter ... grit-runtime`, from a pod."""

    argv: tuple[str, ...]
    timeout: float = 3600.0
    """Seconds for a whole capture; the runtime has limits of its own within."""


async def capture(
    program: Program, name: str, containers: Sequence[str], ends: Callable[[], Awaitable[bool]] | None
) -> None:
    """Capture containers as one set; on any failure they run on.

    Args:
        containers: their ids.
        ends: asked once the set is complete, the containers still frozen: whether they end there. None: they run on.

    Raises:
        CaptureError: in the runtime's words.
    """
    asking = ["--ask"] if ends else []
    process = await asyncio.create_subprocess_exec(
        *program.argv, "capture", "--name", name, *asking, *containers,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(program.timeout):
            await _converse(process, ends)
    except TimeoutError:
        raise CaptureError(f"the runtime has not captured it within {program.timeout:.0f} s") from None
    finally:
        await _end(process)


async def recover(program: Program) -> None:
    """Have the runtime undo what calls have left that were killed with an agent: containers may still be frozen."""
    try:
        process = await asyncio.create_subprocess_exec(
            *program.argv, "recover", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as err:
        raise CaptureError(f"cannot call {' '.join(program.argv)}: {err.strerror}") from None
    try:
        async with asyncio.timeout(program.timeout):
            _, said = await process.communicate()
    except TimeoutError:
        raise CaptureError(f"the runtime's `recover` did not end within {program.timeout:.0f} s") from None
    finally:
        await _end(process)
    if process.returncode:
        _LOG.warning("recover: %s", said.decode(errors="replace").strip())


async def _converse(process: asyncio.subprocess.Process, ends: Callable[[], Awaitable[bool]] | None) -> None:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    said = asyncio.create_task(process.stderr.read())
    try:
        first = await process.stdout.readline()
        if ends and first == _COMPLETE:
            answer = b"stop\n" if await ends() else b"go on\n"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(answer)
                await process.stdin.drain()
        process.stdin.close()
        await process.stdout.read()
        code = await process.wait()
        text = (await said).decode(errors="replace").strip()
    finally:
        said.cancel()
    if code:
        lines = text.splitlines() or [f"it ended with {code}"]
        raise CaptureError(lines[-1].removeprefix("grit-runtime: "))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Have it undo what it began, if it still runs: it does so on SIGTERM; and the end of its input is `run on`."""
    if process.stdin:
        process.stdin.close()
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GRACE)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
