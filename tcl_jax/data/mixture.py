"""Several sources as one, by size or by weight."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from tcl_jax.data.order import Part
from tcl_jax.data.training_examples import Source, fingerprint_of, left_out_of
from tcl_jax.errors import InputError


class Mixture:
    """The examples of several sources, one source after the other.

    An epoch has as many examples as all sources together: without weights every example once; with
    them, source k gives the share w_k / sum(w), rounded so that the shares add up. Where that is m
    of n examples, each comes floor(m / n) or ceil(m / n) times in an epoch, and in the long run all
    come equally often.

    Args:
        sources: by name; they keep the order of the names.
        weights: a positive number for every name, or None.

    Raises:
        InputError: no source, a source without examples, weights that are not positive or not of
            these names, or so small that no example would ever come.
    """

    def __init__(
        self, sources: Mapping[str, Source], weights: Mapping[str, int | float] | None = None
    ) -> None:
        self.sources: Mapping[str, Source] = dict(sorted(sources.items()))
        """What is mixed, by name."""
        sizes = [len(source) for source in self.sources.values()]
        if not sizes:
            raise InputError("a mixture needs at least one source")
        if 0 in sizes:
            empty = list(self.sources)[sizes.index(0)]
            raise InputError(f"the source {empty} of a mixture has no examples; leave it out")
        draws = sizes
        if weights is not None:
            if weights.keys() != sources.keys() or not all(w > 0 for w in weights.values()):
                raise InputError(
                    f"the weights {dict(weights)} must be positive numbers, one for each of "
                    f"{', '.join(self.sources)}; leave all of them out to mix by size"
                )
            draws = _shares(sum(sizes), [weights[name] for name in self.sources])
            if 0 in draws:
                raise InputError(
                    f"the weight of {list(self.sources)[draws.index(0)]} is so small that none of "
                    f"its examples would be among the {sum(sizes)} of an epoch; raise it, or leave "
                    "that source out"
                )
        self._ends = list(itertools.accumulate(sizes))
        self.parts = tuple(
            Part(end - size, size, m) for end, size, m in zip(self._ends, sizes, draws, strict=True)
        )
        """What `EpochOrder` draws from."""

    @property
    def fingerprint(self) -> str:
        """Tells one mixture from another."""
        prints = [fingerprint_of(source) for source in self.sources.values()]
        content = repr((list(self.sources), prints, self.parts))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    @property
    def left_out(self) -> str:
        """What the sources do not use, in words."""
        return "; ".join(
            f"{name}: {left_out}"
            for name, source in self.sources.items()
            if (left_out := left_out_of(source))
        )

    def __len__(self) -> int:
        """Number of different examples."""
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index`; its key, if it has one, begins with the name of its source.

        Raises:
            IndexError: outside of 0 to len - 1.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"example {i}: there are {len(self)}.")
        k = bisect.bisect_right(self._ends, i)
        name, source = list(self.sources.items())[k]
        example = source[i - self.parts[k].begin]
        return {**example, "key": f"{name}/{example['key']}"} if "key" in example else example

    def __repr__(self) -> str:
        """Names and sources."""
        return f"Mixture({dict(self.sources)!r})"


def parts_of(source: Source) -> list[Source]:
    """What a mixture is of; of another source, itself."""
    return [*source.sources.values()] if isinstance(source, Mixture) else [source]


def _shares(total: int, weights: Sequence[int | float]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to the total."""
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_rest = sorted(range(len(whole)), key=lambda k: whole[k] - exact[k])
    for k in by_rest[: total - sum(whole)]:
        whole[k] += 1
    return whole
