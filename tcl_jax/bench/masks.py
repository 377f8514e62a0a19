"""`bench masks`: how fast the masks of a window are made."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from tcl_jax.bench.against import add_against_flags, open_official, prepare_against
from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import (
    add_round_flags,
    bench_parser,
    methods_on,
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
    p.add_argument(
        "--method",
        metavar="all|NAMES",
        help="methods on the same CLIP, separated by commas, each in turn with MaskCLIP; what they "
        "need besides is random",
    )
    add_named_flags(p, "instead of --config, with its own weights: ")
    add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    if flags.method and flags.against:
        raise InputError("--method measures methods beside each other; leave --against out")
    prepare_against(flags)
    subject = read_segmenting(flags, rest, "masks")
    models = methods_on(subject.model, flags.method) if flags.method else [subject.model]

    import jax
    import numpy as np

    from tcl_jax.bench.timing import Runner, measure_in_turn
    from tcl_jax.inference.masks import MaskOptions, make_masks
    from tcl_jax.models.flops import total
    from tcl_jax.models.layers import compute_dtype
    from tcl_jax.models.method import BY_PAMR

    settings, params = subject.model.settings, jax.device_put([model.params for model in models])
    windows = flags.windows or (settings.window,)
    for side, model in itertools.product(windows, models):
        if side % (patch := model.method.patch_size):
            raise InputError(
                f"--windows={side}: is not a multiple of the patch size of {model.method.name}, "
                f"{patch}"
            )
    how = {"calls": flags.calls, "rounds": flags.rounds, "warm_up": flags.warmup}
    devices = jax.local_devices()[:1]
    report = Report("masks", flags.load, flags.json, devices, **subject.about)

    def runners_of(arrays: tuple[Any, Any], options: MaskOptions, dtype: str) -> list[Runner]:
        runners = []
        for model, own in zip(models, params, strict=True):
            method = model.method_in(compute_dtype(dtype))
            make = jax.jit(partial(make_masks, method), static_argnames="options")
            arguments = (own, *jax.device_put(arrays))
            runners.append(Runner(make.trace(*arguments, options=options), arguments))
        return runners

    with open_official(flags, subject) as official:
        if official is not None:
            report.put("official", official.load(subject))
        agreement = {}
        cases = itertools.product(windows, flags.classes, flags.batch_sizes, PAMR[flags.pamr])
        for side, classes, size, pamr in cases:
            what = f"{side}, {classes} classes, {'PAMR' if pamr else 'no PAMR'}, batch {size}"
            options = MaskOptions(BY_PAMR[pamr], settings.kp_weight)
            rng = np.random.default_rng(0)
            images = rng.standard_normal((size, side, side, 3)).astype(np.float32)
            texts = rng.standard_normal((classes, subject.model.method.embed_dim))
            texts = texts.astype(np.float32)
            with report.skip_too_large(what):
                say(what)
                dtype, request = subject.dtype, {"kind": "masks", "pamr": pamr}
                runners = runners_of((images, texts), options, dtype)
                if official is not None:
                    request["kp_weight"] = options.kp_weight
                    request["file"] = official.write_batch(images, texts=texts)
                    exact = dtype == "float32"
                    (full,) = runners if exact else runners_of((images, texts), options, "float32")
                    ours = {"masks": np.asarray(full())}
                    agreement[what] = official.check(ours, what, **request)
                    report.put("agreement", agreement)
                flops = [total(model.method.flops(side, classes, options)) for model in models]
                rows = measure_in_turn(runners, devices, **how, images=size, flops=flops)
                case = {"window": side, "classes": classes, "pamr": pamr, "batch_size": size}
                for model, row in zip(models, rows, strict=True):
                    report.add("masks", {"method": model.method.name, **case, **row})
                if official is not None:
                    (runner,) = runners
                    for row in official.times(what, request, runner.run, **how):
                        report.add("against", row)
    report.print_tables()
