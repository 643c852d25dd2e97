"""The picture in the README: the output of a run of the demo, drawn as a terminal. `make recording`.

The picture is made of the output alone: the same output gives the same bytes. tests/e2e/test_demo.py compares a run of
today with it.
"""

import html
import io
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs/demo.svg"
_WIDTH = 106
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def record(runtime: Path) -> str:
    """Run the demo; its output.

    Raises:
        subprocess.CalledProcessError: it failed, and there is nothing to be shown.
    """
    argv = [sys.executable, str(ROOT / "examples/demo/demo.py"), "--runtime", str(runtime)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return done.stdout


def draw(output: str) -> str:
    """A terminal with that output, as SVG that fetches nothing from elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in ["$ make demo", *output.splitlines()]:
        style = "bold" if line.startswith("$") else "bold cyan" if line.startswith("==") else ""
        text = Text(line, style=style)
        text.highlight_regex(r"^   ok:", "green")
        console.print(text, soft_wrap=False)
    return _FONT.sub("", console.export_svg(title="grit-runtime", unique_id="demo"))


def shown(picture: str) -> list[str]:
    """The lines of text in a picture."""
    rows: dict[float, str] = {}
    for row, text in re.findall(r'<text class="demo-r\d+"[^>]* y="([0-9.]+)"[^>]*>([^<]*)</text>', picture):
        rows[float(row)] = rows.get(float(row), "") + html.unescape(text).replace("\xa0", " ")
    return [rows[row].rstrip() for row in sorted(rows)]


def main() -> None:
    """Run the demo by the runtime that is named, and draw it."""
    (runtime,) = sys.argv[1:]
    PICTURE.write_text(draw(record(Path(runtime))))
    print(f"docs: wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
