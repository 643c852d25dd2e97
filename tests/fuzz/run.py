"""Fuzz one target by coverage, with atheris: `python -m tests.fuzz.run TARGET SECONDS [DIRECTORY]`.

Starts from the seeds that are kept, and writes what reaches more to DIRECTORY; `-merge=1` of libFuzzer makes few of
many. A finding is a file `crash-*` in the current directory.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grit_runtime"]):
    from tests.fuzz import targets


def main() -> None:
    name, seconds, *more = sys.argv[1:]
    found = Path(more[0] if more else f"build/fuzz/{name}")
    found.mkdir(parents=True, exist_ok=True)
    kept = targets.CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=4096",
        "-print_final_stats=1",
    ]
    if "--merge" in more:
        arguments = ["-merge=1", "-max_len=4096"]
        found, kept = kept, found
    atheris.Setup([sys.argv[0], *arguments, str(found), str(kept)], targets.TARGETS[name])
    atheris.Fuzz()


main()
