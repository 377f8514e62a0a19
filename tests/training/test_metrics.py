"""Windows of metrics, their files, the progress line, and peak rates."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from tensorboardX.proto import event_pb2

from tcl_jax.training.metrics import MetricWriter, Progress, TrainMetrics


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


class TestTrainMetrics:
    def test_mean_of_the_window_and_last_value(self):
        metrics = TrainMetrics(last=("lr",))
        for i in range(4):
            metrics.add(
                {"total": jnp.float32(i), "loss/area": jnp.float32(-i), "lr": jnp.float32(i)}
            )
        assert metrics.compute() == {"loss/area": -1.5, "lr": 3.0, "total": 1.5}
        assert metrics.compute() == {}
        metrics.add({"total": jnp.float32(7)})
        assert metrics.compute() == {"total": 7.0}

    def test_a_term_that_joins_in_the_window_has_its_own_count(self):
        metrics = TrainMetrics()
        metrics.add({"a": jnp.float32(1)})
        metrics.add({"a": jnp.float32(3), "b": jnp.float32(5)})
        assert metrics.compute() == {"a": 2.0, "b": 5.0}

    def test_nothing_moves_to_or_from_the_host_between_logs(self):
        metrics = TrainMetrics()
        values = {"a": jnp.float32(1), "b": jnp.float32(2)}
        with jax.transfer_guard("disallow"):
            for _ in range(3):
                metrics.add(values)
            assert metrics.compute() == {"a": 1.0, "b": 2.0}

    def test_compiles_once_per_set_of_names(self):
        metrics = TrainMetrics()
        for _ in range(3):
            for _ in range(4):
                metrics.add({"a": jnp.float32(1)})
            metrics.compute()
        assert metrics._merge._cache_size() == 2  # into an empty window, and into one
        assert metrics._reduce._cache_size() == 1

    def test_nan_is_not_averaged_away(self):
        metrics = TrainMetrics()
        metrics.add({"a": jnp.float32("nan")})
        metrics.add({"a": jnp.float32(1)})
        assert np.isnan(metrics.compute()["a"])

    def test_an_array_is_refused(self):
        with pytest.raises(ValueError, match=r"metric a: has shape \(2,\)"):
            TrainMetrics().add({"a": jnp.ones(2)})


class TestMetricWriter:
    def test_writes_lines_log_and_tensorboard(self, tmp_path, caplog):
        logging.use_absl_handler()
        with (
            caplog.at_level("INFO"),
            MetricWriter(tmp_path / "run") as writer,
        ):
            writer.scalars(1, {"total": 0.5, "lr": np.float32(0.25)})
            writer.scalars(2, {"total": jnp.float32(1.5)})
            writer.scalars(2, {"miou": 60.0})
            assert len(records(tmp_path / "run")) == 3  # on disk before close
        got = records(tmp_path / "run")
        assert [{k: v for k, v in r.items() if k != "time"} for r in got] == [
            {"step": 1, "total": 0.5, "lr": 0.25},
            {"step": 2, "total": 1.5},
            {"step": 2, "miou": 60.0},
        ]
        assert all(r["time"] > 1e9 for r in got)
        assert "step 1: total=0.5 lr=0.25" in caplog.text
        scalars = {
            (e.step, v.tag): v.simple_value
            for e in events(tmp_path / "run")
            for v in e.summary.value
        }
        assert scalars == {(1, "total"): 0.5, (1, "lr"): 0.25, (2, "total"): 1.5, (2, "miou"): 60.0}

    def test_not_finite_is_null(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": -np.inf, "d": 1e300})
        (got,) = records(tmp_path)
        assert (got["a"], got["b"], got["c"], got["d"]) == (None, None, None, 1e300)

    def test_resuming_drops_later_and_torn_lines(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            for step in (10, 20, 30, 40):
                writer.scalars(step, {"a": float(step)})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 50, "a"')
        with MetricWriter(tmp_path, start_step=20) as writer:
            assert [r["step"] for r in records(tmp_path)] == [10, 20]
            writer.scalars(30, {"a": -1.0})
        assert [(r["step"], r["a"]) for r in records(tmp_path)] == [(10, 10), (20, 20), (30, -1)]
        assert [p.name for p in tmp_path.glob("*.part")] == []
        with MetricWriter(tmp_path):
            assert records(tmp_path) == []

    def test_a_torn_line_within_the_kept_ones_goes(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_bytes(
            b'{"step": 1}\n{"st\n[3]\n\xff\n{"step": 2}\n{"step": 2'
        )
        with MetricWriter(tmp_path, start_step=5) as writer:
            writer.scalars(6, {})
        assert [r["step"] for r in records(tmp_path)] == [1, 2, 6]

    def test_tensorboard_hides_what_comes_again(self, tmp_path):
        with MetricWriter(tmp_path, start_step=20):
            pass
        (start,) = [e for e in events(tmp_path) if e.session_log.status]
        assert start.step == 21

    def test_images(self, tmp_path):
        from PIL import Image

        picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
        with MetricWriter(tmp_path) as writer:
            writer.images(3, {"masks/0": picture})
        values = {v.tag: v for e in events(tmp_path) for v in e.summary.value}
        image = Image.open(io.BytesIO(values["masks/0"].image.encoded_image_string))
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)

    def test_bad_input(self, tmp_path):
        with MetricWriter(tmp_path) as writer:
            writer.scalars(5, {"a": 1.0})
            with pytest.raises(ValueError, match="step 4 after step 5"):
                writer.scalars(4, {"a": 1.0})
            with pytest.raises(ValueError, match="time"):
                writer.scalars(6, {"time": 1.0})
            for bad in (np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3), np.float32)):
                with pytest.raises(ValueError, match="image x: .*uint8"):
                    writer.images(6, {"x": bad})

    def test_silent_on_other_processes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jax, "process_index", lambda *_: 1)
        with MetricWriter(tmp_path / "run") as writer:
            writer.scalars(1, {"a": 1.0})
            writer.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
        assert not (tmp_path / "run").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestProgress:
    def test_rate_leaves_out_the_first_step_and_pauses(self):
        clock, stream = Clock(), io.StringIO()
        progress = Progress(1000, 64, stream=stream, clock=clock)
        clock.now += 60.0  # compiles
        progress.update(1)
        assert progress.seconds_per_step() is None
        for step in range(2, 12):
            clock.now += 0.5
            progress.update(step, loss=2.0)
        with progress.paused():
            clock.now += 33.0
        assert progress.line() == "step 11/1000  1.1%  loss 2  128 images/s  0:08:14 left"
        assert progress.seconds_per_step() == pytest.approx(0.5)
        clock.now += 1.0
        progress.update(12)
        assert progress.seconds_per_step() == pytest.approx(1.0)  # since the last call

    def test_plain_lines_come_now_and_then(self):
        clock, stream = Clock(), io.StringIO()
        progress = Progress(10_000, 1, start_step=4000, stream=stream, clock=clock)
        for step in range(4001, 4041):
            clock.now += 1.0
            progress.update(step)
        progress.close()
        lines = stream.getvalue().splitlines()
        assert [line.split()[1] for line in lines] == [
            f"{s}/10000" for s in (4001, 4011, 4021, 4031)
        ]
        assert lines[-1].endswith("1 images/s  1:39:29 left")
        assert "\r" not in stream.getvalue()

    def test_the_last_step_is_always_told_and_once(self):
        clock, stream = Clock(), io.StringIO()
        progress = Progress(3, 1, stream=stream, clock=clock)
        for step in (1, 2, 3):
            progress.update(step)
        progress.update(3, 0.5)
        assert stream.getvalue().count("step 3/3  100.0%  loss 0.5") == 1
        assert stream.getvalue().count("step 3/3") == 1

    def test_a_terminal_line_is_written_over(self):
        clock, stream = Clock(), Terminal()
        progress = Progress(10, 1, stream=stream, clock=clock)
        for step in range(1, 4):
            clock.now += 1.0
            progress.update(step)
        progress.close()
        assert stream.getvalue().count("\r") == 3 and stream.getvalue().count("\n") == 1

    def test_silent_on_other_processes(self, monkeypatch):
        monkeypatch.setattr(jax, "process_index", lambda *_: 1)
        clock, stream = Clock(), Terminal()
        progress = Progress(10, 1, stream=stream, clock=clock)
        for step in (1, 2):
            clock.now += 1.0
            progress.update(step)
        progress.close()
        assert stream.getvalue() == "" and progress.seconds_per_step() == 1.0
