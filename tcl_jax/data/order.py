"""Which example comes when: one endless order of all examples, drawn from the seed."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples `begin` to `begin + size - 1`, of which `draws` come in every epoch.

    With `draws` equal to `size` each comes once; else each comes as often as any other, give or
    take one, in every epoch and over any number of epochs.
    """

    begin: int
    size: int
    draws: int


class EpochOrder:
    """The example at each place of the endless stream that all processes share.

    An epoch is one random order of the draws of all parts, another one each time. Epochs follow
    each other without a gap: a global batch may hold the end of one and the beginning of the next,
    and nothing is left over. Where every example comes once in an epoch, of which there are at
    least three batches, such a batch holds no example twice either.

    Args:
        parts: they follow each other from example 0.
        batch_size: examples of a global batch.
        seed: of the order, below 2**32.
    """

    def __init__(self, parts: Sequence[Part], *, batch_size: int, seed: int) -> None:
        self.length = sum(part.draws for part in parts)
        self._parts = tuple(parts)
        self._begins = [part.begin for part in parts]
        self._draw_begins = np.cumsum([0, *(part.draws for part in parts)]).tolist()[:-1]
        self._batch_size = batch_size
        self._slots = _permutation(self.length, seed)
        # Which examples an epoch leaves out, where it has fewer draws than a part has examples.
        self._walks = [
            _permutation(part.size, int(np.random.SeedSequence([seed, k]).generate_state(1)[0]))
            if part.draws != part.size
            else None
            for k, part in enumerate(parts)
        ]
        self._exchanges: dict[int, dict[int, int]] = {}

    def __call__(self, place: int) -> int:
        """The example at a place, counted from 0 over all epochs."""
        epoch, position = divmod(place, self.length)
        return self._example(epoch, self._exchanged(epoch).get(position, position))

    def part_of(self, example: int) -> Part:
        """The part that an example is of."""
        return self._parts[bisect.bisect_right(self._begins, example) - 1]

    def _example(self, epoch: int, position: int) -> int:
        slot = self._slots[epoch * self.length + position] % self.length
        k = bisect.bisect_right(self._draw_begins, slot) - 1
        part, walk = self._parts[k], self._walks[k]
        # From epoch to epoch the draws walk on through one fixed order of the part.
        step = (epoch * part.draws + slot - self._draw_begins[k]) % part.size
        return part.begin + (step if walk is None else walk[step])

    def _exchanged(self, epoch: int) -> dict[int, int]:
        """Positions that change places so that no example is twice in the batch across two epochs.

        Such examples move out of that batch, into the one after it.
        """
        if epoch not in self._exchanges:
            self._exchanges = {epoch: self._find_exchanges(epoch)}  # workers go from epoch to epoch
        return self._exchanges[epoch]

    def _find_exchanges(self, epoch: int) -> dict[int, int]:
        size, begun = self._batch_size, epoch * self.length % self._batch_size
        once = all(part.draws == part.size for part in self._parts)
        if not begun or not once or self.length < 3 * size:
            return {}
        # The three batches keep this epoch's exchanges apart from what the next one looks at.
        last = range(self.length - begun, self.length)
        taken = {self._example(epoch - 1, position) for position in last}
        head = size - begun
        free = (p for p in range(head, 2 * size) if self._example(epoch, p) not in taken)
        exchanges: dict[int, int] = {}
        for position in range(head):
            if self._example(epoch, position) in taken:
                other = next(free)
                exchanges |= {position: other, other: position}
        return exchanges


def _permutation(length: int, seed: int) -> grain.MapDataset[int]:
    return grain.MapDataset.range(length).shuffle(seed=seed)
