"""Figures of speed as aligned tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcl_jax.bench.comparison import Comparison
from tcl_jax.bench.input_speed import InputSpeed, Spread
from tcl_jax.bench.judge_speed import JudgeSpeed
from tcl_jax.bench.mask_speed import MaskSpeed
from tcl_jax.bench.step_speed import StepSpeed
from tcl_jax.bench.subject import BUSY
from tcl_jax.evaluation.report import align

NOTES = {
    "MFU": "FLOPs of the plain method by formula over time and the device's bfloat16 peak; - where "
    "the peak is not known, as of a CPU",
    "XLA TFLOP": "of the whole program on one device as XLA counts, the bodies of loops once",
    "program": "arguments, results, temporary memory and code of one device, as the compiler says",
    "peak": "most memory of a device in use since the process began, as it says itself",
    "parts": "programs of their own, fastest round: they do not add up to the whole, which fuses "
    "and overlaps what these cannot",
    "official": "the official code runs the same batch with the same weights on the same device, a "
    "round after each round here, without its data loading, logging and wrapper for several "
    "devices; the ratio is its time over ours, over pairs of rounds",
}


def input_tables(speed: InputSpeed) -> str:
    """Images, machine, a row for each stage, each part and each number of workers."""
    pipeline = speed.stages[-1]
    lines = [
        f"images: {speed.images} measured, {speed.mean_megapixels:.2f} megapixels and "
        f"{speed.mean_bytes / 1000:.0f} kB on average, made {speed.image_size} x "
        f"{speed.image_size}",
        f"machine: {speed.cores} cores, load {speed.load:.1f} before the start",
    ]
    if speed.load > BUSY * speed.cores:
        lines.append("  others are using it: figures by the clock come out too low")
    lines += [
        "",
        "one process: images a second of CPU time, median (lowest to highest round)",
        f"  {'stage, with those above it':28}{'per CPU second':>24}{'of bare loop':>14}"
        f"{'by the clock':>14}",
    ]
    for stage in speed.stages:
        lines.append(
            f"  {stage.name:28}{_spread(stage.images_per_cpu_second):>24}"
            f"{stage.of_bare_loop.median:>13.0%} {stage.images_per_second.median:>13.0f}"
        )
    lines += ["", "where the CPU time of the full pipeline goes"]
    for part, share in speed.shares.items():
        milliseconds = 1000 * share / pipeline.images_per_cpu_second.median
        lines.append(f"  {part:28}{share:>6.1%}  {milliseconds:.3f} ms an image")
    if speed.scaling:
        lines += ["", "worker processes: images a second by the clock"]
        lines += [
            f"  {scaling.workers:<4}{_spread(scaling.images_per_second):>24}"
            f"  {scaling.of_linear.median:.2f} x linear"
            for scaling in speed.scaling
        ]
    return "\n".join(lines)


def step_table(speeds: Sequence[StepSpeed]) -> str:
    """A row for each batch size and phase."""
    head = ("batch", "dtype", "phase", "ms", "fastest", "images/s", "MFU", "GFLOP/image",
            "XLA TFLOP", "program GiB", "peak GiB", "compile s")  # fmt: skip
    rows = [
        (
            str(s.batch_size),
            s.dtype,
            str(s.phase),
            _ms(s.seconds.median),
            _ms(s.seconds.low),
            f"{s.images_per_second:.4g}",
            "-" if s.mfu is None else f"{s.mfu:.1%}",
            f"{s.flops_per_image / 1e9:.1f}",
            f"{s.program.flops / 1e12:.3g}",
            _gib(s.program.bytes),
            _gib(s.peak_bytes),
            f"{s.program.compile_seconds:.1f}",
        )
        for s in speeds
    ]
    notes = ("MFU", "XLA TFLOP", "program", "peak")
    return "\n".join([*align([head, *rows]), *(f"{name}: {NOTES[name]}." for name in notes)])


def mask_table(speeds: Sequence[MaskSpeed]) -> str:
    """A row for each window, number of classes and use of PAMR."""
    head = ("window", "classes", "PAMR", "batch", "dtype", "ms/image", "fastest", "Segmenter ms",
            "MFU", "program GiB", "compile s")  # fmt: skip
    rows = [
        (
            str(s.window),
            str(s.classes),
            "yes" if s.pamr else "no",
            str(s.batch_size),
            s.dtype,
            _ms(s.seconds_per_image),
            _ms(s.seconds.low / s.batch_size),
            _ms(s.segmenter_seconds),
            "-" if s.mfu is None else f"{s.mfu:.1%}",
            _gib(s.program.bytes),
            f"{s.program.compile_seconds:.1f}",
        )
        for s in speeds
    ]
    return "\n".join(
        [
            *align([head, *rows]),
            "ms/image: on the device, masks left there; Segmenter: with texts padded and masks "
            f"brought to the host. MFU: {NOTES['MFU']}; PAMR and resizing are not counted.",
        ]
    )


def judge_table(speeds: Sequence[JudgeSpeed]) -> str:
    """A row for each size of image and number of classes."""
    head = ("image", "classes", "PAMR", "batch", "dtype", "images", "windows", "images/s",
            "device alone", "host alone")  # fmt: skip
    rows = [
        (
            f"{s.width}x{s.height}",
            str(s.classes),
            "yes" if s.pamr else "no",
            str(s.batch_size),
            s.dtype,
            str(s.images),
            str(s.windows),
            f"{s.images_per_second:.3g}",
            f"{s.device_share:.0%}",
            f"{s.host_share:.0%}",
        )
        for s in speeds
    ]
    return "\n".join(
        [
            *align([head, *rows]),
            "device alone, host alone: time that the masks, and everything else, need by "
            "themselves, over the time of everything. They overlap, so both may be near 100%; on "
            "a CPU they share its cores, and add up to it or more.",
        ]
    )


def parts_table(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of parts, a column for each case."""
    names = list(dict.fromkeys(name for found in parts.values() for name in found))
    head = ("parts, ms", *parts)
    rows = [
        (name, *(_ms(found[name]) if name in found else "-" for found in parts.values()))
        for name in names
    ]
    return "\n".join([*align([head, *rows]), f"parts: {NOTES['parts']}."])


def against_table(comparisons: Sequence[Comparison]) -> str:
    """A row for each case and variant of the official code."""
    head = ("beside the official code", "variant", "precision", "ms here", "ms there", "ratio",
            "lowest", "highest", "peak GiB there")  # fmt: skip
    rows = []
    for c in comparisons:
        if c.ours is None or c.theirs is None:
            rows.append((c.what, c.variant, c.precision, *["-"] * 6))
            continue
        ratios = ("-" if r is None else f"{r:.2f}" for r in (c.ratio, c.lowest, c.highest))
        times = (_ms(c.ours.median), _ms(c.theirs.median))
        rows.append((c.what, c.variant, c.precision, *times, *ratios, _gib(c.peak_bytes)))
    problems = [
        f"{c.what}, {c.variant}, {c.precision}: {c.problem}" for c in comparisons if c.problem
    ]
    return "\n".join([*align([head, *rows]), *problems, f"official: {NOTES['official']}."])


def agreement(differences: Mapping[str, float]) -> str:
    """The largest difference, in words."""
    name = max(differences, key=lambda key: differences[key])
    return f"float32 results agree; the largest difference is {differences[name]:.1e} ({name})"


def _spread(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g}"


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"
