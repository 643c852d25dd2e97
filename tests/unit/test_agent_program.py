"""The agent's calls of the runtime, and its turns: none waits for ever, and none ends by failing for long."""

import asyncio
import time

import pytest

from grit_runtime.agent import capture
from grit_runtime.agent.queue import Key, Queue
from grit_runtime.errors import CaptureError


def test_a_recover_that_does_not_end_is_ended() -> None:
    program = capture.Program(argv=("sh", "-c", "exec sleep 60"), timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(CaptureError, match="did not end within 0 s"):
        asyncio.run(capture.recover(program))
    assert time.monotonic() - begun < 10


def test_an_object_that_fails_a_thousand_times_is_looked_at_again() -> None:
    """Its pause doubles, and is bounded: 2**1024 is more than a float holds."""
    turns = 0
    key: Key = ("checkpoints", "default", "x")

    async def look(_: Key) -> float | None:
        nonlocal turns
        turns += 1
        if turns > 1100:
            return None
        raise CaptureError("no")

    async def run() -> None:
        queue = Queue(look, pause=1e-320)  # doubled 16 times it is no pause yet
        queue.wake(key)
        while turns <= 1100:
            await asyncio.sleep(0)
        await queue.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert turns == 1101
