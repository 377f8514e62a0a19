"""Folders of weights as OpenCLIP and Hugging Face's libraries write them, also in several files."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tcl_jax.errors import raise_machine_fault
from tcl_jax.files import read_json
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import open_weights
from tcl_jax.weights.tensor_file import Contents, TensorFile

KNOWN = (
    "open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json",
    "open_clip_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""Names that the libraries give to a model. Of several, which hold the same weights, the first."""

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt")
INDEX = ".index.json"
_MAX_INDEX = _MAX_CONFIG = 16 << 20

TRAINED_CLIP = "clip_{step}.safetensors"
"""What a run that trains a CLIP writes to its workdir at its end, with OpenAI's tensor names. Those
of fewer steps stay, as other runs may have been trained upon them."""


def find_weights(path: Path) -> Path:
    """The file of weights that a path means: itself, or the one in a folder.

    Args:
        path: of a file, which need not be there, or of a folder as OpenCLIP, `save_pretrained` or
            a hub's cache have it, or with one weight file of any name.

    Returns:
        A file for `open_model`; of weights in several files it is their index.

    Raises:
        WeightError: if the folder holds none, or several.
    """
    if not path.is_dir():
        return path
    if (path / "snapshots").is_dir():  # one repository in the cache of a hub
        found = sorted((path / "snapshots").iterdir())
        if len(found) == 1:
            return find_weights(found[0])
    else:
        for name in KNOWN:
            if (path / name).is_file():
                return path / name
        files = [x for x in path.iterdir() if x.suffix in SUFFIXES and x.is_file()]
        found = sorted(path.glob(f"*{INDEX}")) or sorted(files)
        if len(found) == 1:
            return found[0]
    shown = ", ".join(file.name for file in found[:4]) + (" and more" if found[4:] else "")
    raise WeightError(
        f"weights {str(path)!r} are a folder that holds {shown or 'no weights'}; give the path of "
        f"the one that is meant (of a model in several files, its *{INDEX} is needed, too), or a "
        f"folder with {', '.join(KNOWN[:2])} or one other weight file (`segment`, `evaluate` "
        "and the like take a run, or a model that this package wrote, with --checkpoint)"
    )


def trained_clip(workdir: Path) -> Path | None:
    """The CLIP of most steps that a run has written, by its workdir; None of a path that is none.

    Raises:
        WeightError: if the run is of another objective, or not at its end.
    """
    if not (workdir / "checkpoints").is_dir():
        return None
    what = f"weights {str(workdir)!r} are a run's workdir"
    try:
        objective = read_json(workdir / "config.json", _MAX_CONFIG)["objective"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise WeightError(f"{what} whose config.json cannot be read ({error})") from error
    if objective != "clip":
        raise WeightError(
            f"{what} with objective={objective!r}, and a CLIP is needed; give the workdir of a run "
            "with objective='clip' (`segment` takes any run, with --checkpoint)"
        )
    pattern = TRAINED_CLIP.format(step="*")
    files = [x for x in workdir.glob(pattern) if x.stem.partition("_")[2].isdecimal()]
    if not files:
        raise WeightError(
            f"{what} that is not at its end: there is no {pattern} in it; give the command that "
            "started it again, which goes on and writes that file"
        )
    return max(files, key=lambda x: int(x.stem.partition("_")[2]))


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
    files = listed_files(path)
    if lacking := [file.name for file in files if not file.is_file()]:
        raise WeightError(
            f"weights {str(path)!r} list {len(files)} files, of which {len(lacking)} are not "
            f"there: {', '.join(lacking[:4])}; get them, too"
        )
    with contextlib.ExitStack() as stack:
        opened = {file.name: stack.enter_context(open_weights(file)) for file in files}
        listed = {name: opened[file] for name, file in places.items()}
        owners = {name: file for name, file in listed.items() if name in file.specs}
        left_out = {n: x.left_out[n] for n, x in listed.items() if n in x.left_out}
        if lost := [name for name in listed if name not in owners and name not in left_out]:
            raise WeightError(
                f"weights {str(path)!r} list {len(lost)} tensors that their files lack, such "
                f"as {lost[0][:80]!r}; get all of them again"
            )
        first = next(iter(opened.values()))
        contents = Contents(
            f"{first.format} in {len(opened)} files",
            {name: file.specs[name] for name, file in owners.items()},
            left_out,
            first.scalars,
            lambda name: owners[name][name],
        )
        return TensorFile(path, contents, stack.pop_all(), files)


def listed_files(path: Path) -> list[Path]:
    """The files that an index lists, which need not be there.

    Raises:
        WeightError: if it is missing or no index.
    """
    return [path.parent / name for name in sorted({*_read_index(path).values()})]


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
