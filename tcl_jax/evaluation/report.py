"""Scores as a table beside the published ones: in the terminal, as results.md and as report.html.

`summarize` makes the table; the files are Jinja templates in `tcl_jax/assets`, with one content.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from tcl_jax.evaluation.benchmark import BENCHMARKS, load_benchmark, paper_benchmarks
from tcl_jax.evaluation.published import PUBLISHED, Published
from tcl_jax.evaluation.report_pictures import page_pictures, threshold_curves
from tcl_jax.evaluation.results import BenchmarkResult, Evaluated, published_mean
from tcl_jax.evaluation.scores import UNKNOWN, per_cent
from tcl_jax.evaluation.thresholds import MISSED, ThresholdSearch
from tcl_jax.files import user_path, whole_file
from tcl_jax.inference.presets import load_preset
from tcl_jax.inference.settings import MAX_LONG_SIDE, THRESHOLDS, InferenceSettings
from tcl_jax.models.method import Method
from tcl_jax.models.methods import METHODS
from tcl_jax.models.tcl import TCL
from tcl_jax.pictures.lettering import one_line, printable

_SOURCES = (
    "mIoU in per cent. Measured: by this run. Published: by the paper (TCL, CVPR 2023, arXiv "
    "2212.00785), by a method's own authors, under the protocol named, or by what describes a "
    "benchmark of your own. Edges: share of pixels within 2 px of a true edge that are right."
)
_TEMPLATES = Path(__file__).parent.parent / "assets"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table; its kind is "measured" or "published"."""

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
    """The mIoU with a column per benchmark, a row per method, and rows of published scores: TCL's,
    those that a benchmark's file has, and those of the methods themselves.

    Where all benchmarks of the paper were evaluated, there is a column of their mean.
    """
    benchmarks = {
        name: result.benchmark for one in found.values() for name, result in one.results.items()
    }
    columns, paper = [*benchmarks], {*paper_benchmarks()}
    mean = f"mean of {len(paper)}"  # no benchmark can have this name
    if paper <= benchmarks.keys():
        columns.append(mean)
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for title, one in found.items():
        known = {name: caveats(r, one.fingerprint) for name, r in one.results.items()}
        notes |= dict.fromkeys(note for some in known.values() for note in some)
        marked = {name for name, some in known.items() if some}
        marked |= {mean} if marked & paper else set()
        scores = {name: 100 * result.scores.miou for name, result in one.results.items()}
        all_scores = {**scores, mean: published_mean(scores)}
        cells = tuple(per_cent(all_scores.get(c), mark=c in marked) for c in columns)
        rows.append(Row(f"{title}, measured", "measured", cells))
    for method in dict.fromkeys(m for one in benchmarks.values() for m in one.published):
        published = {name: one.published.get(method) for name, one in benchmarks.items()}
        published[mean] = published_mean(published)
        cells = tuple(per_cent(published[c]) for c in columns)
        rows.append(Row(f"{method}, published", "published", cells))
    for row in _published_beside(found.values()):
        average = published_mean(row.scores) if row.mean is None else row.mean
        cells = tuple(per_cent({**row.scores, mean: average}.get(c)) for c in columns)
        if {*cells} != {UNKNOWN}:
            rows.append(Row(row.label, "published", cells))
    return Table(("mIoU, %", *columns), tuple(rows), tuple(notes))


def _published_beside(found: Iterable[Evaluated]) -> list[Published]:
    """Rows of `PUBLISHED` of the methods that were evaluated."""
    methods = {one.fingerprint.get("method") for one in found}
    return [row for row in PUBLISHED if row.method in methods]


def summary_table(found: Mapping[str, Evaluated]) -> str:
    """The table of `summarize` as aligned text for the terminal, with its notes."""
    table = summarize(found)
    lines = align([table.heads, *((row.label, *row.cells) for row in table.rows)])
    return "\n".join([*lines, *(f"* {note}" for note in table.notes)])


def threshold_tables(found: Mapping[str, Evaluated]) -> str:
    """Text of the tables of thresholds, for the terminal; empty where none was looked for."""
    lines: list[str] = []
    for name, searches in _searches(found).items():
        table = _threshold_table(searches)
        lines += align([(f"{name}: {table.heads[0]}", *table.heads[1:]), *(
            (row.label, *row.cells) for row in table.rows
        )])  # fmt: skip
        lines += [f"* {note}" for note in table.notes]
    return "\n".join(lines)


def _searches(found: Mapping[str, Evaluated]) -> dict[str, dict[str, ThresholdSearch]]:
    """By name of the benchmark, then by the methods' names."""
    searches: dict[str, dict[str, ThresholdSearch]] = {}
    for title, one in found.items():
        for name, result in one.results.items():
            if result.search is not None:
                searches.setdefault(name, {})[title] = result.search
    return searches


def _threshold_table(searches: Mapping[str, ThresholdSearch]) -> Table:
    """The best threshold of each method, and how the mIoU changes beside it and at its default."""
    beside = *(f"change {MISSED} {x}" for x in ("lower", "higher")), "default", "change there"
    rows, notes = [], []
    for title, one in searches.items():
        lost = [one.loss(x) for x in (one.best - MISSED, one.best + MISSED, one.own)]
        lower, higher, there = (signed(-100 * x) for x in lost)
        edge = "*" if one.best in (one.tried[0], one.tried[-1]) else ""
        cells = (f"{one.best:g}{edge}", per_cent(100 * one.miou[one.place]), lower, higher)
        rows.append(Row(title, "measured", (*cells, f"{one.own:g}", there)))
        if edge:
            notes.append(
                f"{title}: {one.best:g} is at the edge of what was tried, {one.tried[0]:g} to "
                f"{one.tried[-1]:g}"
            )
    return Table(("threshold", "best", "mIoU", *beside), tuple(rows), tuple(notes))


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
    benchmark, count, full = result.benchmark, len(result.images), result.full_set
    name, notes = benchmark.name, []
    if full not in (None, count):
        notes.append(
            f"{name}: {count:,} of {full:,} images of {benchmark.split}, so not comparable with "
            "other figures."
        )
    if np.count_nonzero(result.counts.labelled) < 2:
        notes.append(
            f"{name}: the labels have less than two of the {len(benchmark.names)} classes, so any "
            "model looks good; --background, --reduce_zero_label and --ignore say what they mean."
        )
    if result.search is not None:
        notes.append(f"{name}: at the threshold that is best on these very images.")
    if name not in BENCHMARKS:
        return notes
    if benchmark.split != (usual := load_benchmark(name).split):
        notes.append(f"{name}: evaluated on {benchmark.split}; published figures are for {usual}.")
    own = fingerprint.get("benchmarks", {}).get(name, {})
    used = {**fingerprint, **own}
    method = METHODS.get(used.get("method", ""), TCL)
    published = {"max_long_side": MAX_LONG_SIDE, **_published_fields(method, name)}
    if method.mixes_clip:
        published["threshold"] = THRESHOLDS[used.get("refine", "pamr")]
    differing = [
        f"{key} {_words(used[key])} (published: {_words(value)})"
        for key, value in published.items()
        if used.get(key) is not None and used[key] != value
    ]
    if differing:
        # What holds for every benchmark is said once.
        about = f"{name}: not" if published.keys() & own.keys() else "Not"
        whose = "the paper's protocol"
        if method.protocol != TCL.protocol:
            whose = f"the protocol of {method.title}'s authors"
        if (protocol := used.get("protocol", method.protocol)) != method.protocol:
            whose += f", but {protocol}"
        notes.append(f"{about} {whose}: {', '.join(differing)}.")
    return notes


def _published_fields(method: type[Method], benchmark: str) -> dict[str, Any]:
    """What a method's authors say of a benchmark, but for what is no plain value in results."""
    preset, paper = load_preset(method.protocol), InferenceSettings()
    said = {**preset.fields, **preset.benchmarks.get(benchmark, {})}
    said.setdefault("short_side", said["window"])
    if said["scores"] == "masks":  # which has a threshold of every size of a model
        said.pop("threshold", None)
    if method.mixes_clip:
        said["kp_weight"] = paper.kp_weight
    left_out = ("resize", "refine", "pamr_dilations", "background", "names", "joined", "cleaning")
    return {key: value for key, value in said.items() if key not in left_out}


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
    environment.filters |= {"per_cent": per_cent, "signed": signed}
    return environment.get_template(template).render(content)


def _section(name: str, found: Mapping[str, Evaluated]) -> dict[str, Any]:
    """What the templates say of a benchmark; classes from high to low IoU by the first method.

    Of several methods each has its gain over MaskCLIP, or over the first where that is not there.
    """
    results = {title: one.results[name] for title, one in found.items()}
    first = next(iter(results.values()))
    clips = [title for title, one in found.items() if one.fingerprint.get("method") == "maskclip"]
    base = next(iter([*clips, *results])) if len(results) > 1 else None
    heads = ("", "mIoU", *(["gain"] if base else []), "mAcc", "aAcc", "edges", "images", "time")
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for title, result in results.items():
        count, full, scores = len(result.images), result.full_set, result.scores
        four = scores.miou, scores.macc, scores.aacc, scores.boundary
        cells = [per_cent(100 * value) for value in four]
        if base:
            gain = 100 * (scores.miou - results[base].scores.miou)
            cells.insert(1, UNKNOWN if title == base else signed(gain))
        images = f"{count:,}" + (f" of {full:,}" if full not in (None, count) else "")
        cells += [images, str(datetime.timedelta(seconds=round(result.seconds)))]
        rows.append(Row(f"{title}, measured", "measured", tuple(cells)))
        notes |= dict.fromkeys(caveats(result, found[title].fingerprint))
    published = {f"{title}, published": x for title, x in first.benchmark.published.items()}
    others = [row for row in _published_beside(found.values()) if name in row.scores]
    published |= {row.label: row.scores[name] for row in others}
    for label, value in published.items():
        rows.append(Row(label, "published", (per_cent(value), *[UNKNOWN] * (len(heads) - 2))))
    iou = {title: 100 * one.scores.per_class_iou for title, one in results.items()}
    beside_iou = {
        title: 100 * results[title].scores.per_class_acc if base is None else one - iou[base]
        for title, one in iou.items()
    }
    order = np.argsort(-next(iter(iou.values())), kind="stable")  # NaN comes last
    searches = _searches(found).get(name, {})
    return {
        "name": name,
        "title": first.benchmark.title,
        "thresholds": _threshold_table(searches) if searches else None,
        "curves": threshold_curves(searches) if searches else "",
        "base": base,
        "methods": list(results),
        "scores": Table(heads, tuple(rows), tuple(notes)),
        "means": {title: 100 * result.scores.miou for title, result in results.items()},
        "classes": [
            (first.benchmark.names[i], [(t, iou[t][i], beside_iou[t][i]) for t in results])
            for i in order
        ],
        "pictures": page_pictures(results),
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


def signed(value: float) -> str:
    """A gain in per cent with one digit and its sign, a dash where not known."""
    return UNKNOWN if np.isnan(value) else f"{round(value, 1) + 0.0:+.1f}"


def escape_markdown(text: str) -> Markup:
    """Text in one line that a Markdown reader shows as it is."""
    line = re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", one_line(text))
    return Markup(line.replace("&", "&amp;"))
