"""Fuzz one target by coverage, with atheris: `python -m tests.fuzz.run TARGET SECONDS [DIRECTORY]`.

Starts from the seeds that are kept, and collects what reaches more in DIRECTORY (build/fuzz/TARGET). A finding ends it,
with a file `crash-*` there. libFuzzer's statistics are at the end of what it prints.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["grit_runtime"]):
    from tests.fuzz import targets


def main() -> None:
    name, seconds, *more = sys.argv[1:]
    place = Path(more[0] if more else f"build/fuzz/{name}").resolve()
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (place / "corpus" / f"seed-{number}").write_bytes(seed)
    limits = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]
    arguments = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={place}/", *limits]
    atheris.Setup([sys.argv[0], *arguments, str(place / "corpus")], targets.TARGETS[name])
    atheris.Fuzz()


main()
