"""Order, sharing out, resuming and failing of the batch iterators, in threads and in workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import grain
import numpy as np
import pytest

from tests.data import streams
from tests.data.streams import Numbers, assert_same, numbers, take


def refuse_three(image, rng):
    if image[0, 0, 0] == 3:
        raise ValueError("three is not a picture")
    return image


def iterate(length=23, batch=6, seed=0, **options):
    return streams.iterate(Numbers(0, length), batch, seed, **options)


@pytest.fixture(scope="module")
def reference():
    """Seven batches, that is almost two epochs, made in one process without workers."""
    with_threads = iterate()
    yield take(with_threads, 7)
    with_threads.close()


# -------------------------------------------------------------------------------- what is in it


def test_shapes(reference):
    assert reference[0]["image"].shape == (6, 4, 4, 3)
    assert reference[0]["image"].dtype == np.uint8
    assert reference[0]["tokens"].shape == (6, 1)
    assert reference[0]["tokens"].dtype == np.int32
    assert isinstance(iterate(), grain.DatasetIterator)


def test_seed_decides(reference):
    assert_same(take(iterate(), 7), reference)
    other = numbers(take(iterate(seed=1), 7))
    assert other[:23] != numbers(reference)[:23]
    assert other[:19] != numbers(reference)[23:42]


def test_augmentation_differs_between_epochs_and_examples(reference):
    noise = {}
    for batch in reference[:6]:
        for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
            noise.setdefault(int(tokens[0]), []).append((image - np.uint8(tokens[0])).tobytes())
    everything = [n for several in noise.values() for n in several]
    assert len(set(everything)) == len(everything) == 36


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_global_batch(reference, process_count):
    parts = [
        take(iterate(process_index=p, process_count=process_count), 7) for p in range(process_count)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, reference)


# ------------------------------------------------------------------------------------- resuming


def test_resume_in_mid_epoch(reference):
    first = iterate()
    take(first, 2)
    state = first.get_state()
    assert json.loads(json.dumps(state)) == state
    assert state == {"next_batch": 2, "seed": 0, "examples": 23, "global_batch_size": 6}
    fresh = iterate()
    fresh.set_state(state)
    assert_same(take(fresh, 5), reference[2:])
    fresh.set_state(state)  # A running iterator goes back, too.
    assert_same(take(fresh, 2), reference[2:4])


def test_state_goes_to_any_number_of_processes(reference):
    iterator = iterate(process_index=1, process_count=2)
    iterator.set_state({"next_batch": 4, "seed": 0, "examples": 23, "global_batch_size": 6})
    np.testing.assert_array_equal(next(iterator)["image"], reference[4]["image"][3:])


def test_foreign_state_is_refused():
    state = iterate().get_state()
    for other in (iterate(length=24), iterate(seed=1), iterate(batch=3)):
        with pytest.raises(ValueError, match="was .*, is .* start anew"):
            other.set_state(state)
    with pytest.raises(ValueError, match="next_batch is None"):
        iterate().set_state({k: v for k, v in state.items() if k != "next_batch"})


def test_a_dead_worker_is_reported_and_replaced(reference):
    iterator = iterate(num_workers=1)
    try:
        assert_same(take(iterator, 2), reference[:2])
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        taken = 2
        with pytest.raises(RuntimeError, match="data worker died .* exit code -9"):
            for _ in range(200):  # What was made before the kill may fill every buffer.
                take(iterator, 1)
                taken += 1
        assert iterator.get_state()["next_batch"] == taken
        assert_same(take(iterator, 1), take(iterate(), taken + 1)[taken:])
    finally:
        iterator.close()


# -------------------------------------------------------------------------------------- failing


def test_bad_example_is_named(reference):
    before = numbers(reference).index(3) // 6
    iterator = iterate(transform=refuse_three)
    iterator.set_state({**iterator.get_state(), "next_batch": before})
    for _ in range(2):  # It stays an error; the batch is not skipped.
        with pytest.raises(ValueError, match="example '003': three is not a picture"):
            next(iterator)
    assert iterator.get_state()["next_batch"] == before


def test_closed_iterator_is_refused():
    iterator = iterate()
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_count": 4}, "global_batch_size=6: must be a positive multiple"),
        ({"batch": 0}, "global_batch_size=0"),
        ({"batch": 24}, "only 23 examples"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        iterate(**options)
