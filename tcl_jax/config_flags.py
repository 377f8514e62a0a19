"""--config=FILE and --config.FIELD=VALUE, as all commands that take a config read them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from logging import INFO
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from tcl_jax.commands import add_process_flags, command_parser
from tcl_jax.errors import InputError
from tcl_jax.files import user_path

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "configs"
BUILT_IN = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""The folder of this project's configs: in the package where it is installed, or of a checkout."""


class _BuiltInConfigs:
    """Finds `configs.NAME`, the base of a config, where no folder of Python's path has it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As Python's own finders in sys.meta_path."""
        if name != "configs":
            folders = [str(BUILT_IN)] if name.startswith("configs.") else []
            return PathFinder.find_spec(name, folders)
        package = ModuleSpec(name, None, is_package=True)
        package.submodule_search_locations = []
        return package


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """--config; `parse_known_args` leaves --config.FIELD=VALUE to `read_config`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a config file, or one that comes with this package, such as configs/tcl.py; "
        "--config.FIELD=VALUE overrides any of its fields",
    )


def read_config(file: str | None, overrides: Sequence[str], command: str) -> ConfigDict | None:
    """A config with its overrides; None without a file.

    Args:
        file: the value of --config.
        overrides: --config.FIELD=VALUE; whatever else is refused.
        command: whose help a message names, as in `python -m tcl_jax.COMMAND`.

    Raises:
        InputError: the file cannot be read or has no such field, or there is an unknown argument.
    """
    if file is None and any(override.startswith("--config.") for override in overrides):
        raise InputError(
            f"{', '.join(overrides)}: there is no config to override; give one with --config=FILE"
        )
    argv = [command, *overrides]
    if file is not None:
        path = locate_config(file)
        argv.insert(1, f"--config={path}")
        # So that configs can import their base as `configs.NAME`, wherever this is started from.
        if path.parent != BUILT_IN:
            sys.path.append(str(path.resolve().parent.parent))
        if _BuiltInConfigs not in sys.meta_path:
            sys.meta_path.append(_BuiltInConfigs)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, lock_config=True, flag_values=values, sys_argv=argv
    )
    try:
        rest = values(argv)[1:]
        config: ConfigDict | None = values["config"].value
        if config is not None:
            config.to_dict()  # a config that failed to load says so only when it is read
    except (KeyError, AttributeError) as error:
        what: Any = error  # errors may hold each other, and a KeyError shows a repr
        while isinstance(what, Exception) and what.args:
            what = what.args[0]
        what = " ".join(str(what).split())
        message = f"the config file, or a --config.FIELD flag, names what is not there: {what}"
    except flags.UnrecognizedFlagError as error:
        message = f"{error}; a field of the config is --config.FIELD=VALUE"
    except (flags.Error, TypeError, ValueError, OSError) as error:
        message = str(error)
    except Exception as error:  # whatever a config file does
        message = f"the config file cannot be used: {type(error).__name__}: {error}"
    else:
        if not rest:
            return config
        message = f"arguments {rest} are not flags; every flag begins with --"
    raise InputError(f"{message}\nThe flags: python -m tcl_jax.{command} --help")


def locate_config(file: str) -> Path:
    """The path that --config means: a file, or else one of this project's, as configs/NAME.py.

    Args:
        file: its value; FILE:ARGUMENT is allowed.

    Raises:
        InputError: if there is neither.
    """
    path = user_path(file)
    places = [path, BUILT_IN / path.name] if path.parent == Path("configs") else [path]
    for place in places:
        if os.path.isfile(str(place).partition(":")[0]):
            return place
    known = ", ".join(f"configs/{x.name}" for x in sorted(BUILT_IN.glob("*.py")))
    raise InputError(
        f"--config={file!r}: there is no such file; give the path of a config, or one that comes "
        f"with this package: {known}"
    )


def config_flag(field: str, value: Any) -> str:
    """--config.FIELD=VALUE; one plain path stands for itself, as fields of several take it."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0] if re.fullmatch(r"[\w./-]+", value[0], re.ASCII) else value
    return f"--config.{field}={value}"


def kept_flags(config: ConfigDict, family: str) -> list[str]:
    """What a next run has in common with this one, as flags: the data, and how it is judged.

    Args:
        config: of this run.
        family: of configs/FAMILY_clip.py, on which `config` may be based: what differs from it in
            `data` and `eval` was chosen. How often a run is judged, and what is made of its masks,
            is of that run alone. A batch smaller than that of configs/FAMILY.py is kept, too, as
            there may be no more pairs.
    """
    from tcl_jax.training.check import flatten

    files = (f"configs/{family}_clip.py", f"configs/{family}.py")
    configs = [config, *(require_config(x, [], "python -m tcl_jax.main") for x in files)]
    own, base, upon = (flatten(x.to_dict()) for x in configs)
    batch = "train.global_batch_size"
    kept = [
        field
        for field in base
        if re.match(r"data\.|eval\.(?!every|background|pamr|kp_weight)", field)
        and own.get(field, base[field]) != base[field]
    ]
    kept += [batch] if own[batch] < upon.get(batch, 0) else []
    return [config_flag(field, own[field]) for field in kept]


def require_config(file: str | None, overrides: Sequence[str], example: str) -> ConfigDict:
    """`read_config` of a command that needs one.

    Args:
        file, overrides: as in `read_config`.
        example: of the command, `python -m tcl_jax.COMMAND ...`.

    Raises:
        InputError: as `read_config`, and if there is none.
    """
    config = read_config(file, overrides, example.split()[2].removeprefix("tcl_jax."))
    if config is None:
        raise InputError(f"--config is needed, as in\n  {example}")
    return config


def embed_in_advance(
    argv: Sequence[str] | None,
    doc: str | None,
    example: str,
    embed: Callable[[ConfigDict, int], str],
    items: str,
    batch_size: int,
) -> None:
    """A command that computes once what a training would compute again and again.

    Args:
        argv: its flags: --config, --batch_size and those of several processes.
        doc: its help.
        example: as in `require_config`.
        embed: of a config and the batch size, returns what there is to say.
        items: what a device computes together.
        batch_size: how many of them, if no flag says it.

    Raises:
        InputError: if a flag or the config cannot be used, and as `embed`.
    """
    p = command_parser(example.split()[2].removeprefix("tcl_jax."), doc)
    add_config_flag(p)
    p.add_argument(
        "--batch_size",
        type=int,
        default=batch_size,
        help=f"{items} that a device computes together (default {batch_size})",
    )
    add_process_flags(p)
    flags, rest = p.parse_known_args(argv)
    config = require_config(flags.config, rest, example)
    if flags.batch_size < 1:
        raise InputError(f"--batch_size={flags.batch_size} must be at least 1")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.parallel.processes import raise_on_all_processes, start_processes
    from tcl_jax.training.check import check_config

    check_config(config)
    start_processes(flags.coordinator, flags.num_processes, flags.process_id)
    print(raise_on_all_processes(lambda: embed(config, flags.batch_size)))


def show_own_log() -> None:
    """Logs what this package tells, and of other libraries the warnings only."""
    logging.use_absl_handler()
    flags.FLAGS.mark_as_parsed()  # absl complains of what is logged before
    logging.set_verbosity(logging.INFO)
    ours = Path(__file__).parent
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > INFO or ours in Path(record.pathname).parents
    )
