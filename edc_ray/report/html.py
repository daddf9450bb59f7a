"""A page of sections as one file: no script, no network, pictures inside."""

import base64
import struct
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edc_ray.report.section import HALF, Rows, Section

WIDE = 800  # px: a picture that is scrolled, rather than shrunk, on a narrow screen
STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #222;
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem;
  border-bottom: 1px solid #ddd }
p { margin: .4rem 0; max-width: 52rem; overflow-wrap: anywhere }
nav { font-size: .9rem } nav a { margin-right: .8rem; white-space: nowrap; display: inline-block }
.scroll { overflow-x: auto; margin: .6rem 0; max-width: 100% }
#claim p:first-of-type { font-size: 1.25rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
th:first-child, td:first-child, td.text, th.text { text-align: left }
th, td.text { white-space: normal; vertical-align: bottom }
@media (max-width: 30rem) { th, td { padding: .2rem .4rem } } th { background: #f5f5f5 }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start }
figure { margin: 0; max-width: 100% } img { max-width: 100%; height: auto; display: block }
figure.wide { overflow-x: auto } figure.wide img { min-width: 40rem }
figcaption { margin-top: 1rem } figcaption p:first-child { font-weight: 600 }
figcaption p { font-size: .88rem; margin: .1rem 0 }
caption { font-size: .85rem; color: #555; text-align: left }
"""


def page(title: str, made: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<a href="#{_anchor(each)}">{_text(each.title)}</a>' for each in made)
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{_text(title)}</h1>\n<nav>{links}</nav>\n"
    )
    return head + "".join(map(_section, made)) + "</body></html>\n"


def _text(text: str) -> str:
    """Escaped, with a sign for the +- of the terminal."""
    return escape(text).replace("+-", "&plusmn;")


def _anchor(section: Section) -> str:
    return _text(section.title.lower().replace(" ", "-"))


def _section(section: Section) -> str:
    text = "".join(f"<p>{_text(line)}</p>\n" for line in section.text)
    many = len(section.tables) > 1
    tables = "".join(_table(name if many else "", rows) for name, rows in section.tables.items())
    tables = f'<div class="row">{tables}</div>\n' if tables else ""
    pictures = "".join(
        _figure(name, data, section.captions.get(name, ())) for name, data in section.pictures.items()
    )
    pictures = f'<div class="row">{pictures}</div>\n' if pictures else ""
    head = f'<section id="{_anchor(section)}"><h2>{_text(section.title)}</h2>\n'
    return f"{head}{text}{pictures}{tables}</section>\n"


def _figure(name: str, data: bytes, caption: Sequence[str]) -> str:
    code = base64.b64encode(data).decode()
    width, height = struct.unpack(">II", data[16:24])  # of a PNG
    wide = ' class="wide"' if width > WIDE else ""
    size = f'width="{width}" height="{height}" alt="{_text(name)}"'
    lines = "".join(f"<p>{_text(line)}</p>\n" for line in caption)
    told = f"<figcaption>{lines}</figcaption>" if caption else ""
    return f'<figure{wide}>{told}<img {size} src="data:image/png;base64,{code}"></figure>\n'


def _table(name: str, rows: Rows) -> str:
    found = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in found if name.removeprefix(HALF) not in found or not name.startswith(HALF)]
    words = {name for name in columns if any(isinstance(row.get(name), str) for row in rows)}
    kind = {name: ' class="text"' if name in words else "" for name in columns}
    head = "".join(f"<th{kind[name]}>{_text(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind[name]}>{_text(_interval(name, row))}</td>" for name in columns)
        + "</tr>\n"
        for row in rows
    )
    caption = f"<caption>{_text(name.replace('_', ' '))}</caption>" if name else ""
    return f'<div class="scroll"><table>{caption}<tr>{head}</tr>\n{body}</table></div>\n'


def _interval(column: str, row: Mapping[str, Any]) -> str:
    """A number with its half width, where it has one."""
    half = _cell(column, row.get(HALF + column))
    return _cell(column, row.get(column)) + (f" +- {half}" if half else "")


def _cell(column: str, value: Any) -> str:
    """Percentages with two digits behind the point, other numbers with three digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        if column.endswith("%"):
            return f"{value:.2f}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
