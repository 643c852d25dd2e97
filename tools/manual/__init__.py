"""What of the manual is made from the program itself: `make docs` writes it, tests/unit/test_manual.py compares.

Nothing here reads the clock, the machine or git, so that the same source gives the same files.
"""

from pathlib import Path

from tools.manual import configuration, pages

ROOT = Path(__file__).resolve().parents[2]


def rendered() -> dict[Path, str]:
    """Every generated file of the manual, with what it should hold."""
    reference = ROOT / "docs/configuration.md"
    return {reference: configuration.filled(reference.read_text()), **pages.rendered(ROOT / "docs/man")}


def stale() -> list[Path]:
    """Files in docs/man that nothing makes any more."""
    wanted = rendered()
    return [path for path in sorted((ROOT / "docs/man").glob("*.1")) if path not in wanted]
