"""`bench train`: from flags to figures of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl_jax.bench.against import add_against_flags, cases_of, open_original, start
from tcl_jax.bench.subject import (
    Subject,
    add_round_flags,
    bench_parser,
    count,
    fitting,
    numbers,
    tell_stage,
)
from tcl_jax.errors import InputError

if TYPE_CHECKING:
    from tcl_jax.bench.process import OriginalProcess

COMPARED_IMAGES = 4
"""Of a batch whose float32 losses are compared with the official code's."""


def bench_train(argv: Sequence[str], doc: str | None) -> None:
    """`bench train`: time, images/s, MFU and memory of a step, and of its parts."""
    p = bench_parser("train", doc)
    add_round_flags(p)
    p.add_argument("--batch_sizes", type=numbers, default=(64,), metavar="LIST", help="default 64")
    p.add_argument("--phases", type=numbers, default=(1, 2), metavar="LIST", help="default 1,2")
    p.add_argument("--steps", type=count, default=10, help="of a round, in a row (default 10)")
    p.add_argument("--no_parts", action="store_true", help="measure the whole step alone")
    add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    if max(flags.phases) > 2:
        raise InputError(f"--phases={','.join(map(str, flags.phases))}: there are 1 and 2")
    subject, report, mesh = start(flags, rest, "train")

    from tcl_jax.bench.comparison import Comparison, compare_times
    from tcl_jax.bench.report import against_table, agreement, parts_table, step_table
    from tcl_jax.bench.step_speed import StepRunner, made_up_batch, step_speed, time_parts
    from tcl_jax.bench.timing import peak_bytes, time_rounds
    from tcl_jax.parallel.mesh import check_batch_size
    from tcl_jax.training.build import build_adamw, build_schedule

    task, config = subject.task, subject.config
    adamw, schedule = build_adamw(config), build_schedule(config)
    how = {"rounds": flags.rounds, "warm_up": flags.warmup}
    accumulation = int(config.train.accumulation_steps)
    for size in flags.batch_sizes:
        check_batch_size(size, mesh, accumulation)
    speeds, parts = [], {}
    comparisons: list[Comparison] = []
    with open_original(flags, subject, report) as other:
        if other is not None:
            for phase in flags.phases:
                found = _compare_losses(*other, subject, phase - 1, mesh)
                report.add("agreement", {f"phase {phase}": found})
                print(f"phase {phase}: {agreement(found)}", flush=True)
        for size in flags.batch_sizes:
            batch = made_up_batch(task.clip.config, size)
            for phase in flags.phases:
                what = f"batch {size}, phase {phase}"
                tell_stage(f"{what}: compiling")
                with fitting(report, what):
                    runner = StepRunner(
                        task,
                        batch,
                        phase - 1,
                        adamw=adamw,
                        schedule=schedule,
                        mesh=mesh,
                        accumulation_steps=accumulation,
                        sharded=bool(config.train.fsdp),
                    )
                    tell_stage(what)
                    timing = time_rounds(runner.run, calls=flags.steps, **how)
                    peak = peak_bytes(list(mesh.devices.flat))
                    speed = step_speed(runner, task, timing, size, phase - 1, mesh, peak)
                    speeds.append(speed)
                    report.add("steps", speed)
                    if other is None:
                        continue
                    file = _write_batch(other[1], batch)
                    timed = compare_times(
                        other[0],
                        what,
                        {"do": "prepare_train", "file": str(file), "phase": phase - 1},
                        runner.run,
                        cases=cases_of(flags, subject.dtype),
                        calls=flags.steps,
                        tell=tell_stage,
                        **how,
                    )
                    comparisons += report.each("against", timed)
            if not flags.no_parts:
                tell_stage(f"batch {size}: parts")
                with fitting(report, f"batch {size}, parts"):
                    found = time_parts(task, batch, adamw, calls=flags.steps, **how)
                    parts[f"batch {size}"] = found
                    report.add("parts", {f"batch {size}": found})
    print(f"\n{step_table(speeds)}")
    if parts:
        print(f"\n{parts_table(parts)}")
    if comparisons:
        print(f"\n{against_table(comparisons)}")


def _compare_losses(
    original: OriginalProcess, folder: Path, subject: Subject, phase: int, mesh: Any
) -> dict[str, float]:
    """Relative differences of float32 losses and gradient of a small batch."""
    import jax.numpy as jnp

    from tcl_jax.bench.comparison import check_losses
    from tcl_jax.bench.step_speed import StepRunner, made_up_batch
    from tcl_jax.training.build import build_adamw, build_schedule

    task: Any = subject.task
    batch = made_up_batch(task.clip.config, COMPARED_IMAGES, seed=1, noise=True)
    model = dataclasses.replace(task.objective.model, dtype=jnp.float32)
    objective = dataclasses.replace(task.objective, model=model)
    adamw, schedule = build_adamw(subject.config), build_schedule(subject.config)
    tell_stage(f"comparing losses of phase {phase + 1}")
    runner = StepRunner(
        dataclasses.replace(task, objective=objective),
        batch,
        phase,
        adamw=adamw,
        schedule=schedule,
        mesh=mesh,
    )
    ours = runner.metrics()
    theirs = original.ask("compare_train", file=str(_write_batch(folder, batch)), phase=phase)
    return check_losses(ours, theirs, f"phase {phase + 1}")


def _write_batch(folder: Path, batch: Any) -> Path:
    import jax.numpy as jnp
    import numpy as np

    from tcl_jax.bench.comparison import write_images
    from tcl_jax.ops.images import normalize

    rest = {name: rows for name, rows in batch.items() if name != "image"}
    images = np.asarray(normalize(jnp.asarray(batch["image"])))
    write_images(folder / "batch.npz", images, **rest)
    return folder / "batch.npz"
