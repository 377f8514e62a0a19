"""Checks of a config before anything is built or written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from tcl_jax.errors import InputError
from tcl_jax.inference.templates import sentences_of

POSITIVE = (
    "train.global_batch_size",
    "train.total_steps",
    "train.accumulation_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_latest",
    "eval.every",
    "eval.batch_size",
    "optim.base_lr",
    "optim.clip_norm",
    "loss.temperature",
)
NOT_NEGATIVE = (
    "train.keep_best",
    "train.backbone_from_step",
    "optim.warmup_steps",
    "optim.min_lr",
    "optim.weight_decay",
    "data.num_workers",
    "loss.area_group",
    "model.feature_layer",
)
SHARES = (
    "loss.area_prior", "eval.background", "eval.kp_weight", "data.flip", "data.max_bad_share",
)  # fmt: skip
OTHERS = (
    "data.caption_cache", "data.features", "eval.best_metric", "eval.names", "eval.shards",
    "eval.tasks", "eval.templates", "objective",
)  # fmt: skip
"""Fields with rules of their own."""
ENDS = frozenset({"eval.every", "eval.shards", "eval.tasks"})
"""Fields that tell which evaluation is a run's last."""

PAIRS = "pairs"
"""The task of held-out pairs."""


def tasks_of(config: ConfigDict) -> tuple[str, ...]:
    """The entries of `eval.tasks`, and `PAIRS` where `eval.shards` has held-out pairs."""
    tasks = tuple(config.eval.tasks)
    return (*tasks, PAIRS) if config.eval.shards and PAIRS not in tasks else tasks


def check_config(config: ConfigDict) -> None:
    """Refuses values that no run can have.

    Raises:
        InputError: listing every field with an impossible value, or those that are missing.
    """
    flat = flatten(config.to_dict())
    if lacking := [n for n in (*POSITIVE, *NOT_NEGATIVE, *SHARES, *OTHERS) if n not in flat]:
        raise InputError(
            f"the config lacks {', '.join(lacking)}; begin with get_config() of configs/tcl.py, "
            "which has all fields, and change what differs"
        )
    rules: tuple[tuple[str, tuple[str, ...], Callable[[float], bool]], ...] = (
        ("must be positive", POSITIVE, lambda x: x > 0),
        ("must not be negative", NOT_NEGATIVE, lambda x: x >= 0),
        ("must be between 0 and 1", SHARES, lambda x: 0 <= x <= 1),
    )
    wrong = [
        f"{name}={flat[name]!r} {rule}"
        for rule, names, holds in rules
        for name in names
        if not holds(flat[name])
    ]
    try:
        sentences_of(config.eval.templates)
    except InputError as error:
        wrong.append(f"eval.{error}")
    every, total = config.eval.every, config.train.total_steps
    if not wrong and tasks_of(config) and every > total:
        wrong.append(
            f"eval.every={every} is more than train.total_steps={total}, and a run ends with an "
            f"evaluation; choose at most {total}, or eval.tasks=() and eval.shards=() for a run "
            "without"
        )
    if wrong:
        raise InputError(f"the config has impossible values: {'; '.join(wrong)}")


def check_area_group(config: ConfigDict) -> None:
    """Refuses a batch of which the area loss cannot make equal groups.

    Raises:
        InputError: `loss.area_group` does not divide it.
    """
    group, batch = config.loss.area_group, config.train.global_batch_size
    if group and batch % group:
        raise InputError(
            f"train.global_batch_size={batch} is no multiple of loss.area_group={group}, the "
            "images whose mean area is compared with the prior; choose a multiple, or "
            "--config.loss.area_group=0 for the mean of the whole batch"
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to one level with dotted names; an empty dict stays as a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def number_of_updates(settings: dict[str, Any]) -> int:
    """Updates of a run: up to its last evaluation, counting from 0, and that step itself.

    A run without a task goes to the end of its schedule.

    Args:
        settings: the config as a nested dict, or what a run has recorded.
    """
    return _updates(flatten(settings))


def _updates(flat: dict[str, Any]) -> int:
    total, every = flat["train.total_steps"], flat["eval.every"]
    judged = flat["eval.tasks"] or flat.get("eval.shards")  # which earlier versions have not
    return (total // every * every if judged else total) + 1


def check_same_config(config: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Refuses to continue a run with another config, but for a `train.total_steps` that has grown.

    How it is judged, `eval`, may differ, unless that would end the run earlier or rank by another
    score the checkpoints that it has; so may what is recorded beside the fields, see
    `build.Experiment.record`.

    Returns:
        The fields of `eval` that differ.

    Raises:
        InputError: listing the fields that differ, with both values.
    """
    recorded = ("trained", "frozen", "begun_from")
    ours, theirs = (
        flatten({name: x for name, x in one.items() if name not in recorded})
        for one in (config, stored)
    )
    differing = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if _plain(ours.get(name)) != _plain(theirs.get(name))
        # A field that an earlier or later version does not have, at a value that changes nothing.
        and (name in ours.keys() & theirs.keys() or ours.get(name) or theirs.get(name))
        and not (name == "train.total_steps" and ours.get(name, 0) > theirs.get(name, 0))
    ]
    judged = [name for name in differing if name.startswith("eval.")]
    free = {*judged} - ({"eval.best_metric"} if theirs.get("eval.best_metric") else set())
    if free & ENDS and _updates(ours) < _updates(theirs):
        free -= ENDS
    lines = [
        f"  {name}: {theirs.get(name, '(absent)')!r} there, {ours.get(name, '(absent)')!r} now"
        for name in differing
        if name not in free
    ]
    if lines:
        raise InputError(
            "it holds a run with another config, which differs in:\n"
            + "\n".join(lines)
            + "\nStart in a new workdir, or give the same config to continue that run (with more "
            "train.total_steps, if you like)."
        )
    return judged


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
