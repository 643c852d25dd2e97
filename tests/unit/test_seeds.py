"""What a coverage-guided fuzzer has found to reach most (`make fuzz`), once more: of the package's readers, and of the
launcher's, which are C, with sanitizers.
"""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import targets

_HARNESS = Path(targets.__file__).with_name("launcher.c")
_BROKEN = 4  # of each seed
_LONG = b"--root=" + b"/\x01y" * 1200 + b"\0create\0c"


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_no_seed_does_more_than_be_refused(target: str) -> None:
    kept = targets.seeds(target)
    assert len(kept) > 5
    for seed in kept:
        targets.TARGETS[target](seed)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launcher") / "launcher"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1"]
    subprocess.run(["cc", *sanitize, "-Wno-unused-function", "-o", str(made), str(_HARNESS)], check=True)
    return made


@pytest.mark.needs("cc")
def test_the_launcher_reads_within_bounds_whatever_the_seeds_are(launcher: Path, tmp_path: Path) -> None:
    chosen = random.Random(7)
    inputs = [seed for target in ("argv", "raw", "pagemap") for seed in targets.seeds(target)]
    inputs += [
        b'{"a": "\\u0067rit.dev\\/',
        b"\\",
        b"\\u00",
        b"state-dir: /x\ndownstream: 'a",
        b"x" * 9000,
        b"/" * 5000,
        _LONG,
    ]
    for seed in inputs:
        for number in range(_BROKEN):
            data = bytearray(seed)
            for _ in range(number):
                data[chosen.randrange(len(data))] = chosen.choice(b"-=/.\\\0\"'x\xff")
            file = tmp_path / "input"
            file.write_bytes(data)
            words = [word for word in bytes(data[:4000]).split(b"\0") if word]
            env = {
                **os.environ,
                "GRIT_RUNTIME_CONFIG": str(file),
                "LAUNCHER_INPUT": str(file),
                "ASAN_OPTIONS": "detect_leaks=0",
            }
            ran = subprocess.run([bytes(launcher), *words], env=env, capture_output=True, timeout=20, check=False)
            assert ran.returncode == 0, (data, ran.stderr.decode(errors="replace"))
