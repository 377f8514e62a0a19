"""`bench evaluate`: from flags to figures of judging."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tcl_jax.bench.subject import (
    Report,
    bench_parser,
    choices,
    count,
    fitting,
    numbers,
    read_subject,
    sizes,
    tell_stage,
)


def bench_evaluate(argv: Sequence[str], doc: str | None) -> None:
    """`bench evaluate`: images per second of judging, and what devices and host need."""
    p = bench_parser("evaluate", doc)
    p.add_argument(
        "--sizes", type=sizes, default=((375, 500),), metavar="LIST",
        help="of made-up images, WIDTHxHEIGHT (default 500x375)",
    )  # fmt: skip
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument("--pamr", type=choices("no", "yes"), default=("no",), help="default no")
    p.add_argument("--images", type=count, default=16, help="judged in each case (default 16)")
    p.add_argument("--batch_size", type=count, help="windows per device; default 1 on CPUs, else 8")
    flags, rest = p.parse_known_args(argv)
    subject = read_subject(flags, rest, "evaluate")

    import jax

    from tcl_jax.bench.judge_speed import judge_speed
    from tcl_jax.bench.report import judge_table

    report = Report("evaluate", subject, flags.json, jax.local_devices())
    speeds = []
    for size in flags.sizes:
        for classes in flags.classes:
            for pamr in (word == "yes" for word in flags.pamr):
                what = f"{size[1]}x{size[0]}, {classes} classes, {'PAMR' if pamr else 'no PAMR'}"
                with fitting(report, what):
                    speed = judge_speed(
                        subject.model,
                        size,
                        images=flags.images,
                        classes=classes,
                        pamr=pamr,
                        dtype=subject.dtype,
                        batch_size=flags.batch_size,
                        tell=partial(_tell, what),
                    )
                    speeds.append(speed)
                    report.add("evaluate", speed)
    print(f"\n{judge_table(speeds)}")


def _tell(what: str, line: str) -> None:
    tell_stage(f"{what}: {line}")
