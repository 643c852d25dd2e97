"""One thing at a time for each object, again after a failure: what controllers call a work queue.

An object's turn is asked for by its key. While it is being looked at, further requests are one more turn after it. A
failure is tried again after a pause that doubles.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from grit_runtime.errors import GritError

Key = tuple[str, str, str]
"""Kind, namespace, name."""
_LOG = logging.getLogger("grit-agent")
_MOST = 60.0
_MOST_DOUBLINGS = 16  # beyond any pause; a float has no room for a thousand


class Queue:
    """Calls `look` with a key; it returns the seconds after which to look again by itself, or None."""

    def __init__(self, look: Callable[[Key], Awaitable[float | None]], *, pause: float = 0.2) -> None:
        self._look = look
        self._pause = pause
        self._wanted: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def wake(self, key: Key) -> None:
        """Look at an object soon."""
        self._wanted.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._serve(key), name="/".join(key))

    async def close(self) -> None:
        """End everything; what is under way is cancelled."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, key: Key) -> None:
        failures = 0
        try:
            while True:
                self._wanted[key].clear()
                try:
                    after = await self._look(key)
                    failures = 0
                except GritError as err:
                    _LOG.warning("%s: %s", "/".join(key), err)
                    after, failures = self._pause_after(failures), failures + 1
                except Exception:  # noqa: BLE001 - a bug in one object's turn must not end the others'
                    _LOG.exception("%s", "/".join(key))
                    after, failures = self._pause_after(failures), failures + 1
                if not await self._wait(key, after):
                    return
        finally:
            self._tasks.pop(key, None)

    def _pause_after(self, failures: int) -> float:
        return float(min(self._pause * 2 ** min(failures, _MOST_DOUBLINGS), _MOST))

    async def _wait(self, key: Key, after: float | None) -> bool:
        """Until it is wanted or `after` seconds have passed; False if there is nothing to wait for."""
        wanted = self._wanted[key]
        if wanted.is_set():
            return True
        if after is None:
            del self._wanted[key]
            return False
        try:
            await asyncio.wait_for(wanted.wait(), after)
        except TimeoutError:
            pass
        return True
