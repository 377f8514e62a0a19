"""What `bench` measures: flags to weights, and figures to a file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tcl_jax.commands import add_weights_flags, command_parser, load_model_from
from tcl_jax.config_flags import add_config_flag, read_config
from tcl_jax.errors import InputError
from tcl_jax.files import write_json
from tcl_jax.parallel.cores import available_cores

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from tcl_jax.inference.model import Model
    from tcl_jax.training.build import Task

Found = TypeVar("Found")

PRECISIONS = ("float32", "bfloat16", "float16")
BUSY = 0.5
"""Load per core, before the start, from which times are doubtful."""
GATE = 0.5
"""Of the decoder's layers where weights are random: at 0, as they start, they would not count."""


# ------------------------------------------------------------------------------------------- flags


def numbers(text: str) -> tuple[int, ...]:
    """A flag's positive whole numbers, separated by commas."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return values


def count(text: str) -> int:
    """A flag's positive whole number."""
    (value,) = numbers(text)
    return value


def choices(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Reads a flag's words, separated by commas, of which each must be known."""

    def read(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if unknown := [word for word in words if word not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return words

    return read


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """A flag's sizes as rows and columns: WIDTHxHEIGHT, separated by commas."""
    found = tuple(tuple(numbers(part.replace("x", ",")))[::-1] for part in text.split(","))
    if any(len(size) != 2 for size in found):
        raise argparse.ArgumentTypeError(f"{text}: give WIDTHxHEIGHT, such as 500x375")
    return tuple((rows, columns) for rows, columns in found)


def bench_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The flags that `train`, `masks` and `evaluate` share."""
    p = command_parser(f"bench {name}", doc)
    add_config_flag(p)
    p.add_argument(
        "--variant",
        metavar="NAME",
        help="without --config and weights: a published CLIP's sizes (default ViT-B/16)",
    )
    p.add_argument(
        "--dtype",
        choices=PRECISIONS[:2],
        help="to compute in; default: the config's, else bfloat16, on a CPU float32",
    )
    p.add_argument(
        "--pretrained",
        action="store_true",
        help="read the config's model.weights; else weights are random, which takes as long",
    )
    add_weights_flags(p)
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    return p


def add_round_flags(p: argparse.ArgumentParser) -> None:
    """--rounds and --warmup, of what is called again and again."""
    p.add_argument("--rounds", type=count, default=5, help="of which the median counts (default 5)")
    p.add_argument("--warmup", type=count, default=3, help="calls that do not count (default 3)")


# ----------------------------------------------------------------------------------------- subjects


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: weights, what trains them, and what is told of them."""

    model: Model
    task: Task
    config: ConfigDict
    told: str

    @property
    def dtype(self) -> str:
        """That the network computes in."""
        return str(self.config.model.dtype)


def read_subject(flags: argparse.Namespace, rest: Sequence[str], command: str) -> Subject:
    """The weights that the flags ask for, and how they are trained.

    Args:
        flags, rest: of `bench_parser`; the rest are overrides of the config.
        command: after `bench`.

    Raises:
        InputError: if flags contradict each other, or something cannot be read.
    """
    config = read_config(flags.config, rest, f"bench {command}")
    given = flags.checkpoint is not None or flags.clip is not None
    if flags.variant is not None and (config is not None or given):
        raise InputError(
            f"--variant={flags.variant} is for when neither --config nor weights are given"
        )
    if flags.pretrained and (config is None or given):
        raise InputError("--pretrained reads the weights of a --config; give that and no others")

    from tcl_jax.parallel.mesh import find_devices
    from tcl_jax.training.check import check_config

    if config is not None:
        check_config(config)
    usual = "float32" if find_devices()[0].platform == "cpu" else "bfloat16"
    config = _paper_config(flags.variant or "ViT-B/16", usual) if config is None else config
    with config.unlocked():
        config.model.dtype = flags.dtype or config.model.dtype
    if config.objective != "tcl":
        raise InputError(f"bench measures TCL; objective={config.objective!r} is another")
    return _of_weights(flags, config) if given else _of_config(config, flags.pretrained)


def _of_config(config: ConfigDict, pretrained: bool) -> Subject:
    import numpy as np

    from tcl_jax.inference.model import Model
    from tcl_jax.inference.settings import default_settings
    from tcl_jax.training.build import build_task, random_task

    task = build_task(config) if pretrained else random_task(config)
    if not pretrained:
        for layer in task.params["grounder"]["decoder"].values():
            layer["gate"] = np.float32(GATE)
    params = task.join(task.params, task.frozen)
    model = Model(task.network, params, default_settings(task.clip.config))
    c = config.model
    sizes = f"sizes of {c.weights}" if c.variant == "auto" else c.variant
    told = repr(c.weights) if pretrained else "random"
    return Subject(model, task, config, f"{sizes}, weights {told}")


def _of_weights(flags: argparse.Namespace, config: ConfigDict) -> Subject:
    import jax
    import numpy as np

    from tcl_jax.training.build import abstract_task

    model = load_model_from(flags)
    if model.method != "tcl":
        raise InputError("bench measures TCL, and these weights are a CLIP alone; give --tcl, too")
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    model = dataclasses.replace(model, params=params)
    with config.unlocked():
        # The sizes are the model's own; what remains of the config is how it trains.
        config.model.variant = "custom"
        config.model.tap_layer = model.network.describe()["tap_layer"]
        config.model.sizes.update(dataclasses.asdict(model.config))
    task = dataclasses.replace(
        abstract_task(config), params=model.learned, frozen=model.params["clip"]
    )
    return Subject(model, task, config, f"weights {flags.checkpoint or flags.tcl}")


def _paper_config(variant: str, dtype: str) -> ConfigDict:
    """What of a config `bench` reads, as the paper has it."""
    from ml_collections import ConfigDict

    from tcl_jax.ops.losses import LossWeights
    from tcl_jax.training.optim import AdamW

    adamw = dict(vars(AdamW()))
    rates = {"base_lr": 3e-4, "min_lr": 4e-5, "scale_with_batch": True, "warmup_steps": 15_000}
    return ConfigDict(
        {
            "objective": "tcl",
            "seed": 0,
            "model": {
                "variant": variant, "sizes": {}, "weights": "", "tap_layer": 0, "dtype": dtype,
            },
            "loss": {**dataclasses.asdict(LossWeights()), "temperature": 1.0},
            "optim": {**adamw, **rates},
            "train": {
                "global_batch_size": 1024, "total_steps": 50_000, "accumulation_steps": 1,
                "remat": "none", "fsdp": False,
            },
        }
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- figures


class Report:
    """Figures as they come; the file is whole after each."""

    def __init__(
        self, command: str, subject: Subject, file: str | None, devices: Sequence[Any]
    ) -> None:
        import jax

        self._file = file
        self.content: dict[str, Any] = {
            "command": command,
            "weights": subject.told,
            "device": devices[0].device_kind,
            "devices": len(devices),
            "jax": jax.__version__,
            "load": os.getloadavg()[0],
            "cores": available_cores(),
        }
        c = self.content
        print(
            f"{command}: {c['weights']}; {c['devices']} x {c['device']}, jax {c['jax']}; "
            f"load {c['load']:.1f} on {c['cores']} cores before the start",
            flush=True,
        )
        if c["load"] > BUSY * c["cores"]:
            print(
                "  others are using it: times come out too long, and most for threads that wait "
                "for each other, as PyTorch's on a CPU",
                flush=True,
            )

    def add(self, name: str, figures: Any) -> None:
        """Appends to a list of figures, or puts a dictionary's entries into one."""
        if dataclasses.is_dataclass(figures) and not isinstance(figures, type):
            figures = dataclasses.asdict(figures)
        if name in ("parts", "agreement"):
            self.content.setdefault(name, {}).update(figures)
        else:
            self.content.setdefault(name, []).append(figures)
        if self._file is not None:
            write_json(self._file, self.content)

    def each(self, name: str, found: Iterable[Found]) -> Iterator[Found]:
        """Figures as they come, each added before it is handed on."""
        for one in found:
            self.add(name, one)
            yield one


def tell_stage(line: str) -> None:
    """Says what is being done."""
    print(f"{line} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def fitting(report: Report, what: str) -> Iterator[None]:
    """Goes on where the device's memory does not hold something, and says so."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        problem = f"{what} does not fit into the device's memory"
        report.add("problems", problem)
        print(f"{problem}: {str(error).splitlines()[0][:200]}", flush=True)
