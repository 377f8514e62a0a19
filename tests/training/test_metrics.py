"""Windows of metrics, their files, the progress line, and peak rates."""

from __future__ import annotations

import io
import json
import logging as stdlib_logging
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from PIL import Image
from tensorboardX.proto import event_pb2

from tcl_jax.training.metrics import AreaWatch, MetricWriter, Progress, TrainMetrics


def records(workdir: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(workdir: Path) -> list[event_pb2.Event]:
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):  # length, its CRC, the event, its CRC
            size = int.from_bytes(content[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(content[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_windows_have_means_and_last_values() -> None:
    metrics = TrainMetrics()
    steps = [{"total": jnp.float32(i), "lr": jnp.float32(i)} for i in range(4)]
    joining = jnp.float32(7)
    with jax.transfer_guard("disallow"):
        for values in steps:
            metrics.add(values)
        metrics.add({"joined": joining})
        assert metrics.compute() == {"joined": 7.0, "lr": 3.0, "total": 1.5}
    assert metrics.compute() == {}
    metrics.add({"total": jnp.float32("nan")})
    metrics.add(steps[1])
    assert np.isnan(metrics.compute()["total"])


def test_an_area_far_from_its_prior_is_told_each_time_it_gets_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def told(prior: float, *areas: float) -> list[int]:
        watch, steps = AreaWatch(prior, warmup_steps=10), []
        for step, area in enumerate(areas, 9):
            caplog.clear()
            watch.check(step, area)
            expected = f"loss.area_prior expects {prior:.1%}".replace("%", " %")
            steps += [step] if expected in caplog.text else []
        return steps

    border = (0.19, 0.21, 0.19)
    assert told(0.4, 0.01, 0.01, 0.01, *border, 0.3, 0.71, 0.68, 0.71, 0.5, *border) == [11, 16, 20]
    assert told(0.6, 0.5, 0.5, 0.79, 0.81, 0.9) == [12]


def test_records_go_to_lines_log_and_tensorboard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.use_absl_handler()
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with caplog.at_level("INFO"), MetricWriter(tmp_path / "run") as writer:
        writer.scalars(1, {"total": 0.5, "lr": np.float32(0.25)})
        writer.scalars(2, {"a": float("nan"), "b": -np.inf, "c": 1e300})
        writer.images(3, {"masks/0": picture})
        assert len(records(tmp_path / "run")) == 2  # on disk before the end
    first, second = records(tmp_path / "run")
    assert first.pop("time") > 1e9
    assert first == {"step": 1, "total": 0.5, "lr": 0.25}
    assert (second["a"], second["b"], second["c"]) == (None, None, 1e300)
    assert "step 1: total=0.5 lr=0.25" in caplog.text
    values = {v.tag: (e.step, v) for e in events(tmp_path / "run") for v in e.summary.value}
    assert (values["total"][0], values["total"][1].simple_value) == (1, 0.5)
    image = Image.open(io.BytesIO(values["masks/0"][1].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)


def test_resuming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 10}\n{"st\n[3]\n\xff\n{"step": 20}\n{"step": 30}\n{"step": 20, "a"'
    )
    with MetricWriter(tmp_path, start_step=20) as writer:
        assert [r["step"] for r in records(tmp_path)] == [10, 20]
        writer.scalars(30, {})
    assert [r["step"] for r in records(tmp_path)] == [10, 20, 30]
    assert [p.name for p in tmp_path.glob("*.part")] == []
    # TensorBoard hides what comes again.
    (start,) = [e for e in events(tmp_path) if e.session_log.status]
    assert start.step == 21
    with MetricWriter(tmp_path):
        assert records(tmp_path) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes where something waits for it."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


class Device:
    """Computes queued steps one after the other, each in `seconds`."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.free = clock, seconds, 0.0

    def step(self) -> types.SimpleNamespace:
        self.free = end = max(self.free, self.clock.now) + self.seconds
        return types.SimpleNamespace(is_ready=lambda: self.clock.now >= end)


def run(clock: Clock) -> None:
    """Steps 41 to 141 of 1,000, and a pause that begins while some are under way."""
    device = Device(clock, 0.05)
    with Progress(1000, 40) as progress:
        clock.now += 60.0  # compiles
        assert "not known yet" in progress.describe_stop()
        several = progress.describe_stop(50)
        assert several.startswith("going on to step 50, where all") and "not known yet" in several
        for _ in range(101):
            progress.update(device.step())
        with progress.paused("the evaluation"):
            clock.now += 33.0
            assert progress.describe_stop() == "going to the end of the evaluation"
            assert progress.describe_stop(150).startswith("going on to step 150, where all")
        seconds = progress.seconds_per_step()
        assert seconds == pytest.approx(0.05, rel=0.01)
        progress.show(2.25, seconds)
        assert progress.seconds_per_step() is None  # since the last call


def test_finished_steps_count_and_few_are_under_way(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    logging.use_absl_handler()
    device, started = Device(clock, 8.0), clock.now
    with caplog.at_level("INFO"), Progress(1000, 40) as progress:
        for begun in range(1, 9):
            progress.update(device.step())
            finished = int((clock.now - started + 1e-6) // 8)
            assert begun - finished <= Progress.AHEAD
        # A line after 30 s without one.
        assert caplog.text.count(" a step") == 1
        assert "step 44 of 1000, 8 s a step, 2:07:2" in caplog.text
        left = "finishing 3 steps under way (about 24 s at 8 s a step)"  # one is prepared
        assert progress.describe_stop() == left
        assert "going on to step 50, where all processes stop (about 32 s" in (
            progress.describe_stop(50)
        )
        # Another program, which is slower, is compiled.
        progress.compiling()
        clock.now += 60.0
        device.seconds = 20.0
        for _ in range(4):
            progress.update(device.step())
        assert progress.seconds_per_step() == pytest.approx(20.0, rel=0.01)


def test_progress_is_a_bar_on_a_terminal_and_else_lines_of_the_log(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.use_absl_handler()
    with caplog.at_level("INFO"):
        run(clock)
        assert "step 141 of 1000, loss 2.25, 0.05 s a step, 00:42 left" in caplog.text
        caplog.clear()
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        run(clock)
        assert caplog.text == ""
    shown = terminal.getvalue()
    assert "141/1000 [01:05<" in shown and "loss=2.25" in shown and "\r" in shown
    assert "40/1000 [00:00<?, ?step/s]" in shown and "00:42, 20.00step/s" in shown


def test_a_line_of_the_log_is_written_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.get_absl_handler().python_handler
    monkeypatch.setattr(handler, "stream", terminal)
    with pytest.raises(KeyError), Progress(1000, 40):
        handler.emit(stdlib_logging.makeLogRecord({"msg": "saved", "levelno": 20}))
        raise KeyError
    before, after = terminal.getvalue().split("saved\n")
    assert "40/1000" in before and "40/1000" not in before.rpartition("\r")[2]
    assert "40/1000" in after and after.endswith("\n")
    assert handler.stream is terminal


def test_other_processes_are_silent(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda *_: 1)
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with caplog.at_level("INFO"), MetricWriter(tmp_path / "run") as writer:
            run(clock)
            writer.scalars(1, {"a": 1.0})
            writer.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
        assert stream.getvalue() == "" == caplog.text
    assert not (tmp_path / "run").exists()
