"""What a run would need of a machine that need not be there: memory, work, time."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tcl_jax.models.flops import Parts, total
from tcl_jax.parallel.chips import Chip, chip_of
from tcl_jax.parallel.mesh import check_batch_size, data_mesh, parameter_sharding
from tcl_jax.parallel.topologies import topology_devices
from tcl_jax.training.abstract import trace_step
from tcl_jax.training.build import Task, abstract_task, build_adamw
from tcl_jax.training.compiled import Compiled, compile_program
from tcl_jax.training.loop import number_of_updates
from tcl_jax.training.roofline import Roofline, roofline
from tcl_jax.training.state import create_state
from tcl_jax.training.traced_flops import traced_flops

PHASE_NAMES = ("phase 1", "phase 2")
GRAIN = 8
"""Images a chip to which the largest batch is found, where it is not small."""
FREE = 0.98
"""Share of a chip's memory that its compiler hands out, about; where guesses aim at."""
MAX_TRIES = 4
"""Guesses of the largest batch that are compiled, at most."""

Tick = Callable[[str, float], None]
"""(what is being compiled, seconds so far)."""


@dataclasses.dataclass(frozen=True)
class TracedEvaluation:
    """The program of an evaluation.

    Attributes:
        title: what a row of it is, and how large.
        traced: the program.
        devices: that it runs on, those of one process.
        rows: that they take together at a time.
        parts: FLOPs of one row by formula.
    """

    title: str
    traced: jax.stages.Traced
    devices: list[jax.Device]
    rows: int
    parts: Parts


EvaluationTracer = Callable[[ConfigDict, Task, list[jax.Device]], TracedEvaluation | None]
"""(config, abstract task, devices) -> the program, None if the run has no evaluation."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One program of a run on one of the chips.

    Attributes:
        name: a row of `PHASE_NAMES`, or "evaluation".
        title: what it does.
        rows: images (windows, if it evaluates) on one chip.
        chips: that do this at the same time.
        compiled: the compiler's report.
        resident: bytes of the run's state that lie on the chip besides its arguments.
        parts: FLOPs by formula of one row, by what they are for.
        executed: FLOPs of matrix products on the chip, those computed again counted again.
        roofline: least times; None if it does not fit.
    """

    name: str
    title: str
    rows: float
    chips: int
    compiled: Compiled
    resident: int
    parts: Parts
    executed: float
    roofline: Roofline | None

    @property
    def peak(self) -> int | None:
        """Bytes on the chip at most; None if the compiler gave up."""
        return None if self.compiled.problem else self.compiled.peak + self.resident

    def fits(self, chip: Chip) -> bool | None:
        """Whether the chip's memory is enough; None if it is not known."""
        if self.peak is None:
            return False
        return None if chip.memory is None else self.peak <= chip.memory

    @property
    def method_flops(self) -> float:
        """FLOPs by formula of all rows on the chip."""
        return total(self.parts) * self.rows

    def mfu(self, chip: Chip) -> float | None:
        """Model FLOPs utilisation in 0..1 if it runs at its roofline."""
        seconds = None if self.roofline is None else self.roofline.seconds
        if seconds is None or not chip.flops:
            return None
        return self.method_flops / seconds / chip.flops


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
        topology: its name.
        kind: JAX's name of the devices.
        devices: how many.
        chip: their figures.
        batch: the global batch.
        steps: the two phases (or the one that the run has) and the evaluation, if any.
        samples: pairs that each phase sees in the whole run, by the name of the phase.
        largest: images a chip of the largest batch that fits; None if it was not looked for, 0 if
            not even the smallest does.
    """

    topology: str
    kind: str
    devices: int
    chip: Chip
    batch: int
    steps: tuple[PlannedStep, ...]
    samples: dict[str, float]
    largest: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether all programs fit; None if the chip's memory is not known."""
        found = [step.fits(self.chip) for step in self.steps]
        return False if False in found else None if None in found else True

    def images_per_second(self, step: PlannedStep) -> float | None:
        """Of all chips together at the roofline; windows, if it evaluates."""
        seconds = None if step.roofline is None else step.roofline.seconds
        return None if seconds is None else step.rows * step.chips / seconds

    @property
    def days(self) -> float | None:
        """Of all training steps at their rooflines; None if one of them is not known."""
        rates = {step.name: self.images_per_second(step) for step in self.steps}
        seconds = 0.0
        for name, samples in self.samples.items():
            rate = rates.get(name)
            if rate is None:
                return None
            seconds += samples / rate
        return seconds / 86400


def make_plan(
    config: ConfigDict,
    topology: str,
    evaluation: EvaluationTracer,
    *,
    batch_per_chip: int | None = None,
    largest: bool = False,
    cache: Path | None = None,
    tick: Tick = lambda _, __: None,
) -> Plan:
    """Compiles a run's programs for a topology and adds up what they need.

    Args:
        config: as in configs/tcl.py, already checked; its weights and data are not looked at.
        topology: see `parallel.topologies`.
        evaluation: traces the evaluation.
        batch_per_chip: instead of the config's global batch.
        largest: also look for the largest batch that fits, by compiling a few more.
        cache: folder where the compiler's reports are kept.
        tick: called while something compiles.

    Raises:
        InputError: if the topology is unknown, or the batch does not divide over it.
    """
    devices = topology_devices(topology)
    mesh, chip = data_mesh(devices), chip_of(devices[0])
    parts, samples = config.train.accumulation_steps, samples_of_phases(config)
    if batch_per_chip is not None:
        config = with_batch(config, batch_per_chip * mesh.size)
    batch = config.train.global_batch_size
    check_batch_size(batch, mesh, parts)
    task, platform = abstract_task(config), devices[0].platform

    def compile_step(name: str, traced: jax.stages.Traced, on: list[jax.Device]) -> Compiled:
        told = functools.partial(tick, f"{topology}, {name}")
        return compile_program(traced, on, topology, cache=cache, tick=told)

    def train_step(name: str, size: int) -> PlannedStep:
        phase = PHASE_NAMES.index(name)
        traced = trace_step(with_batch(config, size), task, mesh, phase)
        executed = traced_flops(traced.jaxpr, platform) / mesh.size
        compiled = compile_step(f"{name} at {size // mesh.size} a chip", traced, devices)
        title = "head alone" if phase == 0 else "head and backbone"
        needs = task.objective.model.training_flops(size, phase == 1)
        rows = size / mesh.size
        return _planned(name, title, rows, mesh.size, compiled, 0, needs, executed, chip)

    judged = evaluation(config, task, devices)  # first, as it may find mistakes
    steps = [train_step(name, batch) for name in samples]
    if judged is not None:
        report = compile_step("evaluation", judged.traced, judged.devices)
        executed = traced_flops(judged.traced.jaxpr, platform) / len(judged.devices)
        rows, resident = judged.rows / len(judged.devices), _waiting_bytes(config, task, mesh)
        processes = len({device.process_index for device in devices})
        chips = min(len(judged.devices) * processes, len(devices))
        title = judged.title
        if chips < len(devices):
            title += f"; on {chips} of the chips, as this slice takes no program for a host's own"
        steps.append(
            _planned(
                "evaluation", title, rows, chips, report, resident, judged.parts, executed, chip
            )
        )
    found = None
    if largest and chip.memory is not None:
        worst = max(steps[: len(samples)], key=lambda step: (step.peak is None, step.peak or 0))

        def peak(rows: int) -> int | None:
            step = train_step(worst.name, rows * mesh.size)
            return step.peak if step.fits(chip) else None

        known = {batch // mesh.size: worst.peak if worst.fits(chip) else None}
        found = largest_batch(peak, int(FREE * chip.memory), known, multiple=parts)
    return Plan(
        topology=topology,
        kind=devices[0].device_kind,
        devices=len(devices),
        chip=chip,
        batch=batch,
        steps=tuple(steps),
        samples=samples,
        largest=found,
    )


def samples_of_phases(config: ConfigDict) -> dict[str, float]:
    """Pairs of each phase of a run, by its name; a phase that it does not have is not there."""
    t = config.train
    updates = number_of_updates(config)
    first = min(t.backbone_from_step, updates)
    counts = dict(zip(PHASE_NAMES, (first, updates - first), strict=True))
    return {name: float(count * t.global_batch_size) for name, count in counts.items() if count}


def with_batch(config: ConfigDict, size: int) -> ConfigDict:
    """A copy of a config with another global batch."""
    other = copy.deepcopy(config)
    with other.unlocked():
        other.train.global_batch_size = size
    return other


def largest_batch(
    peak: Callable[[int], int | None],
    memory: int,
    known: Mapping[int, int | None],
    *,
    multiple: int = 1,
) -> int:
    """The largest batch that fits, found by compiling few sizes.

    Memory grows with the batch in a straight line, or nearly: two sizes tell where it meets the
    limit, and what they tell is tried. The result did compile; whether a slightly larger one
    would is known to `GRAIN` images (to one below twice that), or it was not tried further.

    Args:
        peak: bytes of a chip with so many images, None if they do not fit.
        memory: of the chip.
        known: sizes that were tried already, at least one.
        multiple: batches are multiples of it.

    Returns:
        Images a chip; 0 if not even `multiple` fit.
    """
    tried = dict(known)

    def fits(size: int) -> bool:
        if size not in tried:
            tried[size] = peak(size)
        return tried[size] is not None

    low = max(tried)
    while not fits(low):
        low = low // 2 // multiple * multiple
        if low < multiple:
            return 0
    fits(max(low // 2 // multiple * multiple, multiple))
    for _ in range(MAX_TRIES):
        good = sorted((size, value) for size, value in tried.items() if value is not None)
        high = min((size for size, value in tried.items() if value is None), default=None)
        grain = multiple * (GRAIN if good[-1][0] >= 2 * GRAIN * multiple else 1)
        guess = _extrapolated(good, memory) // grain * grain
        if high is not None:
            low = good[-1][0]
            if not low < guess < high:
                guess = (low + high) // 2 // grain * grain
        if guess <= good[-1][0] or (not fits(guess) and guess - grain <= good[-1][0]):
            break
    return max(size for size, value in tried.items() if value is not None)


def _extrapolated(good: list[tuple[int, int]], memory: int) -> int:
    """The size at which the line through the two largest sizes reaches the memory."""
    (first, less), (second, more) = (good[-2:] * 2)[:2] if len(good) > 1 else good * 2
    if second <= first or more <= less:
        return 2 * second
    return int(second + (memory - more) * (second - first) / (more - less))


def _planned(
    name: str,
    title: str,
    rows: float,
    chips: int,
    compiled: Compiled,
    resident: int,
    parts: Parts,
    executed: float,
    chip: Chip,
) -> PlannedStep:
    times = None if compiled.problem else roofline(executed, compiled, chip)
    return PlannedStep(name, title, rows, chips, compiled, resident, parts, executed, times)


def _waiting_bytes(config: ConfigDict, task: Task, mesh: Mesh) -> int:
    """Of a chip's part of the run that waits while it evaluates with whole parameters."""
    adamw = build_adamw(config)
    state = jax.eval_shape(lambda params: create_state(params, task.objective, adamw), task.params)
    split = config.train.fsdp
    # Parameters that are whole already are those that the evaluation uses.
    waiting = (state, task.frozen) if split else state.opt_state
    return sum(
        math.prod(parameter_sharding(x.shape, mesh, sharded=split).shard_shape(x.shape))
        * x.dtype.itemsize
        for x in jax.tree.leaves(waiting)
    )
