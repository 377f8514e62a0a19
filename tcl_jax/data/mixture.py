"""Several sources as one, by size or by weight."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from tcl_jax.data.order import Part
from tcl_jax.data.training_examples import Fingerprinted, Incomplete, Source
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
        self._names = sorted(sources)
        self._sources = [sources[name] for name in self._names]
        sizes = [len(source) for source in self._sources]
        if not sizes or min(sizes) == 0:
            empty = [name for name, size in zip(self._names, sizes, strict=True) if not size]
            raise InputError(
                f"the mixture has no source{f' with examples in {empty}' if empty else ''}; give "
                "at least one, each with examples"
            )
        if weights is not None and (
            weights.keys() != sources.keys() or not all(w > 0 for w in weights.values())
        ):
            raise InputError(
                f"the weights {dict(weights)} must be positive numbers, one for each of "
                f"{', '.join(self._names)}; leave all of them out to mix by size"
            )
        draws = sizes
        if weights is not None:
            draws = _shares(sum(sizes), [weights[name] for name in self._names])
            if 0 in draws:
                raise InputError(
                    f"the weight of {self._names[draws.index(0)]} is so small that none of its "
                    f"examples would be among the {sum(sizes)} of an epoch; raise it, or leave "
                    "that source out"
                )
        self._ends = list(itertools.accumulate(sizes))
        self.parts = tuple(
            Part(end - size, size, m) for end, size, m in zip(self._ends, sizes, draws, strict=True)
        )
        """What `EpochOrder` draws from."""

    @property
    def sources(self) -> Mapping[str, Source]:
        """What is mixed, by name."""
        return dict(zip(self._names, self._sources, strict=True))

    @property
    def fingerprint(self) -> str:
        """Tells one mixture from another."""
        told = [s.fingerprint if isinstance(s, Fingerprinted) else "" for s in self._sources]
        content = repr((self._names, told, self.parts))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    @property
    def left_out(self) -> str:
        """What the sources do not use, in words."""
        parts = zip(self._names, self._sources, strict=True)
        told = [f"{name}: {s.left_out}" for name, s in parts if isinstance(s, Incomplete)]
        return "; ".join(words for words in told if not words.endswith(": "))

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
        example = self._sources[k][i - self.parts[k].begin]
        if "key" in example:
            return {**example, "key": f"{self._names[k]}/{example['key']}"}
        return example

    def __repr__(self) -> str:
        """Names and sources."""
        told = ", ".join(f"{n}: {s!r}" for n, s in zip(self._names, self._sources, strict=True))
        return f"Mixture({{{told}}})"


def _shares(total: int, weights: Sequence[int | float]) -> list[int]:
    """Whole numbers in proportion to the weights that add up to the total."""
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_rest = sorted(range(len(whole)), key=lambda k: whole[k] - exact[k])
    for k in by_rest[: total - sum(whole)]:
        whole[k] += 1
    return whole
