"""Topologies by name: those of this machine, those of TPUs elsewhere, and mistakes."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from tcl_jax.errors import InputError
from tcl_jax.plan import topologies
from tcl_jax.plan.topologies import prepare_environment, topology_devices


def test_local_devices_are_those_of_jax() -> None:
    assert topology_devices("local") == jax.devices()


@pytest.mark.parametrize("name", ["v5e", "", ":4x4"])
def test_what_is_no_topology_is_refused_with_examples(name: str) -> None:
    with pytest.raises(InputError, match=r"is not known; .*v5e:4x4.*'local'"):
        topology_devices(name)


def test_a_missing_compiler_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(InputError, match=r"pip install 'tcl_jax\[tpu\]'.*--topology=local"):
        topology_devices("v5e:4x4")


def test_only_plans_for_tpus_alone_leave_this_machine_s_accelerator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(topologies.os, "environ", environment)
    prepare_environment(["local"])
    assert environment == {}
    prepare_environment(["v5e:4x4", "local"])
    assert environment["TPU_SKIP_MDS_QUERY"] == "1" and "JAX_PLATFORMS" not in environment
    prepare_environment(["v5e:4x4"])
    assert environment["JAX_PLATFORMS"] == "cpu"
