"""Memory, work and least time of a training run on a machine that need not be there."""

from __future__ import annotations

import copy
import dataclasses

from ml_collections import ConfigDict

from tcl_jax.models.flops import Parts, total
from tcl_jax.parallel.mesh import check_batch_size, data_mesh
from tcl_jax.plan.compiled import Compiled, compile_program
from tcl_jax.plan.topologies import topology_devices
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.plan.training_program import trace_step
from tcl_jax.training.build import abstract_experiment
from tcl_jax.training.check import number_of_updates
from tcl_jax.training.chips import Chip, chip_of
from tcl_jax.training.step import PHASES


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """The training step of a phase on one of the chips.

    Attributes:
        name: "phase 1" or "phase 2".
        images: on one chip.
        chips: of the run.
        chip: their figures.
        compiled: the compiler's report.
        parts: FLOPs by formula of one image, by what they are for.
        executed: FLOPs of matrix products on the chip, those computed again counted again.
        samples: pairs that the phase sees in the whole run.
    """

    name: str
    images: float
    chips: int
    chip: Chip
    compiled: Compiled
    parts: Parts
    executed: float
    samples: float

    @property
    def fits(self) -> bool | None:
        """Whether the chip's memory is enough; None if it is not known."""
        if self.compiled.problem:
            return False
        return None if self.chip.memory is None else self.compiled.peak <= self.chip.memory

    @property
    def method_flops(self) -> float:
        """FLOPs by formula of all images on the chip."""
        return total(self.parts) * self.images

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
        return _ratio(_ratio(self.method_flops, self.seconds), self.chip.flops)

    @property
    def images_per_second(self) -> float | None:
        """Of all chips together at the roofline."""
        return _ratio(self.images * self.chips, self.seconds)

    @property
    def days(self) -> float | None:
        """Of all steps of the phase at the roofline."""
        seconds = _ratio(self.samples, self.images_per_second)
        return None if seconds is None else seconds / 86400


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
        kind: JAX's name of the devices.
        steps: the two phases, or the one that the run has.
    """

    topology: str
    kind: str
    devices: int
    chip: Chip
    batch: int
    steps: tuple[PlannedStep, ...]


def make_plan(config: ConfigDict, topology: str, batch_per_chip: int | None = None) -> Plan:
    """Compiles a run's training steps for a topology and adds up what they need.

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
    batch = config.train.global_batch_size
    check_batch_size(batch, mesh, config.train.accumulation_steps)
    experiment = abstract_experiment(config)
    images = batch / mesh.size

    def plan_step(phase: int, samples: float) -> PlannedStep:
        name = f"phase {phase}"
        traced = trace_step(config, experiment, mesh, phase)
        return PlannedStep(
            name=name,
            images=images,
            chips=mesh.size,
            chip=chip,
            compiled=compile_program(traced, mesh.size, f"{topology}, {name} at {images:g} a chip"),
            parts=experiment.objective.training_flops(batch, phase == 2),
            executed=traced_flops(traced.jaxpr, devices[0].platform) / mesh.size,
            samples=samples,
        )

    steps = tuple(plan_step(*phase) for phase in samples_of_phases(config).items())
    return Plan(topology, devices[0].device_kind, mesh.size, chip, batch, steps)


def samples_of_phases(config: ConfigDict) -> dict[int, float]:
    """Pairs that each phase of a run sees; a phase that it does not have is not there."""
    updates = number_of_updates(config.to_dict())
    first = min(config.train.backbone_from_step, updates)
    counts = zip(PHASES, (first, updates - first), strict=True)
    return {
        phase: float(count * config.train.global_batch_size) for phase, count in counts if count
    }


def with_batch(config: ConfigDict, size: int) -> ConfigDict:
    """A copy of a config with another global batch."""
    other = copy.deepcopy(config)
    with other.unlocked():
        other.train.global_batch_size = size
    return other


def _ratio(amount: float | None, rate: float | None) -> float | None:
    return None if amount is None or not rate else amount / rate
