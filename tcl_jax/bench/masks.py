"""`bench masks`: how fast the masks of a window are made."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from tcl_jax.bench.against import add_against_flags, open_official, prepare_against
from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import (
    Subject,
    add_round_flags,
    bench_parser,
    numbers,
    read_segmenting,
)
from tcl_jax.commands import add_named_flags
from tcl_jax.errors import InputError

PAMR = {"no": (False,), "yes": (True,), "both": (False, True)}
"""Values of --pamr, and the cases that they name."""


def bench_masks(argv: Sequence[str], doc: str | None, load: float) -> None:
    """`bench masks`: time, MFU and memory of a window's masks, which stay on the device."""
    p = bench_parser("masks", doc, load)
    add_round_flags(p, "calls", 5)
    p.add_argument("--windows", type=numbers, metavar="LIST", help="sides in pixels (default 448)")
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument("--pamr", choices=PAMR, default="both", help="default both")
    p.add_argument(
        "--batch_sizes", type=numbers, default=(1,), metavar="LIST", help="windows (default 1)"
    )
    add_named_flags(p, "instead of --config, with its own weights: ")
    add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    prepare_against(flags)
    subject = read_segmenting(flags, rest, "masks")

    import jax
    import numpy as np

    from tcl_jax.bench.timing import Runner
    from tcl_jax.inference.masks import MaskOptions, make_masks
    from tcl_jax.models.flops import total
    from tcl_jax.models.layers import compute_dtype
    from tcl_jax.models.method import BY_PAMR

    settings, params = subject.model.settings, jax.device_put(subject.model.params)
    model: Any = subject.model.method
    patch = model.patch_size
    windows = flags.windows or (settings.window,)
    if odd := [side for side in windows if side % patch]:
        raise InputError(f"--windows={odd[0]}: is not a multiple of the patch size, {patch}")
    how = {"calls": flags.calls, "rounds": flags.rounds, "warm_up": flags.warmup}
    devices = jax.local_devices()[:1]
    report = Report("masks", flags.load, flags.json, devices, **subject.about)

    def runner_of(arrays: tuple[Any, Any], options: MaskOptions, dtype: str) -> Runner:
        method = dataclasses.replace(model, dtype=compute_dtype(dtype))
        make = jax.jit(partial(make_masks, method), static_argnames="options")
        arguments = (params, *jax.device_put(arrays))
        return Runner(make.trace(*arguments, options=options), arguments)

    with open_official(flags, subject) as official:
        if official is not None and isinstance(subject, Subject):
            report.put("official", official.load(subject))
        agreement = {}
        cases = itertools.product(windows, flags.classes, flags.batch_sizes, PAMR[flags.pamr])
        for side, classes, size, pamr in cases:
            what = f"{side}, {classes} classes, {'PAMR' if pamr else 'no PAMR'}, batch {size}"
            options = MaskOptions(BY_PAMR[pamr], settings.kp_weight)
            rng = np.random.default_rng(0)
            images = rng.standard_normal((size, side, side, 3)).astype(np.float32)
            texts = rng.standard_normal((classes, model.embed_dim)).astype(np.float32)
            with report.skip_too_large(what):
                say(what)
                dtype, request = subject.dtype, {"kind": "masks", "pamr": pamr}
                runner = runner_of((images, texts), options, dtype)
                if official is not None:
                    request["kp_weight"] = options.kp_weight
                    request["file"] = official.write_batch(images, texts=texts)
                    exact = dtype == "float32"
                    full = runner if exact else runner_of((images, texts), options, "float32")
                    ours = {"masks": np.asarray(full())}
                    agreement[what] = official.check(ours, what, **request)
                    report.put("agreement", agreement)
                flops = total(model.flops(side, classes, options))
                row = runner.measure(devices, **how, images=size, flops=flops)
                case = {"window": side, "classes": classes, "pamr": pamr}
                report.add("masks", {**case, "batch_size": size, **row})
                if official is not None:
                    for row in official.times(what, request, runner.run, **how):
                        report.add("against", row)
    report.print_tables()
