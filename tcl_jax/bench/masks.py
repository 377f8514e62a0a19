"""`bench masks`: from flags to figures of mask making."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tcl_jax.bench.against import add_against_flags, cases_of, open_original, start
from tcl_jax.bench.subject import (
    add_round_flags,
    bench_parser,
    choices,
    count,
    fitting,
    numbers,
    tell_stage,
)
from tcl_jax.errors import InputError


def bench_masks(argv: Sequence[str], doc: str | None) -> None:
    """`bench masks`: time of a window's masks, and of the parts."""
    p = bench_parser("masks", doc)
    add_round_flags(p)
    p.add_argument("--windows", type=numbers, metavar="LIST", help="sides in pixels (default 448)")
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument(
        "--pamr", type=choices("no", "yes"), default=("no", "yes"), help="default no,yes"
    )
    p.add_argument(
        "--batch_sizes", type=numbers, default=(1,), metavar="LIST", help="windows (default 1)"
    )
    p.add_argument("--calls", type=count, default=5, help="of a round, in a row (default 5)")
    p.add_argument("--no_parts", action="store_true", help="measure the whole alone")
    add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    subject, report, mesh = start(flags, rest, "masks", devices=1)

    import numpy as np

    from tcl_jax.bench.comparison import Comparison, check_masks, compare_times, write_images
    from tcl_jax.bench.mask_speed import (
        MaskRunner,
        MaskSpeed,
        made_up_windows,
        time_mask_parts,
    )
    from tcl_jax.bench.report import against_table, agreement, mask_table, parts_table
    from tcl_jax.bench.timing import peak_bytes, time_rounds
    from tcl_jax.inference.masks import MaskOptions
    from tcl_jax.inference.segmenter import Segmenter
    from tcl_jax.models.flops import total
    from tcl_jax.models.layers import compute_dtype
    from tcl_jax.training.metrics import mfu

    model, dtype = subject.model, compute_dtype(subject.dtype)
    patch = model.config.patch_size
    windows = flags.windows or (model.settings.window,)
    if odd := [side for side in windows if side % patch]:
        raise InputError(f"--windows={odd[0]}: is not a multiple of the patch size, {patch}")
    how = {"rounds": flags.rounds, "warm_up": flags.warmup}
    cases = [(w, n, b) for w in windows for n in flags.classes for b in flags.batch_sizes]
    device = list(mesh.devices.flat)
    segmenter = Segmenter(model, dtype=subject.dtype)
    speeds, parts = [], {}
    comparisons: list[Comparison] = []
    with open_original(flags, subject, report) as other:
        for side, classes, size in cases:
            images, texts = made_up_windows(model, side, size, classes)
            for pamr in (word == "yes" for word in flags.pamr):
                options = MaskOptions(pamr, model.settings.kp_weight)
                what = f"{side}, {classes} classes, {'PAMR' if pamr else 'no PAMR'}, batch {size}"
                request: dict[str, Any] = {"pamr": pamr, "kp_weight": options.kp_weight}
                with fitting(report, what):
                    runner = None
                    if other is not None:
                        original, folder = other
                        request["file"] = str(folder / "windows.npz")
                        write_images(Path(request["file"]), images, texts=texts)
                        tell_stage(f"{what}: comparing masks")
                        output = folder / "masks.npy"
                        original.ask("compare_masks", **request, output=str(output))
                        runner = MaskRunner(model, images, texts, options)
                        difference = check_masks(runner.masks(), np.load(output), what)
                        report.add("agreement", {what: {"masks": difference}})
                        print(f"{what}: {agreement({'masks': difference})}", flush=True)
                    tell_stage(what)
                    if runner is None or subject.dtype != "float32":
                        runner = MaskRunner(model, images, texts, options, dtype)
                    timing = time_rounds(runner.run, calls=flags.calls, **how)
                    whole = partial(_segmenter_seconds, segmenter, images, texts, options)
                    by_segmenter = time_rounds(whole, calls=1, rounds=flags.rounds, warm_up=1)
                    flops = total(model.network.flops(side, classes, options))
                    speed = MaskSpeed(
                        window=side,
                        classes=classes,
                        pamr=pamr,
                        batch_size=size,
                        dtype=subject.dtype,
                        seconds=timing,
                        seconds_per_image=timing.median / size,
                        flops_per_image=flops,
                        mfu=mfu(flops * size, timing.median, device),
                        segmenter_seconds=by_segmenter.median / size,
                        program=runner.program,
                        peak_bytes=peak_bytes(device),
                    )
                    speeds.append(speed)
                    report.add("masks", speed)
                    if other is None:
                        continue
                    timed = compare_times(
                        original,
                        what,
                        {"do": "prepare_masks", **request},
                        runner.run,
                        cases=cases_of(flags, subject.dtype),
                        calls=flags.calls,
                        tell=tell_stage,
                        **how,
                    )
                    comparisons += report.each("against", timed)
            if not flags.no_parts:
                name = f"{side}, {classes} classes, batch {size}"
                tell_stage(f"{name}: parts")
                with fitting(report, f"{name}, parts"):
                    parts[name] = time_mask_parts(
                        model, images, texts, dtype, calls=flags.calls, **how
                    )
                    report.add("parts", {name: parts[name]})
    print(f"\n{mask_table(speeds)}")
    if parts:
        print(f"\n{parts_table(parts)}")
    if comparisons:
        print(f"\n{against_table(comparisons)}")


def _segmenter_seconds(segmenter: Any, images: Any, texts: Any, options: Any, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        segmenter.masks_normalized(images, texts, pamr=options.pamr, kp_weight=options.kp_weight)
    return time.perf_counter() - began
