"""Scores as a table beside the published ones: in the terminal, as results.md and as report.html.

`summarize` makes the table; the files are Jinja templates in `tcl_jax/assets`, with one content.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from tcl_jax.evaluation.benchmark import BENCHMARKS, load_benchmark, paper_benchmarks
from tcl_jax.evaluation.results import BenchmarkResult, Evaluated, published_mean
from tcl_jax.files import user_path, whole_file
from tcl_jax.inference.settings import MAX_LONG_SIDE, THRESHOLDS, InferenceSettings
from tcl_jax.models.methods import METHODS
from tcl_jax.pictures.lettering import one_line, printable

HEADS = {
    "voc": "voc", "context": "context", "coco_object": "object", "voc20": "voc20",
    "context59": "context59", "coco_stuff": "stuff", "cityscapes": "city", "ade20k": "ade",
}  # fmt: skip
"""Column heads of built-in benchmarks, as the paper abbreviates them; others have their names."""
MEAN = ""
"""Key of the column of means; no benchmark can have this name."""
UNKNOWN = "-"
"""What stands where there is no figure."""

_SOURCES = (
    "mIoU in per cent. Measured: by this run. Published: by the paper (TCL, CVPR 2023, arXiv "
    "2212.00785), or by what describes a benchmark of your own."
)
_TEMPLATES = Path(__file__).parent.parent / "assets"
_SCORE_HEADS = ("", "mIoU", "mAcc", "aAcc", "images", "time")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table; its kind is "measured", "difference" or "published"."""

    label: str
    kind: str
    cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table for any kind of page.

    Attributes:
        heads: of all columns; the first is that of the labels.
        rows: measured ones first.
        notes: sentences on what makes figures not comparable; their cells end with "*".
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def summarize(found: Mapping[str, Evaluated]) -> Table:
    """The mIoU with a column per benchmark and a row per method; of two also their difference.

    The built-in benchmarks and their mean have columns if one of them was judged; a user's own
    follow. See `published_mean` for the mean.
    """
    judged = {
        name: result.benchmark for one in found.values() for name, result in one.results.items()
    }
    built_in = BENCHMARKS if judged.keys() & {*BENCHMARKS} else ()
    own = [name for name in judged if name not in BENCHMARKS]
    columns = [*built_in, *([MEAN] if built_in else []), *own]
    benchmarks = {name: judged.get(name) or load_benchmark(name) for name in [*built_in, *own]}

    rows: list[Row] = []
    scores: dict[str, dict[str, float | None]] = {}
    notes: dict[str, None] = {}
    for title, one in found.items():
        values = {name: 100 * result.scores.miou for name, result in one.results.items()}
        scores[title] = {**values, MEAN: published_mean(values)}
        known = {name: caveats(r, one.fingerprint) for name, r in one.results.items()}
        notes |= dict.fromkeys(note for some in known.values() for note in some)
        marked = {name for name, some in known.items() if some}
        marked |= {MEAN} if marked & {*paper_benchmarks()} else set()
        cells = tuple(per_cent(scores[title].get(c), mark=c in marked) for c in columns)
        rows.append(Row(f"{title}, measured", "measured", cells))
    if len(found) == 2:
        first, second = found
        pairs = [(scores[first].get(c), scores[second].get(c)) for c in columns]
        gains = (None if a is None or b is None else a - b for a, b in pairs)
        cells = tuple(per_cent(gain, signed=True) for gain in gains)
        rows.append(Row(f"{first} - {second}", "difference", cells))
    for method in dict.fromkeys(m for one in benchmarks.values() for m in one.published):
        published = {name: one.published.get(method) for name, one in benchmarks.items()}
        published[MEAN] = published_mean(published)
        cells = tuple(per_cent(published.get(c)) for c in columns)
        rows.append(Row(f"{method}, published", "published", cells))
    extra = len(built_in) > len(paper_benchmarks())
    mean = f"mean of {len(paper_benchmarks())}" if extra else "mean"
    heads = [mean if name == MEAN else HEADS.get(name, name) for name in columns]
    return Table(("mIoU, %", *heads), tuple(rows), tuple(notes))


def summary_table(found: Mapping[str, Evaluated]) -> str:
    """The table of `summarize` as aligned text for the terminal, with its notes."""
    table = summarize(found)
    lines = align([table.heads, *((row.label, *row.cells) for row in table.rows)])
    return "\n".join([*lines, *(f"* {note}" for note in table.notes)])


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column flush left, the others flush right; "*" hangs over."""
    cells = [
        [printable(first), *(c if c.endswith("*") else f"{c} " for c in map(printable, rest))]
        for first, *rest in table
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def caveats(result: BenchmarkResult, fingerprint: Mapping[str, Any]) -> list[str]:
    """Why a score is not comparable with published ones, in sentences.

    Other images than the benchmark's split has, another split, or another protocol than the paper's
    as far as the fingerprint of the evaluation says so.
    """
    benchmark, judged, full = result.benchmark, len(result.images), result.full_set
    head, notes = HEADS.get(benchmark.name, benchmark.name), []
    if full is not None and full != judged:
        notes.append(
            f"{head}: {judged:,} of {full:,} images of {benchmark.split}, so not comparable with "
            "other figures."
        )
    if benchmark.name not in BENCHMARKS:
        return notes
    usual = load_benchmark(benchmark.name).split
    if benchmark.split != usual:
        notes.append(
            f"{head}: judged on {benchmark.split}, while published figures are for {usual}."
        )
    own = fingerprint.get("benchmarks", {}).get(benchmark.name, {})
    used, paper = {**fingerprint, **own}, InferenceSettings()
    published: dict[str, Any] = {
        "window": paper.window,
        "stride": paper.stride,
        "short_side": paper.window,
        "max_long_side": MAX_LONG_SIDE,
    }
    if "method" in used:
        method = METHODS[used["method"]]
        published["templates"] = method.templates
        if method.mixes_clip:
            published["kp_weight"] = paper.kp_weight
            published["threshold"] = THRESHOLDS[used["pamr"]]
    differing = [
        f"{key} {_words(used[key])} (published: {_words(value)})"
        for key, value in published.items()
        if used.get(key) is not None and used[key] != value
    ]
    if differing:
        # What holds for every benchmark is said once.
        about = f"{head}: not" if published.keys() & own.keys() else "Not"
        notes.append(f"{about} the paper's protocol: {', '.join(differing)}.")
    return notes


# -------------------------------------------------------------------------------------- the files


def write_report(folder: str | os.PathLike[str], found: Mapping[str, Evaluated]) -> None:
    """Writes results.md and report.html, a page that needs no other file, no network, no script.

    Both have the table, of every benchmark the scores and the IoU of its classes, and the
    protocols; the page also has bars of the IoU and the pictures.

    Args:
        folder: for both.
        found: what was measured, by the methods' names.
    """
    protocols = {title: describe_fingerprint(one.fingerprint) for title, one in found.items()}
    content = {
        "methods": list(found),
        "sources": _SOURCES,
        "summary": summarize(found),
        "sections": [
            _section(name, {t: one for t, one in found.items() if name in one.results})
            for name in dict.fromkeys(name for one in found.values() for name in one.results)
        ],
        "protocols": {title: facts for title, facts in protocols.items() if facts},
    }
    for file, escape in (("results.md", escape_markdown), ("report.html", one_line)):
        with whole_file(user_path(folder) / file) as temporary:
            temporary.write_text(_render(f"{file}.jinja", escape, content), encoding="utf-8")


def _render(template: str, escape: Callable[[str], str], content: Mapping[str, Any]) -> str:
    """A template with every value escaped; for HTML what is no Markup then is, by Jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["per_cent"] = per_cent
    return environment.get_template(template).render(content)


def _section(name: str, found: Mapping[str, Evaluated]) -> dict[str, Any]:
    """What the templates say of a benchmark; classes from high to low IoU by the first method."""
    results = {title: one.results[name] for title, one in found.items()}
    first = next(iter(results.values()))
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for title, result in results.items():
        judged, full, scores = len(result.images), result.full_set, result.scores
        cells = [per_cent(100 * value) for value in (scores.miou, scores.macc, scores.aacc)]
        images = f"{judged:,}" + (f" of {full:,}" if full not in (None, judged) else "")
        cells += [images, str(datetime.timedelta(seconds=round(result.seconds)))]
        rows.append(Row(f"{title}, measured", "measured", tuple(cells)))
        notes |= dict.fromkeys(caveats(result, found[title].fingerprint))
    for method, value in first.benchmark.published.items():
        cells = [per_cent(value), *[UNKNOWN] * 4]
        rows.append(Row(f"{method}, published", "published", tuple(cells)))
    iou = np.array([100 * one.scores.per_class_iou for one in results.values()])
    accuracy = np.array([100 * one.scores.per_class_acc for one in results.values()])
    order = np.argsort(-iou[0], kind="stable")  # NaN comes last
    pictures = []
    for title, result in results.items():
        files = found[title].pictures.get(name, {})
        for shown in result.shown:
            if shown.rank in files:
                data = base64.b64encode(files[shown.rank].read_bytes()).decode()
                caption = f"{title}, {shown.rank} image: {printable(shown.key)}"
                caption += f", mIoU {per_cent(100 * shown.miou)} %"
                pictures.append({"caption": caption, "data": Markup(data)})
    return {
        "name": name,
        "title": first.benchmark.title,
        "methods": list(results),
        "scores": Table(_SCORE_HEADS, tuple(rows), tuple(notes)),
        "means": [100 * result.scores.miou for result in results.values()],
        "classes": [
            (first.benchmark.names[i], list(zip(iou[:, i], accuracy[:, i], strict=True)))
            for i in order
        ],
        "pictures": pictures,
    }


# ------------------------------------------------------------------------------ words for a reader


def describe_fingerprint(fingerprint: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields and values as text, those of single benchmarks last."""
    facts = [(key, _words(value)) for key, value in fingerprint.items() if key != "benchmarks"]
    for name, fields in fingerprint.get("benchmarks", {}).items():
        facts.append((name, ", ".join(f"{key} {_words(value)}" for key, value in fields.items())))
    return facts


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value)


def per_cent(value: float | None, *, signed: bool = False, mark: bool = False) -> str:
    """Per cent with one digit, a dash where not known."""
    if value is None or np.isnan(value):
        return UNKNOWN
    value = round(value, 1) + 0.0  # no -0.0
    return (f"{value:+.1f}" if signed else f"{value:.1f}") + ("*" if mark else "")


def escape_markdown(text: str) -> Markup:
    """Text in one line that a Markdown reader shows as it is."""
    line = re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", one_line(text))
    return Markup(line.replace("&", "&amp;"))
