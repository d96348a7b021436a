"""The look of report.html, and the pieces of HTML it is built of.

Text given to a function is escaped by it; only parameters named `html` are taken as they are.
"""

from collections.abc import Iterable, Sequence
from html import escape

# The policy makes the browser itself refuse scripts and requests, whatever a text may contain.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1c1e; --muted: #636870; --rule: #e3e4e1;
  --paper: #f6f6f3; --card: #ffffff; --accent: #2f62d9; --other: #c2570c; --on: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9e9e6; --muted: #9ba1a9; --rule: #34373b;
  --paper: #141517; --card: #1d1f22; --accent: #6c9bff; --other: #f0954a; --on: #0d1220; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 14px; margin: 0 0 6px; }
p { margin: 0 0 8px; }
.muted { color: var(--muted); }
header .muted { overflow-wrap: anywhere; }
.hero { font-size: 48px; line-height: 1.1; font-weight: 650; margin: 20px 0 0;
  letter-spacing: -0.02em; }
.hero small, dd small { font-size: 0.5em; font-weight: 400; color: var(--muted);
  letter-spacing: 0; white-space: nowrap; }
dl { margin: 0; } dd { margin: 0; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; }
.facts dt { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 8px;
  margin-top: 16px; }
.tiles div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 8px 12px; }
.tiles dt { color: var(--muted); font-size: 13px; } .tiles dd { font-size: 20px; }
.tiles dd small { font-size: 0.65em; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 12px; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px; min-width: 0; max-width: 560px; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 4px; }
svg { display: block; width: 100%; height: auto; font-size: 11px;
  font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); } svg text.muted { fill: var(--muted); }
svg text.on { fill: var(--on); }
svg path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
path.gridline { stroke: var(--rule); stroke-width: 1; }
path.line { stroke: var(--accent); stroke-width: 2; }
path.thin { stroke: var(--accent); stroke-width: 1.25; stroke-opacity: 0.55; }
path.raw { stroke: var(--accent); stroke-width: 1; stroke-opacity: 0.3; }
path.other { stroke: var(--other); stroke-width: 2; }
path.ideal { stroke: var(--muted); stroke-width: 1.25; stroke-dasharray: 2 4; }
circle.dot { fill: var(--accent); stroke: var(--card); stroke-width: 1; }
circle.dot.other { fill: var(--other); }
circle.point { fill: var(--accent); fill-opacity: 0.35; }
rect.area { fill: none; stroke: var(--rule); }
rect.cell { fill: var(--accent); }
rect.gap { fill: var(--other); fill-opacity: 0.3; stroke: var(--other); stroke-width: 1; }
rect.count { fill: var(--muted); fill-opacity: 0.6; }
.key { margin-left: 12px; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; background: var(--accent); }
.key.raw::before { opacity: 0.35; } .key.other::before { background: var(--other); }
.key.cell::before, .key.gap::before { height: 10px; width: 10px; }
.key.gap::before { background: var(--other); opacity: 0.5; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 500; }
th, td { text-align: left; vertical-align: top; padding: 4px 12px 4px 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th.n, td.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td:last-child, th:last-child { padding-right: 0; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--muted); padding: 4px 0; }
.pairs { max-width: 760px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap: 12px; margin: 0; padding: 0; list-style: none; align-items: start; }
.cards li { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 14px; min-width: 0; }
.cards p { white-space: pre-line; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 6px 0 0; }
.cards details { margin-top: 4px; }
.said { color: var(--other); font-weight: 600; } .cards b { font-weight: 600; }
"""


def page(title: str, html_parts: Iterable[str]) -> str:
    """A whole document of sections."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(html_parts)
        + "\n</main></body></html>\n"
    )


def header(
    run: str,
    heading: str,
    facts: Sequence[tuple[str, str]],
    scores: Sequence[tuple[str, str, str, str]],
    nothing: str,
) -> str:
    """The top of the page: facts are (name, value); scores are (name, value, spread, basis), of
    which the first is set large; `nothing` is what stands there without any."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    html = f'<header><p class="muted">{escape(run)}</p><h1>{escape(heading)}</h1>'
    html += f'<dl class="facts">{listed}</dl>' if listed else ""
    if not scores:
        return html + note(nothing) + "</header>"
    name, value, spread, basis = scores[0]
    html += f'<p class="hero">{escape(value)} <small>{escape(spread)}</small></p>'
    html += note(f"{name}, {basis}" if basis else name)
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt>"
        f"<dd>{escape(value)} <small>{escape(spread)}</small></dd></div>"
        for name, value, spread, _ in scores[1:]
    )
    return html + (f'<dl class="tiles">{tiles}</dl>' if tiles else "") + "</header>"


def section(heading: str, html: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{html}</section>"


def note(text: str) -> str:
    """A sentence in place of what there is no data for."""
    return f'<p class="muted">{escape(text)}</p>'


def figure(heading: str, html: str, caption: str, keys: Sequence[tuple[str, str]] = ()) -> str:
    """A chart or table in a card; `keys` are (style, name) of what its colours mean."""
    legend = "".join(f'<span class="key {style}">{escape(name)}</span>' for style, name in keys)
    under = f"<figcaption>{escape(caption)}{legend}</figcaption>" if caption or legend else ""
    return f"<figure><h3>{escape(heading)}</h3>{html}{under}</figure>"


def grid(html_figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(html_figures)}</div>'


def fold(summary: str, html: str, is_open: bool = False) -> str:
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{html}</details>"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of text cells; the columns `numeric` are set to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        opened = [f'<{tag} class="n">' if i in numeric else f"<{tag}>" for i in range(len(row))]
        return "".join(f"{o}{escape(c)}</{tag}>" for o, c in zip(opened, row, strict=True))

    head = f"<thead><tr>{cells('th', heads)}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def cards(html_items: Sequence[str]) -> str:
    """A list of `mistake`s."""
    return f'<ul class="cards">{"".join(html_items)}</ul>'


def mistake(text: str, prediction: str, sureness: str, label: str, shown: int) -> str:
    """A card: what was predicted, how surely, the label, and the text, long ones folded."""
    head = (
        f'<span class="said">{escape(prediction)}</span> {escape(sureness)} '
        f'<span class="muted">label</span> <b>{escape(label)}</b>'
    )
    if len(text) <= shown:
        return f"<li>{head}<p>{escape(text)}</p></li>"
    whole = fold(f"all {len(text):,} characters", f"<p>{escape(text)}</p>")
    return f"<li>{head}<p>{escape(text[:shown])}…</p>{whole}</li>"
