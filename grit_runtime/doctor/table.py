"""All checks, and judging by them. Pure."""

from collections.abc import Iterator

from grit_runtime.doctor import enginechecks, gpuchecks, nodechecks, storagechecks
from grit_runtime.doctor.facts import Facts
from grit_runtime.doctor.model import Judged, State

IDS = tuple(
    check.id
    for check in (
        *nodechecks.CHECKS,
        *enginechecks.CHECKS,
        *enginechecks.ENGINE_CHECKS,
        *storagechecks.CHECKS,
        *storagechecks.FOLDER_CHECKS,
        *gpuchecks.CHECKS,
    )
)


def judge(facts: Facts) -> list[Judged]:
    """Every check, in the order in which it is worth reading."""
    return list(_judge(facts))


def _judge(facts: Facts) -> Iterator[Judged]:
    for check in (*nodechecks.CHECKS, *enginechecks.CHECKS):
        yield Judged(id=check.id, about="", verdict=check.judge(facts))
    for engine in facts.engines:
        for of_engine in enginechecks.ENGINE_CHECKS:
            yield Judged(id=of_engine.id, about=engine.name, verdict=of_engine.judge(facts, engine))
    for check in storagechecks.CHECKS:
        yield Judged(id=check.id, about="", verdict=check.judge(facts))
    for folder in (folder for folder in facts.folders if folder.exists):
        for of_folder in storagechecks.FOLDER_CHECKS:
            yield Judged(id=of_folder.id, about=folder.path, verdict=of_folder.judge(facts, folder))
    for check in gpuchecks.CHECKS:
        yield Judged(id=check.id, about="", verdict=check.judge(facts))


def able(judged: list[Judged], *, gpu: bool) -> bool:
    """Whether nothing fails that a container needs.

    Args:
        gpu: one with CUDA; else what GPUs are like is left out.
    """
    needed = [item for item in judged if gpu or not item.id.startswith("gpu.")]
    there = not gpu or any(item.id == "gpu.api" and item.verdict.state is State.OK for item in judged)
    return there and all(item.verdict.state is not State.FAIL for item in needed)
