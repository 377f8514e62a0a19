"""How fast a training step is, and where its time goes."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcl_jax.bench.timing import PartTimer, Program, Timing, compile_timed, time_calls
from tcl_jax.models.clip import CLIPConfig, encode_image, encode_text
from tcl_jax.models.decoder import decode
from tcl_jax.models.flops import total
from tcl_jax.models.grounder import embed_tokens
from tcl_jax.models.layers import matmul_precision
from tcl_jax.models.vit import patch_grid
from tcl_jax.ops.images import normalize
from tcl_jax.ops.pair_statistics import pair_statistics
from tcl_jax.parallel.mesh import put_batch, put_parameters, put_replicated
from tcl_jax.training.build import Task
from tcl_jax.training.metrics import mfu
from tcl_jax.training.objectives import TCLObjective
from tcl_jax.training.optim import AdamW, Schedule, apply_updates, split_groups
from tcl_jax.training.state import create_state
from tcl_jax.training.step import PhasedStep, no_failure

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StepSpeed:
    """A training step's figures.

    Attributes:
        batch_size: images of the global batch.
        dtype: that the network computes in.
        phase: 1, the head trains, or 2, the copied blocks do, too.
        seconds: of a step.
        images_per_second: in the middle round.
        flops_per_image: that the method needs by formula, see `models.flops`.
        mfu: those FLOPs over time and the devices' bfloat16 peak, in 0..1; None if the peak is
            not known.
        program: what the compiler says.
        peak_bytes: most memory of a device in use since the process began; None if not told.
    """

    batch_size: int
    dtype: str
    phase: int
    seconds: Timing
    images_per_second: float
    flops_per_image: float
    mfu: float | None
    program: Program
    peak_bytes: int | None


class StepRunner:
    """A compiled step with a state to go on from, again and again on one batch.

    Args:
        task: what is trained.
        batch: rows on the host, as `objectives.Batch`.
        phase: 0 or 1, an index of `step.PHASES`.
        adamw, schedule: of the update.
        mesh: the devices.
        accumulation_steps: parts that the batch is taken in.
        sharded: whether parameters are split over the devices, too, as by `train.fsdp`.
    """

    def __init__(
        self,
        task: Task,
        batch: Batch,
        phase: int,
        *,
        adamw: AdamW,
        schedule: Schedule,
        mesh: Mesh,
        accumulation_steps: int = 1,
        sharded: bool = False,
    ) -> None:
        step = PhasedStep(
            task.objective,
            adamw,
            schedule,
            backbone_from_step=0,
            accumulation_steps=accumulation_steps,
        )
        state = create_state(task.params, task.objective, adamw)
        self._state = put_parameters(state, mesh, sharded=sharded)
        key = put_replicated(np.asarray(jax.random.key_data(jax.random.key(0))), mesh)
        frozen = put_parameters(task.frozen, mesh, sharded=sharded)
        self._fixed = (frozen, put_batch(batch, mesh), jax.random.wrap_key_data(key))
        healthy = no_failure(task.objective, self._state, *self._fixed)
        self._failure = put_replicated(healthy, mesh)
        traced = step.trace(phase, self._state, self._failure, *self._fixed)
        self._compiled, self.program = compile_timed(traced)

    def run(self, steps: int) -> float:
        """Seconds that steps in a row take."""
        return time_calls(self._step, steps)

    def metrics(self) -> dict[str, float]:
        """Takes a step and returns its loss terms, total, gradient norm and so on."""
        return {name: float(value) for name, value in jax.device_get(self._step()).items()}

    def _step(self) -> dict[str, jax.Array]:
        self._state, self._failure, metrics = self._compiled(
            self._state, self._failure, *self._fixed
        )
        result: dict[str, jax.Array] = metrics
        return result


def made_up_batch(config: CLIPConfig, size: int, *, seed: int = 0, noise: bool = False) -> Batch:
    """Images and texts of random pixels and tokens.

    Args:
        config: of the CLIP.
        size: number of rows.
        seed: of the random numbers.
        noise: whether the masks' noise, `uniform`, is among them.
    """
    rng, side = np.random.default_rng(seed), config.resolution
    tokens = rng.integers(1, config.vocab_size - 1, (size, config.context_length), np.int32)
    ends = rng.integers(2, config.context_length, size)
    past = np.arange(config.context_length) - ends[:, None]
    tokens = np.where(past == 0, config.vocab_size - 1, np.where(past > 0, 0, tokens))
    batch = {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "tokens": tokens.astype(np.int32),
    }
    if noise:
        grid = 4 * side // config.patch_size
        batch["uniform"] = rng.uniform(1e-3, 1 - 1e-3, (size, grid, grid)).astype(np.float32)
    return batch


def step_speed(
    runner: StepRunner, task: Task, timing: Timing, batch_size: int, phase: int, mesh: Mesh,
    peak: int | None,
) -> StepSpeed:  # fmt: skip
    """Figures of a step that was timed; phases are counted from 0."""
    flops = total(task.objective.model.training_flops(batch_size, phase == 1))
    return StepSpeed(
        batch_size=batch_size,
        dtype=jnp.dtype(task.clip.dtype).name,
        phase=phase + 1,
        seconds=timing,
        images_per_second=batch_size / timing.median,
        flops_per_image=flops,
        mfu=mfu(flops * batch_size, timing.median, list(mesh.devices.flat)),
        program=runner.program,
        peak_bytes=peak,
    )


# ---------------------------------------------------------------------------------------- the parts


def time_parts(
    task: Task, batch: Batch, adamw: AdamW, *, calls: int, rounds: int, warm_up: int
) -> dict[str, float]:
    """Seconds of the parts of a step of phase 2, each a program of its own on one device.

    They do not add up to a step: one program for all fuses and overlaps what these cannot, and
    each of these reads and writes what lies between two parts.

    Args:
        task: of a `TCLObjective`.
        batch: rows on the host.
        adamw: of the update.
        calls, rounds, warm_up: see `time_rounds`.

    Returns:
        The fastest round of each part; "backward" is the gradient without the loss alone.
    """
    objective, timed = task.objective, PartTimer(calls=calls, rounds=rounds, warm_up=warm_up)
    assert isinstance(objective, TCLObjective)
    model, clip = objective.model, objective.model.clip_model

    def pairs(params: Any, pixels: jax.Array, texts: jax.Array) -> Any:
        w, b = params["sim2mask"]["w"], params["sim2mask"]["b"]
        return pair_statistics(pixels, texts, w, b)

    def loss(params: Any, frozen: Any, batch: Any) -> jax.Array:
        return objective(params, frozen, batch, jax.random.key(0)).total

    params, frozen, rows = jax.device_put((task.params, task.frozen, batch))
    images = jax.jit(normalize)(rows["image"])
    grid = patch_grid(images.shape, model.config.patch_size)
    patches = jnp.zeros((images.shape[0], *grid, model.config.vision_width), model.dtype)
    # As `step.make_step` computes.
    with matmul_precision(objective.model.dtype):
        tokens = timed(
            "image tower",
            lambda p, x: encode_image(clip, p, x).features.after(model.feature_layer),
            frozen,
            images,
        )
        texts = timed("text tower", partial(encode_text, clip), frozen, rows["tokens"])
        pixels = timed(
            "grounder, decoder in it",
            lambda p, x: embed_tokens(clip.vision, p, x, grid),
            params["grounder"],
            tokens,
        )
        timed("decoder", partial(decode, dtype=model.dtype), params["grounder"]["decoder"], patches)
        timed("masks of all pairs", pairs, params, pixels, texts)
        timed("masked image", lambda p, x: encode_image(clip, p, x).embedding, frozen, images)
        timed("loss, all of it", loss, params, frozen, rows)
        timed("backward", jax.value_and_grad(loss), params, frozen, rows)
    timed.seconds["backward"] -= timed.seconds["loss, all of it"]
    groups = split_groups(params, objective.group_of)
    state = create_state(params, objective, adamw).opt_state
    timed("optimiser", partial(apply_updates, adamw), groups, groups, state, jnp.float32(1e-4))
    return timed.seconds
