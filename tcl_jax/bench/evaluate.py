"""`bench evaluate`: how fast a benchmark is evaluated, from files to counts of pixels."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcl_jax.bench.report import Report, say
from tcl_jax.bench.subject import PAMR, bench_parser, count, numbers, read_subject
from tcl_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tcl_jax.evaluation.benchmark import Benchmark
    from tcl_jax.evaluation.examples import Example

MAX_CLASSES = 254
_DIFFERENT = 8
"""Images that are written; more repeat them."""


def bench_evaluate(argv: Sequence[str], doc: str | None, load: float) -> None:
    """`bench evaluate`: images per second of an evaluation."""
    p = bench_parser("evaluate", doc, load)
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument("--pamr", choices=PAMR, default="no", help="default no")
    p.add_argument("--images", type=count, default=16, help="in each case (default 16)")
    flags, rest = p.parse_known_args(argv)
    if not 2 <= min(flags.classes) <= max(flags.classes) <= MAX_CLASSES:
        listed = ",".join(map(str, flags.classes))
        raise InputError(f"--classes={listed}: must be between 2 and {MAX_CLASSES}")
    subject = read_subject(flags, rest, "evaluate")

    import jax
    import numpy as np

    from tcl_jax.bench.photos import HEIGHT, WIDTH
    from tcl_jax.bench.timing import peak_bytes
    from tcl_jax.evaluation.evaluator import Evaluator, read_classes
    from tcl_jax.evaluation.protocol import make_protocol
    from tcl_jax.evaluation.scores import count_pixels
    from tcl_jax.inference.engine import default_batch_size
    from tcl_jax.inference.model import Model
    from tcl_jax.inference.settings import default_settings
    from tcl_jax.models.flops import total
    from tcl_jax.models.layers import compute_dtype
    from tcl_jax.training.chips import mfu

    method, dtype = subject.experiment.method, subject.config.model.dtype
    model = Model(method, subject.params, default_settings(method))
    method = model.method_in(compute_dtype(dtype))
    batch, devices = default_batch_size(), jax.local_devices()
    report = Report(
        "evaluate", flags.load, flags.json, devices[0].platform, **subject.about,
        device=devices[0].device_kind, devices=len(devices), jax=jax.__version__,
    )  # fmt: skip
    for classes, pamr in itertools.product(flags.classes, PAMR[flags.pamr]):
        what = f"{classes} classes, {'PAMR' if pamr else 'no PAMR'}"
        protocol = make_protocol(model, pamr=pamr, dtype=dtype)
        texts = np.random.default_rng(0).standard_normal((classes, method.embed_dim))
        with (
            report.skip_too_large(what),
            tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder,
        ):
            say(what)
            benchmark, examples = write_benchmark(Path(folder), flags.images, classes)
            evaluator = Evaluator(method, subject.params, protocol, batch)

            def score(example: Example, labels: np.ndarray) -> None:
                count_pixels(labels, read_classes(example, benchmark), classes)  # noqa: B023

            def evaluate(examples: Sequence[Example]) -> float:
                start = time.perf_counter()
                for _ in evaluator.label_maps(examples, benchmark, texts.astype(np.float32), score):  # noqa: B023
                    pass
                return time.perf_counter() - start

            evaluate(examples[:1])  # compiles
            seconds = evaluate(examples)
            sliding = protocol.sliding_window(benchmark, (HEIGHT, WIDTH), model.method.patch_size)
            each, window = len(sliding.windows), sliding.padded[0]
            flops = total(method.flops(window, classes, protocol.options_of(benchmark)))
            row = {
                "width": WIDTH,
                "height": HEIGHT,
                "classes": classes,
                "pamr": pamr,
                "batch_size": batch,
                "images": flags.images,
                "windows_per_image": each,
                "images_per_second": flags.images / seconds,
                "mfu": mfu(flops * each * flags.images, seconds, devices),
                "image_flops": flops * each,
                "peak_bytes": peak_bytes(devices),
            }
            report.add("evaluation", row)
    report.print_tables()


def write_benchmark(folder: Path, images: int, classes: int) -> tuple[Benchmark, list[Example]]:
    """Drawn pictures as JPEG, with label maps of blocks."""
    import cv2
    import numpy as np

    from tcl_jax.bench.photos import HEIGHT, QUALITY, WIDTH, make_photo
    from tcl_jax.evaluation.benchmark import custom_benchmark
    from tcl_jax.evaluation.examples import Example

    rng, examples = np.random.default_rng(0), []
    for number in range(min(images, _DIFFERENT)):
        label = rng.integers(0, classes, (8, 8), np.uint8)
        label = cv2.resize(label, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        example = Example(str(number), folder / f"{number}.jpg", folder / f"{number}.png")
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        cv2.imwrite(str(example.image), make_photo(number)[0][..., ::-1], quality)
        cv2.imwrite(str(example.label), label)
        examples.append(example)
    names = [f"thing {i}" for i in range(classes)]
    benchmark = custom_benchmark(folder / "{key}.jpg", folder / "{key}.png", names, name="made_up")
    return benchmark, [examples[i % len(examples)] for i in range(images)]
