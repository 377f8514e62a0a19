"""What a run reports: averages over a window, metrics.jsonl, TensorBoard, a progress line."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import tensorboardX
from absl import logging
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from tcl_jax.files import whole_file


class TrainMetrics:
    """Averages of device scalars from one log to the next, without making the host wait.

    Of the learning rate, `lr`, the last value counts.
    """

    def __init__(self) -> None:
        self._window: list[dict[str, jax.Array]] = []

    def add(self, values: Mapping[str, jax.Array]) -> None:
        """Takes the scalars of one step; a name may be missing from some of the steps."""
        self._window.append(dict(values))

    def compute(self) -> dict[str, float]:
        """Values of the window, by name; a new one begins."""
        window, self._window = jax.device_get(self._window), []
        values: dict[str, list[float]] = {}
        for step in window:
            for name, value in step.items():
                values.setdefault(name, []).append(float(value))
        return {
            name: found[-1] if name == "lr" else float(np.mean(found))
            for name, found in sorted(values.items())
        }


class AreaWatch:
    """Tells, each time that it happens, that masks leave the area which the loss expects of them.

    A factor of `FAR` from the prior, of the masks' area or of what they leave, is more than data
    sets differ by: sooner or later masks are all of an image, or nothing. It is told again once
    they were within a factor of `NEAR`, lest noise at the border tell it.

    Args:
        prior: `loss.area_prior`.
        warmup_steps: before which nothing is told.
    """

    FAR, NEAR = 2.0, 1.5

    def __init__(self, prior: float, warmup_steps: int) -> None:
        self._prior, self._warmup_steps, self._far = prior, warmup_steps, False

    def check(self, step: int, area: float) -> None:
        """Takes the mean share of an image that its caption's mask covers since the last log."""
        before, prior = self._far, self._prior
        factor = self.NEAR if before else self.FAR
        high = min(prior * factor, 1 - (1 - prior) / factor)
        self._far = step > self._warmup_steps and not prior / factor <= area <= high
        if not self._far or before:
            return
        logging.warning(
            "train/mask_area: masks of captions cover %.1f %% of an image on average, and "
            "loss.area_prior expects %.1f %%. That may pass with more steps (train.total_steps); "
            "else try a higher loss.area, which holds the areas of right and wrong captions "
            "against the other terms, a lower optim.base_lr, or as loss.area_prior the share of an "
            "image that your captions do name",
            100 * area, 100 * self._prior,
        )  # fmt: skip


class MetricWriter:
    """Records to the log, to `workdir/metrics.jsonl` and to TensorBoard; silent but on process 0.

    metrics.jsonl has one object per line, `{"step": int, "time": unix seconds, name: number}`, in
    ascending steps. What is not finite is null there, as JSON knows no NaN. Several records of a
    step (training, evaluation) are several lines.

    Args:
      workdir: directory of the run, made if absent.
      start_step: step the run goes on from. Lines of later steps, which are going to come again,
        and a torn last line are dropped; 0 is a new run and starts both files over.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, start_step: int = 0) -> None:
        self._file: TextIO | None = None
        self._board: tensorboardX.SummaryWriter | None = None
        if jax.process_index() != 0:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, start_step)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        # TensorBoard hides older events from this step on.
        self._board = tensorboardX.SummaryWriter(
            str(path.parent / "tensorboard"), purge_step=start_step + 1 if start_step else 0
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a record.

        Args:
          step: updates made so far; not below that of the record before.
          values: host numbers by name.
        """
        if self._file is None or self._board is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        record = {"step": int(step), "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        message = " ".join(f"{name}={number:.5g}" for name, number in numbers.items())
        logging.info("step %d: %s", step, message)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3] in RGB, by name in TensorBoard as PNG."""
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(name, picture, step, dataformats="HWC")

    def __enter__(self) -> MetricWriter:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Flushes and closes; nothing is written afterwards."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines of later steps and torn ones; the old file or the new, never a mixture."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if step else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            logging.warning("%s: dropped a line that is not a record: %.80s", path, line)
    with whole_file(path) as part:
        part.write_text("".join(kept), encoding="utf-8")


class _Bar(tqdm):
    """A bar whose rate is given: tqdm's own knows neither pauses nor which steps compile."""

    seconds: float | None = None

    @property
    def format_dict(self) -> Any:
        """What is shown; a rate of 0 as "?"."""
        return {**super().format_dict, "rate": 1 / self.seconds if self.seconds else 0.0}


class Progress:
    """A bar on the terminal (of process 0 alone), else a line in the log; and the time of a step.

    To be entered; until its end, lines of the log are written above the bar. Steps run ahead of the
    host, by `AHEAD` at most; those count that are finished on this process's devices. The time of a
    step leaves out the first one after this start or after `compiling`, and what happens under
    `paused`.

    Args:
      total_steps: steps of the whole run.
      start_step: steps made before this start.
    """

    AHEAD = 2
    """So many queued steps keep a device busy, and few hold batches in memory or delay a stop."""
    NAP = 0.005  # seconds
    SILENCE = 30.0
    """Seconds after which the log has another line where there is no bar, of slow steps."""

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        self._silent = jax.process_index() != 0
        self._bar = _Bar(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=True if self._silent else None,  # None: where stderr is no terminal
        )
        self._log: TextIO | None = None
        self._running: collections.deque[Any] = collections.deque()
        self._finished, self._total = start_step, total_steps
        self._mark: tuple[int, float] | None = None
        self._seconds: float | None = None
        self._doing: str | None = None
        self._preparing = True
        self._told = time.monotonic()

    def update(self, value: Any) -> None:
        """Notes that a step is begun, and waits while more than `AHEAD` are under way.

        Args:
          value: a result of the step, a jax.Array, which is ready at its end.
        """
        self._running.append(value)
        self._preparing = False
        self._wait(self.AHEAD)
        self._preparing = True  # the next one, which an interruption does not prevent any more

    def compiling(self) -> None:
        """Notes that the next step compiles, and that the time of a step may change with it."""
        self._mark = self._seconds = self._bar.seconds = None

    def seconds_per_step(self) -> float | None:
        """Mean over the steps since the last call, once all are finished; None before the second.

        Called at one place of the loop, it makes the host wait for the devices; signals are heard.
        """
        self._wait(0)
        if self._mark is None or self._mark[0] == self._finished:
            return None
        (step, since), now = self._mark, time.monotonic()
        self._mark = self._finished, now
        return (now - since) / (self._finished - step)

    def show(self, loss: float, seconds: float | None) -> None:
        """Shows the loss, a host number, and what is left at so many seconds a step."""
        self._bar.set_postfix(loss=f"{loss:.4g}")
        if seconds is not None:
            self._tell(seconds, f", loss {loss:.4g}")

    def _tell(self, seconds: float, loss: str = "") -> None:
        self._told = time.monotonic()
        if self._bar.disable and not self._silent:
            left = tqdm.format_interval(seconds * (self._total - self._finished))
            logging.info(
                "step %d of %d%s, %.3g s a step, %s left",
                self._finished, self._total, loss, seconds, left,
            )  # fmt: skip

    def describe_stop(self, step: int | None = None) -> str:
        """What comes before an interrupted run saves, and how long it takes, in words.

        Args:
          step: the last one that is made then; None: those under way.
        """
        # Read once: this may run in another thread than the steps.
        doing, seconds = self._doing, self._seconds
        if step is None and doing is not None:
            return f"going to the end of {doing}"
        under_way = len(self._running) + self._preparing
        left = max(under_way if step is None else step - self._finished, 1)
        what = f"finishing {left} step{'s' * (left > 1)} under way"
        what = what if step is None else f"going on to step {step}, where all processes stop"
        if seconds is None:
            return f"{what} (a step may be compiling: its time is not known yet)"
        return f"{what} (about {left * seconds:.2g} s at {seconds:.2g} s a step)"

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Leaves the time of its body out, which begins when all steps are finished.

        Args:
          doing: what is done in it, in words.
        """
        self._wait(0)
        start, self._doing = time.monotonic(), doing
        try:
            yield
        finally:
            length, self._doing = time.monotonic() - start, None
            if self._mark is not None:
                self._mark = self._mark[0], self._mark[1] + length
            if not self._bar.disable:
                self._bar.start_t += length

    def _wait(self, most: int) -> None:
        """Returns when no more steps than that are under way.

        In naps: while JAX waits, Python hears no signal.
        """
        while True:
            before = len(self._running)
            while self._running and self._running[0].is_ready():
                self._running.popleft()
            if ended := before - len(self._running):
                self._note_finished(ended)
            if len(self._running) <= most:
                return
            time.sleep(self.NAP)

    def _note_finished(self, count: int) -> None:
        self._finished, now = self._finished + count, time.monotonic()
        if self._mark is None:
            self._mark = self._finished, now
        else:
            step, since = self._mark
            self._seconds = self._bar.seconds = (now - since) / (self._finished - step)
            if now - self._told > self.SILENCE:
                self._tell(self._seconds)
        self._bar.update(count)

    def __enter__(self) -> Progress:
        """Has the log written above the bar."""
        if not self._bar.disable:
            handler = logging.get_absl_handler().python_handler
            self._log = handler.setStream(DummyTqdmFile(handler.stream))
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the bar."""
        if self._log is not None:
            logging.get_absl_handler().python_handler.setStream(self._log)
        self._bar.close()
