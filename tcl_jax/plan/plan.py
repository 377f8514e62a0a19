"""Memory, work and least time of a run on a machine that need not be there."""

from __future__ import annotations

import copy
import dataclasses
import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tcl_jax.models.flops import Parts, total
from tcl_jax.parallel.mesh import check_batch_size, data_mesh, parameter_sharding
from tcl_jax.plan.compiled import Compiled, compile_program
from tcl_jax.plan.evaluation_program import trace_evaluation
from tcl_jax.plan.topologies import topology_devices
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.plan.training_program import Program, training_program
from tcl_jax.training.build import Experiment, abstract_experiment, build_adamw
from tcl_jax.training.chips import Chip, chip_of
from tcl_jax.training.loop import number_of_updates
from tcl_jax.training.state import create_state
from tcl_jax.training.step import PHASES


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One program of a run on one of the chips.

    Attributes:
        name: "phase 1", "phase 2" or "evaluation".
        title: what it does.
        rows: images (windows, if it evaluates) on one chip.
        chips: that do this at the same time.
        chip: their figures.
        compiled: the compiler's report.
        resident: bytes of the run's state that stay on the chip besides its arguments.
        parts: FLOPs by formula of one row, by what they are for.
        executed: FLOPs of matrix products on the chip, those computed again counted again.
    """

    name: str
    title: str
    rows: float
    chips: int
    chip: Chip
    compiled: Compiled
    resident: int
    parts: Parts
    executed: float

    @property
    def peak(self) -> int | None:
        """Bytes on the chip at most; None if the compiler gave up."""
        return None if self.compiled.problem else self.compiled.peak + self.resident

    @property
    def fits(self) -> bool | None:
        """Whether the chip's memory is enough; None if it is not known."""
        if self.peak is None:
            return False
        return None if self.chip.memory is None else self.peak <= self.chip.memory

    @property
    def method_flops(self) -> float:
        """FLOPs by formula of all rows on the chip."""
        return total(self.parts) * self.rows

    @property
    def roofline(self) -> dict[str, float | None]:
        """Seconds that each part of the chip needs at its peak; None where that is not known.

        Williams, Waterman and Patterson, "Roofline" (2009), with the links to other chips as a
        third roof. All three are taken to work at the same time, so a real step takes longer.
        """
        report = self.compiled
        if report.problem:
            return {"compute": None, "memory": None, "interconnect": None}
        # XLA counts the bytes of a loop once: they are scaled as its FLOPs have to be, an estimate.
        loops = max(self.executed / report.flops, 1.0) if report.flops else 1.0
        sent = None if report.exchanged is None else sum(kind.sent for kind in report.exchanged)
        return {
            "compute": _ratio(self.executed, self.chip.flops),
            "memory": _ratio(report.bytes_accessed * loops, self.chip.bandwidth),
            "interconnect": _ratio(sent, self.chip.interconnect),
        }

    @property
    def bound(self) -> str | None:
        """The part of the chip that needs longest; None if even its FLOP/s are not known."""
        known = {name: seconds for name, seconds in self.roofline.items() if seconds}
        return max(known, key=lambda name: known[name]) if "compute" in known else None

    @property
    def seconds(self) -> float | None:
        """Least time of the step."""
        return None if self.bound is None else self.roofline[self.bound]

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation in 0..1 if it runs at its roofline."""
        rate = _ratio(self.method_flops, self.seconds)
        return _ratio(rate, self.chip.flops)

    @property
    def rows_per_second(self) -> float | None:
        """Of all chips together at the roofline."""
        return _ratio(self.rows * self.chips, self.seconds)


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
    """

    topology: str
    kind: str
    devices: int
    chip: Chip
    batch: int
    steps: tuple[PlannedStep, ...]
    samples: dict[str, float]

    @property
    def training(self) -> list[PlannedStep]:
        """The phases."""
        return [step for step in self.steps if step.name in self.samples]

    @property
    def fits(self) -> bool | None:
        """Whether all programs fit; None if the chip's memory is not known."""
        found = [step.fits for step in self.steps]
        return False if False in found else None if None in found else True

    @property
    def days(self) -> float | None:
        """Of all training steps at their rooflines; None if one of them is not known."""
        times = [_ratio(self.samples[step.name], step.rows_per_second) for step in self.training]
        return None if None in times else sum(time or 0.0 for time in times) / 86400


def make_plan(
    config: ConfigDict,
    topology: str,
    batch_per_chip: int | None = None,
) -> Plan:
    """Compiles a run's programs for a topology and adds up what they need.

    Args:
        config: as in configs/tcl.py, already checked; its weights and data are not looked at.
        topology: see `topology_devices`.
        batch_per_chip: instead of the config's global batch.

    Raises:
        InputError: if the topology is unknown, or the batch does not divide over it.
    """
    devices = topology_devices(topology)
    mesh, chip = data_mesh(devices), chip_of(devices[0])
    if batch_per_chip is not None:
        config = with_batch(config, batch_per_chip * mesh.size)
    batch, samples = config.train.global_batch_size, samples_of_phases(config)
    check_batch_size(batch, mesh, config.train.accumulation_steps)
    experiment = abstract_experiment(config)

    def plan_step(program: Program) -> PlannedStep:
        on, title, label = program.devices, program.title, program.name
        if program.name in samples:
            chips, resident = len(on), 0
            label += f" at {program.rows // len(on)} a chip"
        else:
            chips = min(len(on) * len({d.process_index for d in devices}), len(devices))
            resident = _idle_bytes(config, experiment, mesh)
        if chips < len(devices):
            title += f"; on {chips} of the chips, as this slice takes no program for a host's own"
        return PlannedStep(
            name=program.name,
            title=title,
            rows=program.rows / len(on),
            chips=chips,
            chip=chip,
            compiled=compile_program(program.traced, len(on), f"{topology}, {label}"),
            resident=resident,
            parts=program.parts,
            executed=traced_flops(program.traced.jaxpr, on[0].platform) / len(on),
        )

    evaluation = trace_evaluation(config, experiment, devices)  # first, as it may find mistakes
    steps = [
        plan_step(training_program(config, experiment, mesh, phase))
        for phase in PHASES
        if f"phase {phase}" in samples
    ]
    if evaluation is not None:
        steps.append(plan_step(evaluation))
    kind = devices[0].device_kind
    return Plan(topology, kind, len(devices), chip, batch, tuple(steps), samples)


def samples_of_phases(config: ConfigDict) -> dict[str, float]:
    """Pairs of each phase of a run, by its name; a phase that it does not have is not there."""
    updates = number_of_updates(config)
    first = min(config.train.backbone_from_step, updates)
    counts = zip(PHASES, (first, updates - first), strict=True)
    size = config.train.global_batch_size
    return {f"phase {phase}": float(count * size) for phase, count in counts if count}


def with_batch(config: ConfigDict, size: int) -> ConfigDict:
    """A copy of a config with another global batch."""
    other = copy.deepcopy(config)
    with other.unlocked():
        other.train.global_batch_size = size
    return other


def _ratio(amount: float | None, rate: float | None) -> float | None:
    return None if amount is None or not rate else amount / rate


def _idle_bytes(config: ConfigDict, experiment: Experiment, mesh: Mesh) -> int:
    """Bytes on a chip of the run's state that an evaluation with whole parameters does not use."""
    adamw = build_adamw(config)
    state = jax.eval_shape(
        lambda params: create_state(params, experiment.objective, adamw), experiment.params
    )
    split = config.train.fsdp
    # Parameters that are whole already are those that the evaluation uses.
    idle = (state, experiment.frozen) if split else state.opt_state
    return sum(
        math.prod(parameter_sharding(x.shape, mesh, sharded=split).shard_shape(x.shape))
        * x.dtype.itemsize
        for x in jax.tree.leaves(idle)
    )
