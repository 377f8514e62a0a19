"""What a run tells: averages over a window, metrics.jsonl, TensorBoard, a progress line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import tensorboardX
from absl import logging
from clu import metrics as clu_metrics

from tcl_jax.files import whole_file


class TrainMetrics:
    """Averages of device scalars from one log to the next, without making the host wait.

    Args:
      last: names of which the last value counts rather than the mean, such as a learning rate.
    """

    def __init__(self, last: Iterable[str] = ("lr",)) -> None:
        self._last = frozenset(last)
        self._window: dict[str, clu_metrics.Metric] = {}
        self._merge = jax.jit(self._merged)
        self._reduce = jax.jit(lambda window: {k: m.compute() for k, m in window.items()})

    def add(self, values: Mapping[str, jax.Array]) -> None:
        """Takes the scalars of one step; a name may be missing from some of the steps.

        Raises:
          ValueError: a value is not a scalar; names it and its shape.
        """
        for name, value in values.items():
            if value.shape:
                raise ValueError(f"metric {name}: has shape {value.shape}, must be a scalar.")
        self._window = self._merge(self._window, dict(values))

    def compute(self) -> dict[str, float]:
        """Values of the window, which starts anew: one compiled call and one `device_get`."""
        if not self._window:
            return {}
        window, self._window = self._window, {}
        return {k: float(v) for k, v in sorted(jax.device_get(self._reduce(window)).items())}

    def _merged(
        self, window: dict[str, clu_metrics.Metric], values: dict[str, jax.Array]
    ) -> dict[str, clu_metrics.Metric]:
        merged = dict(window)
        for name, value in values.items():
            kind = clu_metrics.LastValue if name in self._last else clu_metrics.Average
            new = kind.from_model_output(value)
            merged[name] = window[name].merge(new) if name in window else new
        return merged


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
        self._last_step = start_step
        self._file: TextIO | None = None
        self._board: tensorboardX.SummaryWriter | None = None
        if jax.process_index() != 0:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _keep_until(path, start_step)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        # Events before are hidden by TensorBoard from this step on.
        self._board = tensorboardX.SummaryWriter(
            str(path.parent / "tensorboard"), purge_step=start_step + 1 if start_step else 0
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a record.

        Args:
          step: updates made so far; not below that of the record before.
          values: host numbers by name.

        Raises:
          ValueError: the step goes back, or a value is named `step` or `time`.
        """
        if self._file is None or self._board is None:
            return
        self._check_step(step)
        if reserved := {"step", "time"} & values.keys():
            raise ValueError(f"metrics named {sorted(reserved)}: the names are taken; rename them.")
        numbers = {name: float(value) for name, value in values.items()}
        safe = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        record = {"step": int(step), "time": round(time.time(), 3), **safe}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        for name, number in numbers.items():
            self._board.add_scalar(name, number, step)
        told = " ".join(f"{name}={number:.5g}" for name, number in numbers.items())
        logging.info("step %d: %s", step, told)

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Shows pictures, uint8 [H, W, 3] in RGB, by name in TensorBoard as PNG.

        Raises:
          ValueError: a picture has another shape or dtype; names it.
        """
        if self._board is None:
            return
        for name, picture in pictures.items():
            if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
                raise ValueError(
                    f"image {name}: is {picture.dtype} {picture.shape}, must be uint8 [H, W, 3]."
                )
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes; nothing is written afterwards."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()
            self._file = self._board = None

    def __enter__(self) -> MetricWriter:
        """Returns itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Closes."""
        self.close()

    def _check_step(self, step: int) -> None:
        if step < self._last_step:
            raise ValueError(f"step {step} after step {self._last_step}: records must not go back.")
        self._last_step = step


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


class Progress:
    """One line to stderr: step, share, loss, images/s, time left. Silent but on process 0.

    On a terminal the line is written over in place; elsewhere a line comes now and then. The rate
    leaves out the first step, which compiles, and what happens under `paused`. It is measured on
    every process.

    Args:
      total_steps: steps of the whole run.
      images_per_step: size of the global batch.
      start_step: steps made before this start.
      stream: where to write; stderr by default.
      clock: seconds, ever growing.
    """

    def __init__(
        self,
        total_steps: int,
        images_per_step: int,
        *,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._images = total_steps, images_per_step
        self._stream = sys.stderr if stream is None else stream
        self._inplace = self._stream.isatty()
        self._interval = 0.2 if self._inplace else 10.0  # seconds between lines
        self._clock, self._silent = clock, jax.process_index() != 0
        self._step, self._loss = start_step, math.nan
        self._first: tuple[int, float] | None = None
        self._mark: tuple[int, float] | None = None
        self._idle, self._shown = 0.0, -math.inf

    def update(self, step: int, loss: float | None = None) -> None:
        """Notes that `step` steps are made; `loss` is a host number, the one before if None.

        Shown now and then, and when the loss of the last step is known.
        """
        self._step = step
        self._loss = self._loss if loss is None else loss
        if self._first is None:
            self._first = self._mark = step, self._active()
        now = self._clock()
        ended = step >= self._total and loss is not None
        if not self._silent and (now - self._shown >= self._interval or ended):
            self._shown = now
            text = self.line()
            self._stream.write(f"\r\x1b[K{text}" if self._inplace else f"{text}\n")
            self._stream.flush()

    def line(self) -> str:
        """The line as it would be written now."""
        share = 100.0 * self._step / max(self._total, 1)
        parts = [f"step {self._step}/{self._total}", f"{share:.1f}%"]
        if not math.isnan(self._loss):
            parts.append(f"loss {self._loss:.4g}")
        seconds = _per_step(self._first, self._step, self._active())
        if seconds:
            left = round(seconds * max(self._total - self._step, 0))
            parts.append(f"{self._images / seconds:.4g} images/s")
            parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        return "  ".join(parts)

    def seconds_per_step(self) -> float | None:
        """Mean over the steps since the last call; None before the second step.

        Steps run ahead of the host: call it after the values of the last one were fetched.
        """
        now = self._active()
        seconds = _per_step(self._mark, self._step, now)
        if seconds:
            self._mark = self._step, now
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of its body (evaluation, saving) out of the rate."""
        start = self._clock()
        try:
            yield
        finally:
            self._idle += self._clock() - start

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._inplace and not self._silent and self._shown > -math.inf:
            self._stream.write("\n")
            self._stream.flush()

    def _active(self) -> float:
        return self._clock() - self._idle


def _per_step(since: tuple[int, float] | None, step: int, now: float) -> float | None:
    if since is None or step <= since[0] or now <= since[1]:
        return None
    return (now - since[1]) / (step - since[0])
