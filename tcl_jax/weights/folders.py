"""Folders of weights as OpenCLIP and Hugging Face's libraries write them, also in several files."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

from tcl_jax.errors import raise_machine_fault
from tcl_jax.files import read_json
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import DISTRIBUTED, open_weights
from tcl_jax.weights.tensor_file import TensorFile

KNOWN = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names that the libraries give to a model. Of several, which hold the same weights, the first."""

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
_MAX_INDEX = 16 << 20
_SHARD = re.compile(r".+-\d{5}-of-(\d{5})\.\w+")


def find_weights(path: Path) -> Path:
    """The file of weights that a path means: itself, or the one in a folder.

    Args:
        path: of a file, which need not be there, or of a folder as OpenCLIP, `save_pretrained` or
            a hub's cache have it, or with one weight file of any name.

    Returns:
        A file for `open_model`; of weights in several files it is their index.

    Raises:
        WeightError: if it is one of several files, or the folder holds none, several, a part, or
            what another tool must read.
    """
    if not path.is_dir():
        if _is_shard(path):
            raise WeightError(
                f"weights {str(path)!r} are one of several files that hold a model together; give "
                f"their folder, {str(path.parent)!r}, or the *{INDEX} file in it"
            )
        return path
    if (snapshots := path / "snapshots").is_dir():  # one repository in the cache of a hub
        versions = sorted(snapshots.iterdir())
        if len(versions) != 1:
            shown = ", ".join(str(version) for version in versions[:4])
            raise WeightError(
                f"weights {str(path)!r} hold {len(versions)} versions of a repository; give the "
                f"folder of one: {shown or 'download it again'}"
            )
        return find_weights(versions[0])
    for name in KNOWN:
        if (path / name).is_file():
            return path / name
    if (path / ".metadata").exists() or any(path.glob("*.distcp")):
        raise WeightError(
            f"weights {str(path)!r} are {DISTRIBUTED.replace('FOLDER', shlex.quote(str(path)))}"
        )
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    indexes = sorted(path.glob(f"*{INDEX}"))
    if len(indexes or files) == 1 and (indexes or not _is_shard(files[0])):
        return (indexes or files)[0]
    shown = ", ".join(file.name for file in files[:4]) + (" and more" if files[4:] else "")
    if files and all(map(_is_shard, files)):
        wrong = f"hold parts of a model ({shown}) without the *{INDEX} file that lists them; get it"
    elif files:
        wrong = f"are a folder of several files ({shown}); give the path of the one that is meant"
    else:
        wrong = (
            f"are a folder without {', '.join(KNOWN[:2])} or another weight file; give one of "
            "OpenCLIP's or Hugging Face's, or a file (a model that this package wrote, or a run, "
            "is given with --checkpoint)"
        )
    raise WeightError(f"weights {str(path)!r} {wrong}")


def _is_shard(path: Path) -> bool:
    """Whether a file is one of several; alone it may be the checkpoint of step 1 of 100."""
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match[1]) == 1:
        return False
    others = (other.name for other in path.parent.glob("*") if other.name != path.name)
    return any(name.endswith(INDEX) or _SHARD.fullmatch(name) for name in others)


def open_model(path: Path) -> TensorFile:
    """`readers.open_weights` of a file, or of all files that an index lists, as if they were one.

    Args:
        path: of a file, or of an index, {"weight_map": {tensor: file}}, beside the files.

    Raises:
        WeightError: if it, or a file that it lists, is missing, damaged or no weights.
    """
    if not path.name.endswith(INDEX):
        return open_weights(path)
    places = _read_index(path)
    files = [path.parent / name for name in sorted(set(places.values()))]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise WeightError(
            f"weights {str(path)!r} list {len(files)} files, of which {len(lacking)} are not "
            f"there: {', '.join(lacking[:4])}; get them, too"
        )
    with contextlib.ExitStack() as stack:
        opened = {file.name: stack.enter_context(open_weights(file)) for file in files}
        owners = {name: opened[file] for name, file in places.items()}
        if lost := [name for name, file in owners.items() if name not in file.specs]:
            raise WeightError(
                f"weights {str(path)!r} list {len(lost)} tensors that their files lack, such "
                f"as {lost[0][:80]!r}; get all of them again"
            )
        first = next(iter(opened.values()))
        contents = (
            f"{first.format} in {len(opened)} files",
            {name: file.specs[name] for name, file in owners.items()},
            first.scalars,
            lambda name: owners[name][name],
        )
        return TensorFile(path, contents, stack.pop_all(), files)


def _read_index(path: Path) -> dict[str, str]:
    try:
        places = read_json(path, _MAX_INDEX)["weight_map"]
        if not places or not all(Path(file).name == file for file in places.values()):
            raise ValueError("its weight_map is no table of tensors and files beside it")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise_machine_fault(f"weights {str(path)!r} could not be read", error)
        raise WeightError(
            f"weights {str(path)!r} cannot be read: {type(error).__name__}: {error}; get the index "
            "of the files again"
        ) from error
    return dict(places)
