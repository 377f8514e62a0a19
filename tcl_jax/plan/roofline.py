"""The least time that a step can take on a chip, from its work and the chip's peak rates."""

from __future__ import annotations

import dataclasses

from tcl_jax.parallel.chips import Chip
from tcl_jax.plan.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a chip needs at its peak; None where that is not known.

    Williams, Waterman and Patterson, "Roofline" (2009), with the links to other chips as a third
    roof. All three are taken to work at the same time, so a real step takes longer.

    Attributes:
        compute: for the FLOPs.
        memory: for the bytes to and from HBM.
        interconnect: for what goes to other chips.
    """

    compute: float | None
    memory: float | None
    interconnect: float | None

    @property
    def bound(self) -> str | None:
        """Name of the part that needs longest."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return max(known, key=lambda name: known[name]) if self.compute and known else None

    @property
    def seconds(self) -> float | None:
        """Least time of the step; None if even the chip's FLOP/s are not known."""
        return None if self.bound is None else getattr(self, self.bound)


def roofline(executed: float, compiled: Compiled, chip: Chip) -> Roofline:
    """Least time of a program on a chip.

    Args:
        executed: FLOPs of its matrix products on this chip, loops as often as they run.
        compiled: its bytes, of which XLA counts those in loops once: they are scaled as FLOPs
            have to be, and some never leave the chip, so this is an estimate.
        chip: peak rates.
    """
    loops = max(executed / compiled.flops, 1.0) if compiled.flops else 1.0
    kinds = compiled.exchanged
    sent = None if kinds is None else sum(kind.sent for kind in kinds)
    return Roofline(
        compute=_over(executed, chip.flops),
        memory=_over(compiled.bytes_accessed * loops, chip.bandwidth),
        interconnect=_over(sent, chip.interconnect),
    )


def _over(amount: float | None, rate: float | None) -> float | None:
    return None if amount is None or rate is None else amount / rate
