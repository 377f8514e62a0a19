"""Scores as a table beside the published ones, in the terminal and as results.md."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, load_benchmark
from tcl_jax.evaluation.results import BenchmarkResult, published_mean
from tcl_jax.files import whole_file
from tcl_jax.inference.settings import MAX_LONG_SIDE, THRESHOLDS, InferenceSettings
from tcl_jax.pictures.lettering import one_line, printable

Rows = Mapping[str, Mapping[str, BenchmarkResult]]
"""What was measured: a method's name, as "TCL + PAMR", to its results by benchmark."""
Fingerprints = Mapping[str, Mapping[str, Any]]
"""Fingerprints by the same names."""

HEADS = {
    "voc": "voc", "context": "context", "coco_object": "object", "voc20": "voc20",
    "context59": "context59", "coco_stuff": "stuff", "cityscapes": "city", "ade20k": "ade",
}  # fmt: skip
"""Column heads of the built-in benchmarks, as the paper abbreviates them."""
MEAN = ""
"""Key of the column of means; no benchmark can have this name."""
UNKNOWN = "-"
"""What stands where there is no figure."""
SOURCES = (
    "mIoU in per cent. Measured: by this run. Published: by the paper (TCL, CVPR 2023, arXiv "
    "2212.00785), or by what describes a benchmark of your own."
)

_FIELDS = {
    "hash": "fingerprint",
    "method": "method",
    "weights": "weights, SHA-256",
    "architecture": "sizes and activation of the network",
    "tokenizer": "tokenizer file",
    "window": "window",
    "stride": "stride",
    "short_side": "short side",
    "max_long_side": "longest side",
    "resize": "resizing",
    "threshold": "background threshold",
    "pamr": "PAMR",
    "kp_weight": "share of CLIP's own dense prediction (KP)",
    "templates": "prompt templates",
    "dtype": "computed in",
    "classes": "class names",
    "labels": "label rules",
    "text_embeddings": "given text embeddings",
    "images": "images",
    "image_list": "image list",
}
_PIXELS = ("window", "stride", "short_side", "max_long_side")


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """A line of the table.

    Attributes:
        label: what was judged and by whom.
        kind: "measured", "difference" or "published".
        cells: text per column.
    """

    label: str
    kind: str
    cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The table, for any kind of page.

    Attributes:
        heads: of the columns.
        rows: measured ones first.
        notes: sentences on what makes figures not comparable; their cells end with "*".
    """

    heads: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    notes: tuple[str, ...]


def summarize(rows: Rows, fingerprints: Fingerprints | None = None) -> Summary:
    """One column per benchmark and one row per method, between them the difference of two.

    The eight built-in benchmarks and their mean have columns if one of them was judged; a user's
    own follow. The mean is that of all eight, or there is none.

    Args:
        rows: what was measured.
        fingerprints: of the rows, by which a protocol is seen to differ from the paper's.
    """
    judged: dict[str, Benchmark] = {}
    for results in rows.values():
        judged |= {name: result.benchmark for name, result in results.items()}
    built_in = list(BENCHMARKS) if any(name in BENCHMARKS for name in judged) else []
    own = [name for name in judged if name not in BENCHMARKS]
    columns = [*built_in, *([MEAN] if built_in else []), *own]
    benchmarks = {name: judged.get(name) or load_benchmark(name) for name in [*built_in, *own]}

    scores: dict[str, dict[str, float]] = {}
    lines: list[SummaryRow] = []
    parts: dict[str, None] = {}
    notes: dict[str, None] = {}
    for label, results in rows.items():
        values = {name: 100 * result.scores.miou for name, result in results.items()}
        scores[label] = _with_mean(values)
        print_ = (fingerprints or {}).get(label, {})
        marked = {name for name, result in results.items() if caveats(result, print_)}
        marked |= {MEAN} if marked & set(BENCHMARKS) else set()
        for name, result in results.items():
            if part := part_of_set(result):
                parts[f"{HEADS.get(name, name)} ({part})"] = None
            notes |= dict.fromkeys(_protocol_caveats(result.benchmark, print_))
        cells = tuple(per_cent(scores[label].get(c), mark=c in marked) for c in columns)
        lines.append(SummaryRow(f"{label}, measured", "measured", cells))
    if len(rows) == 2:
        first, second = rows
        gains = {c: _minus(scores[first].get(c), scores[second].get(c)) for c in columns}
        cells = tuple(per_cent(gains[c], signed=True) for c in columns)
        label = f"{first} - {second}"
        lines.append(SummaryRow(label, "difference", cells))
    methods = dict.fromkeys(m for name in benchmarks for m in benchmarks[name].published)
    for method in methods:
        values = {
            name: benchmark.published[method]
            for name, benchmark in benchmarks.items()
            if method in benchmark.published
        }
        cells = tuple(per_cent(_with_mean(values).get(c)) for c in columns)
        lines.append(SummaryRow(f"{method}, published", "published", cells))
    if parts:
        first = f"Not the full set, so not comparable with other figures: {', '.join(parts)}."
        notes = {first: None, **notes}
    heads = {**HEADS, MEAN: "mean"}
    return Summary(tuple(heads.get(c, c) for c in columns), tuple(lines), tuple(notes))


def caveats(result: BenchmarkResult, fingerprint: Mapping[str, Any]) -> list[str]:
    """Sentences on why a score is not comparable with published ones; empty if nothing is known.

    Args:
        result: its images are counted against its split.
        fingerprint: of its row; {} says nothing.
    """
    part = part_of_set(result)
    notes = [f"Not the full set but {part}: not comparable with other figures."] if part else []
    return notes + _protocol_caveats(result.benchmark, fingerprint)


def part_of_set(result: BenchmarkResult) -> str | None:
    """How many images of a set were judged; None if all of them or if their number is unknown."""
    judged, full = len(result.images), result.full_set
    if full is None or judged == full:
        return None
    return f"{judged:,} of {full:,} images of {result.benchmark.split}"


def _protocol_caveats(benchmark: Benchmark, fingerprint: Mapping[str, Any]) -> list[str]:
    """What differs from how published figures were made."""
    notes: list[str] = []
    if benchmark.name not in BENCHMARKS:
        return notes
    usual = load_benchmark(benchmark.name).split
    if benchmark.split != usual:
        notes.append(
            f"{HEADS[benchmark.name]}: judged on {benchmark.split}, while published figures are "
            f"for {usual}."
        )
    own = fingerprint.get("benchmarks", {}).get(benchmark.name, {})
    used = {**fingerprint, **own}
    published = _published_protocol(used)
    differing = [
        f"{_FIELDS[key]} {_value(used[key])} (published: {_value(value)})"
        for key, value in published.items()
        if used.get(key) is not None and used[key] != value
    ]
    if differing:
        # What holds for every benchmark is said once.
        overridden = any(key in own for key in published)
        about = f"{HEADS[benchmark.name]}: not" if overridden else "Not"
        notes.append(f"{about} the paper's protocol: {', '.join(differing)}.")
    return notes


def _published_protocol(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a fingerprint as the paper has them; what only TCL uses is left out of others."""
    paper = InferenceSettings()
    protocol: dict[str, Any] = {
        "window": paper.window,
        "stride": paper.stride,
        "short_side": paper.window,
        "max_long_side": MAX_LONG_SIDE,
        "templates": paper.templates,
    }
    if fingerprint.get("method") == "tcl":
        protocol["kp_weight"] = paper.kp_weight
        if isinstance(fingerprint.get("pamr"), bool):
            protocol["threshold"] = THRESHOLDS[fingerprint["pamr"]]
    return protocol


def summary_table(rows: Rows, fingerprints: Fingerprints | None = None) -> str:
    """The table as aligned text for the terminal, with its notes; see `summarize`."""
    summary = summarize(rows, fingerprints)
    lines = align([("mIoU, %", *summary.heads), *((row.label, *row.cells) for row in summary.rows)])
    return "\n".join([*lines, *(f"* {note}" for note in summary.notes)])


def align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column flush left, the others flush right; "*" hangs over."""
    cells = [[printable(row[0]), *(_hang(printable(cell)) for cell in row[1:])] for row in table]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


# ------------------------------------------------------------------------------------- results.md


def write_markdown(
    path: str | os.PathLike[str], rows: Rows, fingerprints: Fingerprints | None = None
) -> None:
    """Writes the table, the protocol, and per benchmark all scores and those of its classes.

    Args:
        path: the file, by custom results.md.
        rows: what was measured.
        fingerprints: of the rows.
    """
    summary = summarize(rows, fingerprints)
    parts = ["# Zero-shot segmentation", escape_markdown(SOURCES)]
    parts.append(
        _markdown_table(("", *summary.heads), [(row.label, *row.cells) for row in summary.rows])
    )
    parts += [rf"\* {escape_markdown(note)}" for note in summary.notes]
    for label, print_ in (fingerprints or {}).items():
        parts.append(f"## Protocol of {escape_markdown(label)}")
        facts = describe_fingerprint(print_)
        parts.append("\n".join(f"- {escape_markdown(k)}: {escape_markdown(v)}" for k, v in facts))
    for name in dict.fromkeys(name for results in rows.values() for name in results):
        results = {label: row[name] for label, row in rows.items() if name in row}
        first = next(iter(results.values())).benchmark
        parts.append(f"## {escape_markdown(first.title)}")
        parts.append(_markdown_table(SCORE_HEADS, score_rows(results)))
        notes = [n for k, r in results.items() for n in caveats(r, (fingerprints or {}).get(k, {}))]
        parts += [rf"\* {escape_markdown(note)}" for note in dict.fromkeys(notes)]
        heads, table = class_table(results)
        parts.append(_markdown_table(heads, table))
    with whole_file(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


SCORE_HEADS = ("", "mIoU", "mAcc", "aAcc", "images", "time")


def score_rows(results: Mapping[str, BenchmarkResult]) -> list[tuple[str, ...]]:
    """Rows under `SCORE_HEADS` of a benchmark's methods, and of its published scores."""
    table = []
    for label, result in results.items():
        full = result.full_set
        images = f"{len(result.images):,}"
        if full is not None and full != len(result.images):
            images += f" of {full:,}"
        scores = result.scores
        cells = (per_cent(100 * value) for value in (scores.miou, scores.macc, scores.aacc))
        table.append((f"{label}, measured", *cells, images, duration(result.seconds)))
    published = next(iter(results.values())).benchmark.published
    blank = (UNKNOWN,) * (len(SCORE_HEADS) - 2)
    return table + [
        (f"{method}, published", per_cent(v), *blank) for method, v in published.items()
    ]


def class_table(
    results: Mapping[str, BenchmarkResult],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of IoU and accuracy of every class, in the benchmark's order."""
    names = next(iter(results.values())).benchmark.names
    several = len(results) > 1
    heads, columns = ["class"], []
    for label, result in results.items():
        of = f", {label}" if several else ""
        heads += [f"IoU{of}", f"acc{of}"]
        columns += [result.scores.per_class_iou, result.scores.per_class_acc]
    table = [
        (name, *(per_cent(100 * float(column[i])) for column in columns))
        for i, name in enumerate(names)
    ]
    return tuple(heads), table


# ------------------------------------------------------------------------------ words for a reader


def describe_fingerprint(fingerprint: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields and values in words, those of single benchmarks last."""
    facts = [
        (_FIELDS.get(key, key), _value(value, key))
        for key, value in fingerprint.items()
        if key != "benchmarks"
    ]
    for name, fields in fingerprint.get("benchmarks", {}).items():
        inner = (f"{_FIELDS.get(key, key)} {_value(value, key)}" for key, value in fields.items())
        facts.append((name, ", ".join(inner)))
    return facts


def _value(value: Any, key: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return UNKNOWN
    if key == "images" and isinstance(value, int):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text} px" if key in _PIXELS else text


def per_cent(value: float | None, *, signed: bool = False, mark: bool = False) -> str:
    """Per cent with one digit, a dash where not known."""
    if value is None or np.isnan(value):
        return UNKNOWN
    value = round(value, 1) + 0.0  # no -0.0
    return (f"{value:+.1f}" if signed else f"{value:.1f}") + ("*" if mark else "")


def duration(seconds: int | float) -> str:
    """A time span for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def escape_markdown(text: str) -> str:
    """Text in one line that a Markdown reader shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", one_line(text)).replace("&", "&amp;")


def _markdown_table(heads: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    lines = [heads, ("---", *("--:" for _ in heads[1:]))]
    text = [" | ".join(escape_markdown(cell) for cell in heads), " | ".join(lines[1])]
    text += [" | ".join(escape_markdown(cell) for cell in row) for row in table]
    return "\n".join(f"| {line} |" for line in text)


def _with_mean(scores: Mapping[str, float]) -> dict[str, float]:
    mean = published_mean(scores)
    return {**scores, MEAN: mean} if mean is not None else dict(scores)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _hang(cell: str) -> str:
    return cell if cell.endswith("*") else f"{cell} "
