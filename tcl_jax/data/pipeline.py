"""Batches of image-text pairs for training.

Everything is a pure function of the seed and the position in the global stream of examples: which
example comes, how it is augmented, which process gets it. So the global batch is the same on any
number of processes and workers, and the whole state of an iterator is the number of its next batch.
"""

from __future__ import annotations

import atexit
import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.order import EpochOrder, Part
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.training_examples import BAD, Source, TrainingBatches, fingerprint_of
from tcl_jax.data.transforms import Transform
from tcl_jax.errors import InputError

_BUFFERED_BATCHES = 2


def make_iterator(
    source: Source,
    *,
    tokenizer: Tokenizer,
    transform: Transform,
    erasing: RandomErasing | None = None,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    bad_samples: BadSampleLog | None = None,
) -> BatchIterator:
    """Endless shuffled, augmented batches of this process.

    Args:
      source, tokenizer, transform, erasing: as in `TrainingBatches`; picklable where there are
        workers.
      global_batch_size: examples per batch over all processes.
      seed: of the order and of the augmentation.
      process_index, process_count: process p gets rows [p b, (p + 1) b) of each global batch.
      num_workers: operating system processes that make batches ahead; 0 makes them in a thread.
      bad_samples: records bad samples as their batches are handed out.

    Returns:
      Iterator of {"image": uint8 [b, S, S, 3], "tokens": int32 [b, L]}, with
      b = global_batch_size / process_count; with `erasing` also "erase", int32 [b, 4]. A source
      with embeddings of its captions makes it "text_embedding", float32 [b, d], instead of
      "tokens", and one of `features` has "heads" and "text_embedding" alone. Close it when done:
      workers live as long as it does.

    Raises:
      InputError: the batch does not divide over the processes, or the source has fewer examples
        than one batch.
    """
    if global_batch_size < 1 or process_count < 1 or global_batch_size % process_count:
        raise InputError(
            f"global_batch_size={global_batch_size}: must be a positive multiple of the number of "
            f"processes, which is {process_count}, since each takes an equal share of every batch."
        )
    examples = len(source)
    if examples < global_batch_size:
        raise InputError(
            f"global_batch_size={global_batch_size}: there are only {examples} examples, which do "
            f"not fill one batch; give --config.train.global_batch_size=N of at most {examples}, "
            "or more data"
        )
    parts = source.parts if isinstance(source, Mixture) else (Part(0, examples, examples),)
    order_seed, row_seed = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    share = TrainingBatches(
        source,
        EpochOrder(parts, batch_size=global_batch_size, seed=int(order_seed)),
        tokenizer=tokenizer,
        transform=transform,
        erasing=erasing,
        seed=int(row_seed),
        batch_size=global_batch_size // process_count,
    )
    # The shares of all processes follow each other; each process takes every process_count-th.
    batches = grain.MapDataset.source(share)
    identity: dict[str, int | str] = {
        "seed": seed, "examples": examples, "global_batch_size": global_batch_size,
    }  # fmt: skip
    if data := fingerprint_of(source):
        identity["data"] = data
    own = batches[process_index::process_count]
    return BatchIterator(own, num_workers, identity, bad_samples or BadSampleLog())


class BatchIterator(grain.DatasetIterator[dict[str, np.ndarray]]):
    """Iterator over batches whose state is a position. Made by `make_iterator`.

    The state is a flat dict, the same on all processes and with any number of processes and
    workers: `next_batch`, counted from the start of the run, and `identity`, for which alone it
    holds: `seed`, `examples`, `global_batch_size`, and `data`, the fingerprint of the source.
    """

    def __init__(
        self,
        batches: grain.MapDataset[dict[str, Any]],
        num_workers: int,
        identity: dict[str, int | str],
        bad_samples: BadSampleLog,
    ) -> None:
        super().__init__()
        self.identity, self._batches = identity, batches
        self._num_workers, self._bad_samples = num_workers, bad_samples
        self._next_batch = self._counted = 0
        self._running: grain.DatasetIterator[dict[str, Any]] | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch.

        Raises:
          RuntimeError: a worker process died.
          RunError: bad samples could not be replaced.
          Exception: whatever source, tokenizer or transform raised. The position stays: the next
            call tries the same batch again, with new workers.
        """
        running = self._start()
        try:
            batch = next(running)
        except BaseException as error:
            self._stop()
            if "terminated unexpectedly" in str(error):
                raise RuntimeError(
                    f"a data worker died before batch {self._next_batch} was made: {error} Exit "
                    "code -9 often means that memory ran out, -7 that /dev/shm is full (in Docker: "
                    "--shm-size); use fewer workers."
                ) from error
            raise
        bad = batch.pop(BAD)
        good = len(next(iter(batch.values())))
        if self._next_batch >= self._counted:  # those of a batch that comes again were
            self._bad_samples.add(bad, good=good, batch=self._next_batch)
        self._next_batch += 1
        self._counted = max(self._counted, self._next_batch)
        return batch

    def get_state(self) -> dict[str, int | str]:
        """The position, as a JSON-able dict; changes with the batches handed out, not made."""
        return {"next_batch": self._next_batch, **self.identity}

    def set_state(self, state: Mapping[str, int | str]) -> None:
        """Goes to a position; what was made ahead is thrown away.

        Raises:
          InputError: the state is of another seed, batch size or source, or not a state.
        """
        position = state.get("next_batch")
        changed = [
            f"{name} was {state.get(name)}, is {value}"
            for name, value in self.identity.items()
            if state.get(name) != value
        ]
        if changed or not isinstance(position, int) or position < 0:
            raise InputError(
                "the saved position in the data does not fit this run: "
                f"{'; '.join(changed) or f'next_batch is {position!r}'}. Continue with the "
                "settings and the data it was saved with, or start anew."
            )
        self._stop()
        self._next_batch = position

    def close(self) -> None:
        """Ends the workers; the iterator cannot be used afterwards."""
        self._closed = True
        self._stop()

    def _start(self) -> grain.DatasetIterator[dict[str, Any]]:
        if self._closed:
            raise ValueError("the data iterator is closed; make a new one.")
        if self._running is None:
            rest = self._batches[self._next_batch :]
            # One thread: more of them get in each other's way in the interpreter.
            read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BUFFERED_BATCHES)
            options = grain.multiprocessing.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=_BUFFERED_BATCHES
            )
            if self._num_workers:
                _allow_unparsed_flags()
                _release_at_exit()
            self._running = iter(
                rest.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_start_worker)
            )
        return self._running

    def _stop(self) -> None:
        running, self._running = getattr(self, "_running", None), None
        if running is not None:
            running.close()
            if self._num_workers:
                gc.collect()  # see _release_at_exit: at exit there may be no time for all


@functools.cache
def _release_at_exit() -> None:
    """Has the last batches' shared memory freed, or Python would warn that it leaked.

    JAX keeps references to arrays that it was given until garbage is collected.
    """
    atexit.register(gc.collect)


def _allow_unparsed_flags() -> None:
    """Lets Grain start workers in a program that does not parse absl flags, such as a notebook."""
    name = "grain_enable_multiprocess_worker_profiling"
    if name in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[name].present = True


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Leaves signals to the main process, which ends its workers, and ends with it."""
    del worker_index, worker_count
    # Both may be sent to the whole process group; a run must still be able to save itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
