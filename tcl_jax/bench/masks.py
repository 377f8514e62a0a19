"""`bench masks`: how fast the masks of a window are made."""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from typing import Any

import jax
import numpy as np

from tcl_jax.bench.against import open_official
from tcl_jax.bench.flags import PAMR
from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import methods_on, read_segmenting
from tcl_jax.bench.timing import Runner, measure_in_turn
from tcl_jax.errors import InputError
from tcl_jax.inference.masks import MaskOptions, make_masks
from tcl_jax.models.flops import total
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import BY_PAMR


def bench_masks(flags: argparse.Namespace) -> None:
    """`bench masks`: time, MFU and memory of a window's masks, which stay on the device."""
    subject = read_segmenting(flags)
    models = methods_on(subject.model, flags.method) if flags.method else [subject.model]
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
