"""Configs and work directories that no run can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.tcl import get_config
from tcl_jax.errors import InputError
from tcl_jax.training.build import build_experiment
from tcl_jax.training.check import (
    check_area_group,
    check_config,
    check_same_config,
    number_of_updates,
)
from tcl_jax.training.workdir import open_workdir


def test_every_impossible_value_is_listed() -> None:
    config = get_config()
    check_config(config)
    config.train.total_steps = 0
    config.optim.warmup_steps = -1
    config.loss.area_prior = 1.5
    with pytest.raises(InputError) as error:
        check_config(config)
    for part in ("train.total_steps=0", "optim.warmup_steps=-1", "loss.area_prior=1.5"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval.background": 1.5}, "eval.background=1.5"),
        ({"data.max_bad_share": -0.1}, "data.max_bad_share=-0.1"),
        ({"eval.templates": "nope"}, "eval.templates='nope'.* identity"),
        ({"eval.templates": "a {}; an item"}, "eval.template 'an item': has no {}"),
        ({"eval.templates": "a {}; {}, drawn"}, None),
        ({"train.total_steps": 200}, "eval.every=2500 .*train.total_steps=200"),
        ({"train.total_steps": 200, "eval.every": 200}, None),
        ({"train.total_steps": 200, "eval.tasks": ()}, None),
        ({"train.total_steps": 200, "eval.tasks": (), "eval.shards": ("x",)}, "eval.every=2500"),
        ({"eval.tasks": (), "eval.best_metric": "voc20/miou"}, None),
    ],
)
def test_configs_that_a_run_can_have_and_cannot(fields: dict, message: str | None) -> None:
    config = get_config()
    config.update_from_flattened_dict(fields)
    if message is None:
        check_config(config)
    else:
        with pytest.raises(InputError, match=message):
            check_config(config)


def test_a_config_of_ones_own_lacks_fields() -> None:
    with pytest.raises(InputError, match="lacks train.global_batch_size, .*tcl.py"):
        check_config(ConfigDict({"train": {"total_steps": 3}}))


def test_groups_of_the_area_loss_divide_the_batch() -> None:
    config = get_config()
    check_area_group(config)
    config.train.global_batch_size = 96
    with pytest.raises(InputError, match=r"global_batch_size=96 .* loss\.area_group=64"):
        check_area_group(config)
    config.loss.area_group = 0
    check_area_group(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "mae", "objective='mae' is unknown"),
        ("model.variant", "custom", "model.sizes do not describe a CLIP"),
    ],
)
def test_models_that_cannot_be_built(field: str, value: str, message: str) -> None:
    config = get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message):
        build_experiment(config)


def test_differences_between_configs_are_listed() -> None:
    stored = {"a": {"b": 1, "c": [1, 2]}, "gone": 1}
    check_same_config({"a": {"b": 1, "c": (1, 2)}, "gone": 1}, stored)
    with pytest.raises(InputError) as error:
        check_same_config({"a": {"b": 2, "c": (1, 2)}, "new": 3}, stored)
    assert "a.b: 1 there, 2 now" in str(error.value)
    assert "gone: 1 there, '(absent)' now" in str(error.value)
    assert "new: '(absent)' there, 3 now" in str(error.value)
    assert "a.c" not in str(error.value)
    check_same_config({"train": {"total_steps": 9}}, {"train": {"total_steps": 8}})
    with pytest.raises(InputError, match="total_steps: 8 there, 7 now"):
        check_same_config({"train": {"total_steps": 7}}, {"train": {"total_steps": 8}})
    # How it is judged may differ, but for an earlier end, and what ranks its checkpoints.
    stored = {"train": {"total_steps": 10}, "eval": {"every": 10, "tasks": [], "best_metric": ""}}
    judging = {"every": 5, "tasks": [], "best_metric": "pairs/x", "shards": ["a"], "split": ""}
    again = {"train": {"total_steps": 10}, "eval": judging}
    assert check_same_config(again, stored) == ["eval.best_metric", "eval.every", "eval.shards"]
    with pytest.raises(InputError, match=r"eval.best_metric: 'pairs/x' there, '' now(?!.*every)"):
        check_same_config(stored, again)
    judging |= {"every": 4, "best_metric": ""}
    with pytest.raises(InputError, match=r"(?s)eval.every: 10 there, 4 now.*eval.shards"):
        check_same_config(again, stored)
    # Fields of another version at values that change nothing.
    check_same_config({"a": 1, "prefix": "", "group": 0, "sizes": {}}, {"a": 1, "tile": 0})


def test_workdirs(tmp_path: Path) -> None:
    assert open_workdir(str(tmp_path / "a/b"), {}) == tmp_path / "a/b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match="is a file"):
            open_workdir(str(tmp_path / name), {})
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1}))
    assert open_workdir(str(tmp_path), {"seed": 1}) == tmp_path
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        open_workdir(str(tmp_path), {})


def test_the_last_evaluation_is_reached() -> None:
    config = get_config()
    assert number_of_updates(config.to_dict()) == 50_001
    config.train.total_steps, config.eval.every = 10, 4
    assert number_of_updates(config.to_dict()) == 9
    config.eval.tasks = ()
    assert number_of_updates(config.to_dict()) == 11
