"""Published weights by name, of CLIP, TCL and backbones: in the package, a cache, or downloaded."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import logging
from tqdm import tqdm

from tcl_jax.errors import RunError, as_input_error, first_cause, machine_fault
from tcl_jax.files import cache_folder, sha256_of, user_path, whole_file
from tcl_jax.models.families import PRETRAINED
from tcl_jax.weights.folders import INDEX, find_weights, listed_files, trained_clip
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.published import CLIP_FILES as CLIP_FILES
from tcl_jax.weights.published import LAION, HubFile
from tcl_jax.weights.published import OPENAI_SHA256 as OPENAI_SHA256

ASSETS = Path(__file__).parent.parent / "assets"
BUILT_IN = {"builtin:shapes_clip": ASSETS / "shapes_clip.safetensors"}
"""Weights that come with the package, by the name that a config gives."""

FOLDER = "weights"
"""Where weights are looked for first, in the working directory."""

CONNECT_SECONDS = 10
"""How long a server may take to answer before it counts as out of reach."""

OFFICIAL = "official"
"""Name of TCL's published checkpoint, and of CLIP-DINOiser's."""

TCL_URL = "https://github.com/kakaobrain/tcl/releases/download/v1.0.0/tcl.pth"

HEAD_URL = "https://github.com/wysoczanska/clip_dinoiser/raw/main/checkpoints/last.pt"
HEAD_FILE = "clip_dinoiser_last.pt"
"""What it is kept as; its own name says too little."""


def locate_clip(name: str) -> Path:
    """The file that a path, `builtin:NAME` or the name of a published CLIP stands for.

    Of a folder it is the weight file in it, or the index of several, see `find_weights`; of a run's
    workdir the CLIP that it has trained. A name such as "ViT-B/16" is looked for as ViT-B-16.pt and
    ViT-B-16.safetensors in the folder weights/ of the working directory, then in the cache of the
    Hugging Face hub, and is downloaded there otherwise. OpenAI's own .pt files and those of the hub
    must have the published SHA-256.

    Raises:
        WeightError: if there is no such file or name, the download fails, or the file has another
            SHA-256 than the published one; says which file to put where.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = user_path(name)
    # A folder of the name of a published CLIP, such as one for its results, is not meant.
    if os.path.isfile(path) or (name not in ("", *CLIP_FILES) and os.path.exists(path)):
        return trained_clip(path) or find_weights(path)
    if name in CLIP_FILES:
        return _locate_named(name)
    if not name:
        wrong = "have no name"
    else:
        builtin = name.startswith("builtin:")
        absent = f"do not exist (there is no {path.absolute()})"
        wrong = "do not come with the package" if builtin else absent
    raise WeightError(
        f"weights {name!r} {wrong}; give the path of a CLIP checkpoint (.pt, "
        f".safetensors or .npz) or its folder, or one of the names {', '.join(CLIP_FILES)}, "
        f"{', '.join(BUILT_IN)}"
    )


def openai_filename(name: str) -> str:
    """Name of OpenAI's own file: "ViT-L-14-336px.pt" of "ViT-L/14@336px"."""
    return name.replace("/", "-").replace("@", "-") + ".pt"


def _locate_named(name: str) -> Path:
    own, hub = Path(FOLDER, openai_filename(name)), CLIP_FILES[name]
    placed = next((x for x in (own, own.with_suffix(".safetensors")) if x.is_file()), None)
    path = placed or _from_hub(
        f"CLIP {name}",
        hub,
        f"put one of these files into {str(Path(FOLDER).absolute())!r}: OpenAI's own {own.name} "
        f"(https://openaipublic.azureedge.net/clip/models/{OPENAI_SHA256[name]}/{own.name}), or "
        f"{hub.url} under the name {own.with_suffix('.safetensors').name}",
    )
    expected = OPENAI_SHA256[name] if path == own else hub.sha256
    with as_input_error(f"weights {str(path)!r} cannot be read"):
        found = sha256_of(path)
    if found != expected:
        raise WeightError(
            f"weights {str(path)!r} have the SHA-256 {found}, and the published file has "
            f"{expected}; the file was cut short, changed, or is another one, so it is not used: "
            f"delete {str(path.resolve())!r} and get it again"
        )
    logging.info("CLIP %s is read from %s", name, path)
    return path


def _from_hub(what: str, file: HubFile, instead: str) -> Path:
    """A file in the hub's cache, where it is downloaded to otherwise.

    Where the repository has the same in several files, it is their index, with them beside it.

    Args:
        instead: what to do where the download fails, as the end of a sentence.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    for name in (file.filename, file.filename + INDEX):
        cached = huggingface_hub.try_to_load_from_cache(file.repo, name, revision=file.revision)
        if isinstance(cached, str) and _is_whole(Path(cached)):
            return Path(cached)
    logging.info("downloading %s from %s", what, file.url)
    try:
        # Without a network the download itself would try again for half a minute.
        name = file.filename
        url = huggingface_hub.hf_hub_url(file.repo, name, revision=file.revision)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=CONNECT_SECONDS)
        except EntryNotFoundError:
            name += INDEX
        download = partial(
            huggingface_hub.hf_hub_download,
            file.repo, revision=file.revision, etag_timeout=CONNECT_SECONDS,
        )  # fmt: skip
        download(file.config)
        path = Path(download(name))
        for part in listed_files(path) if name.endswith(INDEX) else []:
            download(part.name)
    except Exception as error:  # of whichever HTTP client the library is built on
        _check_machine(what, error)
        raise WeightError(
            f"{what} could not be downloaded from the Hugging Face hub ({first_cause(error)}). "
            f"Try again with a connection to the internet, or {instead}"
        ) from error
    return path


def _is_whole(path: Path) -> bool:
    """Whether a file is there with all that it lists."""
    return not path.name.endswith(INDEX) or all(part.is_file() for part in listed_files(path))


def locate_tcl(source: str | os.PathLike[str]) -> Path:
    """The file that a path, or "official" for TCL's published checkpoint, stands for.

    "official" is tcl.pth in the folder weights/ of the working directory, or in the cache of this
    user (~/.cache/tcl_jax/weights), where it is downloaded to otherwise.

    Raises:
        WeightError: if there is no such file, or the download fails; says which file to put where.
    """
    return _locate_official(source, "TCL's tcl.pth", "TCL's official checkpoint", TCL_URL)


def locate_head(source: str | os.PathLike[str]) -> Path:
    """`locate_tcl` of CLIP-DINOiser's head, which is clip_dinoiser_last.pt in those folders."""
    file, what = "CLIP-DINOiser's last.pt", "CLIP-DINOiser's head"
    return _locate_official(source, file, what, HEAD_URL, HEAD_FILE)


def _locate_official(
    source: str | os.PathLike[str], file: str, what: str, address: str, *names: str
) -> Path:
    path = user_path(source)
    if os.path.exists(path):
        return find_weights(path)
    if os.fspath(source) == OFFICIAL:
        return _from_addresses(what, [address], names)
    raise WeightError(
        f"weights {str(path)!r} do not exist; give the path of {file} or its folder, or "
        f"{OFFICIAL!r}, which downloads it"
    )


def locate_laion() -> Path:
    """LAION-2B's CLIP ViT-B/16, by OpenCLIP.

    It is looked for in the folder weights/ of the working directory under the name of its
    repository (a folder, or with .safetensors), then in the cache of the hub, and is downloaded
    there otherwise. Its hash is not known, so it is not checked.

    Raises:
        WeightError: if the download fails; says which file to put where.
    """
    what, folder = "LAION-2B's CLIP ViT-B/16", Path(FOLDER, os.path.basename(LAION.repo))
    file = folder.with_name(f"{folder.name}.safetensors")
    return _placed(what, file, folder) or _from_hub(
        what,
        LAION,
        f"put {LAION.url} into {str(Path(FOLDER).absolute())!r} under the name {file.name}",
    )


def _placed(what: str, *paths: Path) -> Path | None:
    """The weights at the first of these places that there is."""
    for path in paths:
        if path.exists():
            logging.info("%s is read from %s", what, path)
            return find_weights(path)
    return None


def locate_backbone(source: str | os.PathLike[str]) -> Path:
    """The file that a path, or the name of a tower in `families.PRETRAINED`, stands for.

    A name such as "dinov2-reg:B/14" is looked for in the folder weights/ of the working directory,
    under the name that the file has at its address or that its repository has on the Hugging Face
    hub (a folder, or with .safetensors), then in the cache of this user or of the hub, and is
    downloaded there otherwise. No hashes of these files are known, so none are checked.

    Raises:
        WeightError: if there is no such file or name, or the download fails; says which file to
            put where, and whose licence has to be accepted.
    """
    name, path = os.fspath(source), user_path(source)
    if os.path.exists(path):
        return find_weights(path)
    if name not in PRETRAINED:
        raise WeightError(
            f"weights {name!r} do not exist (there is no {path.absolute()}); give the path of a "
            "file (.pth, .safetensors or .npz) or its folder, or one of the names "
            f"{', '.join(PRETRAINED)}"
        )
    family, size = PRETRAINED[name]
    row, what = family.sizes[size], f"{family.title} {size}"
    if not row.repo:
        return _from_addresses(what, row.addresses)
    own = Path(FOLDER, os.path.basename(row.addresses[0]))
    folder = Path(FOLDER, os.path.basename(row.repo))
    placed = _placed(what, own, folder.with_name(f"{folder.name}.safetensors"), folder)
    if placed is not None:
        return placed
    file = HubFile(row.repo, "main", "", "model.safetensors", "config.json")
    licence = (
        f"accept the {family.licence} at https://huggingface.co/{row.repo} with the account whose "
        "token this machine has (`hf auth login`), or "
        if family.gated
        else ""
    )
    return _from_hub(
        what,
        file,
        f"{licence}put one of these files into {str(Path(FOLDER).absolute())!r}: {own.name} (from "
        f"{row.addresses[0]}), or {file.url} under the name {folder.name}.safetensors",
    )


def locate_texts(name: str) -> list[Path]:
    """The files with what texts need of a model in `families.PRETRAINED`; there may be none.

    Raises:
        WeightError: as `locate_backbone`.
    """
    family, size = PRETRAINED[name]
    return [_locate_text(name, addresses) for addresses in family.sizes[size].texts]


def locate_text_tower(name: str) -> Path:
    """The one of `locate_texts` that holds the text tower itself.

    Raises:
        WeightError: as `locate_backbone`, and if there is none of this name.
    """
    texts = {x: row.sizes[size].texts for x, (row, size) in PRETRAINED.items()}
    if not texts.get(name):
        known = ", ".join(x for x, addresses in texts.items() if addresses)
        raise WeightError(
            f"weights {name!r} have no text tower; choose a CLIP, such as ViT-B/16, or one of "
            f"{known}"
        )
    return _locate_text(name, texts[name][-1])


def _locate_text(name: str, addresses: Sequence[str]) -> Path:
    family, size = PRETRAINED[name]
    what = f"the text tower of {family.title} {size}"
    if family.gated:
        what += f" (access is given on request, under the {family.licence})"
    return _from_addresses(what, addresses)


def locate_supplied(part: str, what: str, names: Sequence[str], where: str) -> Path:
    """A file that nobody downloads for the user, in the folder of weights or this user's cache.

    Args:
        part: of the model, as --weights names it.
        names: any of which the file may have.
        where: why, and where it is, as the second half of a sentence.

    Raises:
        WeightError: if it is not there.
    """
    if (path := _placed(what, *_places(names))) is None:
        raise WeightError(
            f"{what} is not there; {where}. Put the file into {str(Path(FOLDER).absolute())!r} as "
            f"{' or '.join(names)}, or give its path as {part} (--weights {part}=FILE)"
        )
    return path


def _places(names: Sequence[str]) -> list[Path]:
    """Files of these names in the folder of weights, then in this user's cache."""
    return [Path(folder, x) for folder in (FOLDER, cache_folder("weights")) for x in names]


def _from_addresses(what: str, addresses: Sequence[str], names: Sequence[str] = ()) -> Path:
    """A file in the folder of weights or this user's cache, where it is downloaded to otherwise.

    Args:
        addresses: any of which may have it.
        names: that it is looked for by, one for each; those at the addresses if there are none.
    """
    names = names or [os.path.basename(address) for address in addresses]
    if (placed := _placed(what, *_places(names))) is not None:
        return placed
    failures = []
    for address, name in zip(addresses, names, strict=True):
        path = cache_folder("weights") / name
        try:
            _download(what, address, path)
            return path
        except (OSError, http.client.HTTPException, ValueError) as error:
            _check_machine(what, error)
            failures.append(f"{address} ({first_cause(error)})")
    raise WeightError(
        f"{what} could not be downloaded from {' or '.join(failures)}. Try again with a connection "
        f"to the internet, or put the file into {str(Path(FOLDER).absolute())!r} as "
        f"{' or '.join(names)}, or give its path"
    )


def _download(what: str, address: str, path: Path) -> None:
    logging.info("downloading %s from %s to %s", what, address, path)
    with (
        urllib.request.urlopen(address, timeout=CONNECT_SECONDS) as answer,
        whole_file(path) as temporary,
        temporary.open("wb") as file,
    ):
        size = answer.length
        if size is None and not answer.chunked:
            raise ValueError("the server does not say how long the file is")
        with tqdm.wrapattr(file, "write", size, desc=path.name, disable=None) as writer:
            shutil.copyfileobj(answer, writer, 1 << 20)
        if size not in (None, found := file.tell()):
            raise ValueError(f"the connection ended after {found:,} of {size:,} bytes")


def _check_machine(what: str, error: Exception) -> None:
    """Raises a `RunError` if a download failed by this machine's fault, and not the network's."""
    # The errors of networks are of other classes.
    if type(error) in (OSError, MemoryError) and (fault := machine_fault(error)):
        raise RunError(f"{what} could not be downloaded: {fault}") from error
