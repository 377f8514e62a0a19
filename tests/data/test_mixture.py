"""The order of examples: every one once an epoch, or as often as its weight says, on all hosts."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest

from tcl_jax.data.mixture import Mixture
from tcl_jax.data.order import EpochOrder, Part
from tcl_jax.errors import InputError
from tests.data.streams import Numbers, iterate


def mixture(weights=None) -> Mixture:
    """Sources a, b, c of 20, 8 and 5 examples: numbers 0-19, 100-107 and 200-204."""
    sources = {"c": Numbers(200, 5), "a": Numbers(0, 20), "b": Numbers(100, 8)}
    return Mixture(sources, weights)


# --------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize("batch_size", [7, 33])
def test_every_example_once_in_every_epoch(batch_size):
    order = EpochOrder([Part(0, 33, 33)], batch_size=batch_size, seed=1)
    epochs = [[order(33 * e + i) for i in range(33)] for e in range(12)]
    assert all(sorted(epoch) == list(range(33)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert len({epoch[0] for epoch in epochs}) > 6  # any example may be the first of an epoch


@pytest.mark.parametrize("batch_size", [70, 110])
def test_no_example_is_twice_in_a_batch(batch_size):
    exchanged = 0
    for seed in range(2):
        parts = [Part(0, 200, 200), Part(200, 130, 130)]
        order = EpochOrder(parts, batch_size=batch_size, seed=seed)
        rows = [order(i) for i in range(330 * 6)]
        for begin in range(0, len(rows) - batch_size + 1, batch_size):
            assert len(set(rows[begin : begin + batch_size])) == batch_size, (seed, begin)
        for epoch in range(6):
            assert sorted(rows[330 * epoch : 330 * (epoch + 1)]) == list(range(330))
            exchanged += len(order._find_exchanges(epoch))
    assert (exchanged > 0) == (batch_size != 110)  # there was something to avoid


def test_order_depends_on_the_seed_and_the_place_alone():
    parts = [Part(0, 20, 9), Part(20, 13, 24)]
    whole = [EpochOrder(parts, batch_size=8, seed=5)(i) for i in range(120)]
    shared = pickle.loads(pickle.dumps(EpochOrder(parts, batch_size=8, seed=5)))
    places = np.random.default_rng(0).permutation(120)
    assert [shared(int(i)) for i in places] == [whole[i] for i in places]
    assert [EpochOrder(parts, batch_size=8, seed=6)(i) for i in range(120)] != whole


# --------------------------------------------------------------------------------------- mixtures


def test_sources_one_after_the_other():
    mixed = mixture()
    assert len(mixed) == 33
    assert [mixed[i]["key"] for i in (0, 19, 20, 27, 28, 32)] == [
        "a/000", "a/019", "b/100", "b/107", "c/200", "c/204",
    ]  # fmt: skip
    assert mixed[np.int64(20)]["text"] == "100"
    for outside in (33, -1):
        with pytest.raises(IndexError):
            mixed[outside]
    assert [part.draws for part in mixed.parts] == [20, 8, 5]
    assert repr(mixed).startswith("Mixture({'a': <")


@pytest.mark.parametrize(
    ("weights", "draws"),
    [
        ({"a": 1, "b": 1, "c": 1}, [11, 11, 11]),
        ({"a": 0.2, "b": 0.1, "c": 0.7}, [7, 3, 23]),
        ({"a": 1000.0, "b": 32, "c": 32}, [31, 1, 1]),
    ],
)
def test_weights_decide_how_often(weights, draws):
    mixed = mixture(weights)
    assert [part.draws for part in mixed.parts] == draws
    order = EpochOrder(mixed.parts, batch_size=8, seed=2)
    total: collections.Counter[int] = collections.Counter()
    for epoch in range(8):
        seen = collections.Counter(order(33 * epoch + i) for i in range(33))
        total += seen
        for part in mixed.parts:
            times = [seen[i] for i in range(part.begin, part.begin + part.size)]
            assert sum(times) == part.draws
            assert min(times) >= part.draws // part.size
            assert max(times) <= -(-part.draws // part.size)
    for part in mixed.parts:  # and as often in the long run
        times = [total[i] for i in range(part.begin, part.begin + part.size)]
        assert max(times) - min(times) <= 1
        assert sum(times) == 8 * part.draws


def test_other_mixture_is_another_place():
    state = iterate(mixture(), 8, 3).get_state()
    for other in (
        mixture({"a": 1, "b": 1, "c": 1}),
        Mixture({"a": Numbers(0, 20), "b": Numbers(100, 8), "d": Numbers(200, 5)}),
        Mixture({"a": Numbers(0, 20), "b": Numbers(100, 8), "c": Numbers(200, 5, "changed")}),
    ):
        with pytest.raises(InputError, match="data was .*, is .* start anew"):
            iterate(other, 8, 3).set_state(state)
    iterate(mixture(), 8, 3).set_state(state)


def test_bad_mixtures():
    with pytest.raises(InputError, match="at least one source"):
        Mixture({})
    with pytest.raises(InputError, match="the source empty of a mixture has no examples"):
        Mixture({"a": Numbers(0, 3), "empty": Numbers(0, 0)})
    for weights in (
        {"a": 1, "b": 1},
        {"a": 1, "b": 1, "c": 0},
        {"a": 1, "b": 1, "c": float("nan")},
    ):
        with pytest.raises(InputError, match="positive numbers, one for each of a, b, c"):
            mixture(weights)
    with pytest.raises(InputError, match="weight of c is so small"):
        mixture({"a": 1, "b": 1, "c": 1e-6})
