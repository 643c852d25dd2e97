"""A report as one HTML page with its timeline as inline SVG: nothing in it is fetched, and no script runs. Pure.

Every text in it is escaped: an error line and a container's name may hold anything.
"""

import html
from collections.abc import Iterable

from grit_runtime.inspection import words
from grit_runtime.report import text
from grit_runtime.report.model import MEANINGS, Operation, Phase, lanes

_WIDTH, _LEFT = 1000.0, 8.0
_LANE, _BAR = 34, 24
_AXIS = 26
_TICKS = 8
_LETTER = 7.2  # width of one, for names that stand within their bars
_COLOURS = (
    "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#edc948", "#9c755f", "#ff9da7", "#86bcb6", "#d37295",
    "#a0cbe8", "#ffbe7d", "#8cd17d", "#d4a6c8", "#bab0ac", "#499894",
)  # fmt: skip
_FAILED = "#c00"
# `default-src 'none'`: even if something came to be in it that asks for a page, the browser would not fetch it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1040px; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.3rem } dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere } .failed { color: #c00; overflow-wrap: anywhere }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .15rem .6rem; border-bottom: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } td:last-child { color: #666 }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b } dt, td:last-child { color: #aaa } th, td { border-color: #444 }
  svg text.axis { fill: #ccc }
}
"""


def render(found: Operation) -> str:
    """The page."""
    colours = _colours(found.phases)
    title = _escaped(text.headline(found))
    facts = [("checkpoint", found.images), ("record", found.source), ("grit-runtime", found.version)]
    if found.began is not None:
        facts.insert(0, ("began", text.instant(found.began)))
    listed = "".join(f"<dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd>" for name, value in facts if value)
    failure = ""
    if found.error:
        failure = (
            f'<p class="failed"><strong>{_escaped(found.error)}</strong><br>in {_escaped(text.failed_in(found))}</p>'
        )
    said = "".join(f"<p>{_escaped(line)}</p>" for line in (text.check(found), *text.notes(found)))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n{failure}<dl>{listed}</dl>\n{_timeline(found, colours)}\n{said}\n"
        f"{_table(found, colours)}\n</body></html>\n"
    )


def _timeline(found: Operation, colours: dict[str, str]) -> str:
    """Each phase a bar, those that overlap in lanes below each other."""
    drawn = lanes(found.phases)
    height = _AXIS + _LANE * max(1, len(drawn)) + 4
    whole = max([found.seconds, *(phase.end for phase in found.phases)]) or 1.0
    scale = (_WIDTH - 2 * _LEFT) / whole
    parts = list(_axis(whole, scale, height))
    for number, lane in enumerate(drawn):
        for phase in lane:
            failed = not found.ok and (phase is found.last or phase.unended)
            parts.append(_bar(phase, scale, _AXIS + number * _LANE, colours[phase.name], failed=failed))
    return (
        f'<svg id="timeline" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="timeline" '
        f'viewBox="0 0 {_WIDTH:.0f} {height}">{"".join(parts)}</svg>'
    )


def _axis(whole: float, scale: float, height: int) -> Iterable[str]:
    step = _step(whole / _TICKS)
    for number in range(int(whole / step) + 1):
        x = _LEFT + number * step * scale
        yield f'<line x1="{x:.2f}" x2="{x:.2f}" y1="18" y2="{height}" stroke="#8886"/>'
        anchor = "start" if number == 0 else "end" if x > _WIDTH - 40 else "middle"
        yield f'<text class="axis" x="{x:.2f}" y="13" text-anchor="{anchor}">{number * step:g} s</text>'


def _step(at_least: float) -> float:
    """The smallest of 1, 2, 5, times a power of ten, that is large enough."""
    power = 1e-6
    while power * 10 < at_least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= at_least or factor == 10)


def _bar(phase: Phase, scale: float, top: int, colour: str, *, failed: bool) -> str:
    x, width = _LEFT + phase.begin * scale, max(phase.seconds * scale, 0.8)
    name, edge = _escaped(phase.name), f' stroke="{_FAILED}" stroke-width="2"' if failed else ""
    about = f"{phase.name}: {phase.seconds:.3f} s, from {phase.begin:.3f} s"
    if phase.size is not None:
        about += f", {words.size(phase.size)}"
    label = ""
    if width > len(phase.name) * _LETTER + 6:
        label = f'<text x="{x + 4:.2f}" y="{top + 16}" fill="#111">{name}</text>'
    return (
        f'<g class="phase" data-name="{name}"><title>{_escaped(about)}</title>'
        f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{_BAR}" rx="2" fill="{colour}"{edge}/>{label}</g>'
    )


def _table(found: Operation, colours: dict[str, str]) -> str:
    heads = "".join(
        f"<th{_NUMBER if number else ''}>{name}</th>"
        for name, number in (("phase", 0), ("seconds", 1), ("share", 1), ("bytes", 1), ("rate", 1), ("what", 0))
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(_rows(found, colours))}</tbody></table>"


_NUMBER = ' class="number"'


def _rows(found: Operation, colours: dict[str, str]) -> Iterable[str]:
    for phase in found.phases:
        cells = (
            f"{phase.seconds:.3f}",
            f"{phase.seconds / found.seconds:.1%}" if found.seconds else "",
            words.size(phase.size) if phase.size is not None else "",
            f"{words.size(int(phase.rate))}/s" if phase.rate else "",
        )
        numbers = "".join(f"<td{_NUMBER}>{_escaped(cell)}</td>" for cell in cells)
        beside = "+ " if phase.span else ""
        swatch = f'<span class="swatch" style="background:{colours[phase.name]}"></span>'
        yield (
            f"<tr><td>{swatch}{beside}{_escaped(phase.name)}</td>{numbers}"
            f"<td>{_escaped(MEANINGS.get(phase.name, ''))}</td></tr>"
        )


def _colours(phases: Iterable[Phase]) -> dict[str, str]:
    """A colour for each name, by its place among those there are."""
    named = list(dict.fromkeys(phase.name for phase in phases))
    return {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(named)}


def _escaped(value: str) -> str:
    return html.escape(words.shown(value, 5000), quote=True)
