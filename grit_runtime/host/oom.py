"""The OOM killer's scores (proc(5), oom_score_adj)."""

from collections.abc import Iterable


def raise_to(score: int, pids: Iterable[int]) -> None:
    """Have no process count for less than `score`; one that has a higher one, by its own wish, keeps it.

    Raises:
        OSError: a score can't be written; not of a process that is gone.
    """
    for pid in pids:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as stream:
                if int(stream.read()) < score:
                    stream.seek(0)
                    stream.write(str(score))
        except (FileNotFoundError, ProcessLookupError):
            continue
