"""The report as one HTML page that needs nothing else: no other file, no network, no script."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from tcl_jax.evaluation.report import (
    SCORE_HEADS,
    SOURCES,
    Fingerprints,
    Rows,
    Summary,
    caveats,
    class_table,
    describe_fingerprint,
    score_rows,
    summarize,
)
from tcl_jax.evaluation.results import RANKS, BenchmarkResult
from tcl_jax.files import whole_file
from tcl_jax.pictures.lettering import one_line

Pictures = Mapping[str, Mapping[str, Mapping[str, Path]]]
"""PNG files by row, benchmark, and "classes" or rank, as `report_pictures.write_pictures` says."""

_STYLE = """
:root { color-scheme: light; --ink: #22242a; --faint: #666b75; --line: #e2e5ea; --accent: #26639f; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: var(--ink); font: 16px/1.5 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1280px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 0 0 .8rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .6rem; }
p { margin: .4rem 0; }
a { color: var(--accent); }
.faint, .note { color: var(--faint); }
.note { font-size: .92rem; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1.2rem 0; }
nav a { background: #fff; border: 1px solid var(--line); border-radius: 999px;
  padding: .15rem .8rem; text-decoration: none; font-size: .95rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; margin: 1.25rem 0;
  padding: 1.4rem; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; padding-right: 1.2rem; }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: inherit; }
tr.measured { font-weight: 650; }
tr.published { color: var(--faint); }
tr.difference { color: var(--accent); }
tbody tr:last-child > * { border-bottom: 0; }
.star { position: absolute; }
.classes { columns: 19rem; column-gap: 2.5rem; }
.classes .wide { overflow: visible; }
.classes table { width: 100%; }
.classes td, .classes th { white-space: normal; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.2rem;
  margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; }
figure { margin: 1rem 0 0; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line);
  border-radius: 8px; }
details { margin-top: 1.2rem; }
summary { cursor: pointer; color: var(--accent); }
details > .wide { margin-top: .6rem; }
@media (max-width: 760px) {
  main { padding: 1.2rem .6rem 3rem; }
  section { padding: 1rem .8rem; border-radius: 8px; }
  th, td { padding: .3rem .5rem; }
  th:first-child { position: sticky; left: 0; background: #fff; white-space: normal;
    min-width: 7.5rem; padding-right: .6rem; }
  figure img { max-width: none; width: max(100%, calc(var(--width) * .55px)); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print { section { break-inside: avoid; } nav { display: none; } }
"""


def write_html(
    path: str | os.PathLike[str],
    rows: Rows,
    fingerprints: Fingerprints | None = None,
    pictures: Pictures | None = None,
) -> None:
    """Writes the page: the table beside the published figures, the protocol, every benchmark.

    Args:
        path: the file, by custom report.html.
        rows: what was measured, see `report.summarize`.
        fingerprints: of the rows.
        pictures: of the rows; the files become part of the page.
    """
    fingerprints, pictures = fingerprints or {}, pictures or {}
    summary = summarize(rows, fingerprints)
    methods = ", ".join(rows)
    names = dict.fromkeys(name for results in rows.values() for name in results)
    titles = {n: next(r[n].benchmark.title for r in rows.values() if n in r) for n in names}
    body = [
        f"<h1>Zero-shot segmentation: {_text(methods)}</h1>",
        f'<p class="faint">{_text(SOURCES)}</p>',
        _section(None, "Results", _summary(summary)),
    ]
    if len(names) > 1:
        links = (f'<a href="#{_text(_anchor(n))}">{_text(titles[n])}</a>' for n in names)
        body.append(f'<nav aria-label="benchmarks">{"".join(links)}</nav>')
    for name in names:
        results = {label: results[name] for label, results in rows.items() if name in results}
        files = {label: pictures.get(label, {}).get(name, {}) for label in results}
        content = _benchmark(results, fingerprints, files)
        body.append(_section(_anchor(name), titles[name], content))
    for label, fingerprint in fingerprints.items():
        facts = "".join(
            f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>"
            for key, value in describe_fingerprint(fingerprint)
        )
        title = f"Protocol of {label}"
        body.append(_section(None, title, [f"<dl>{facts}</dl>"]))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Zero-shot segmentation: {_text(methods)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    with whole_file(path) as temporary:
        text = page + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
        temporary.write_text(text, encoding="utf-8")


def _summary(summary: Summary) -> list[str]:
    table = _table(
        ("mIoU, %", *summary.heads),
        [(row.label, *row.cells) for row in summary.rows],
        [row.kind for row in summary.rows],
    )
    return [table, *_notes(summary.notes)]


def _benchmark(
    results: Mapping[str, BenchmarkResult],
    fingerprints: Fingerprints,
    files: Mapping[str, Mapping[str, Path]],
) -> list[str]:
    """Scores, pictures and classes of one benchmark."""
    kinds = ["measured"] * len(results)
    table = score_rows(results)
    parts = [_table(SCORE_HEADS, table, kinds + ["published"] * (len(table) - len(kinds)))]
    notes = (note for k, r in results.items() for note in caveats(r, fingerprints.get(k, {})))
    parts += _notes(dict.fromkeys(notes))
    for label, result in results.items():
        title = result.benchmark.title
        if len(results) > 1 and files[label]:
            parts.append(f"<h3>{_text(label)}</h3>")
        if "classes" in files[label]:
            words = f"IoU of every class of {title}, {label}"
            parts.append(_figure(files[label]["classes"], words))
        for rank in RANKS:
            if rank in files[label]:
                words = f"{rank} image of {title}, {label}: image, true labels, prediction"
                parts.append(_figure(files[label][rank], words))
    heads, classes = class_table(results)
    kind = "wide" if len(results) > 1 else "classes"
    parts.append(
        f"<details><summary>IoU and accuracy of all {len(classes):,} classes</summary>"
        f'<div class="{kind}">{_table(heads, classes)}</div></details>'
    )
    return parts


# ------------------------------------------------------------------------------------------- pieces


def _section(anchor: str | None, title: str, content: Iterable[str]) -> str:
    place = f' id="{_text(anchor)}"' if anchor else ""
    return f"<section{place}>\n<h2>{_text(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def _table(
    heads: Sequence[str], table: Sequence[Sequence[str]], kinds: Sequence[str] | None = None
) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    lines = []
    for i, (first, *cells) in enumerate(table):
        kind = f' class="{kinds[i]}"' if kinds else ""
        inner = "".join(f"<td>{_number(cell)}</td>" for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{_text(first)}</th>{inner}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        "</div>"
    )


def _number(cell: str) -> str:
    """A cell whose "*", if there is one, does not move the digits."""
    star = '<span class="star">*</span>' if cell.endswith("*") else ""
    return _text(cell.removesuffix("*")) + star


def _notes(notes: Iterable[str]) -> list[str]:
    return [f'<p class="note">* {_text(note)}</p>' for note in notes]


def _figure(file: Path, words: str) -> str:
    """A picture with its size, so that the page does not jump while it is read."""
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    return (
        f'<figure class="wide"><img width="{width}" height="{height}" style="--width: {width}" '
        f'alt="{_text(words)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        "</figure>"
    )


def _anchor(name: str) -> str:
    return f"benchmark-{name}"


def _text(text: str) -> str:
    """Any text, so that a browser shows it as it is."""
    return html.escape(one_line(text))
