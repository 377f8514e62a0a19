"""TCL's published checkpoint by name, downloaded once from the release of its authors."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from absl import logging
from tqdm import tqdm

from tcl_jax.convert.folders import find_weights
from tcl_jax.convert.hub import CONNECT_SECONDS, FOLDER, check_machine, verify
from tcl_jax.convert.mapping import WeightError
from tcl_jax.errors import first_cause
from tcl_jax.files import cache_folder, sha256_of, user_path, write_json

NAME = "official"
URL = "https://github.com/kakaobrain/tcl/releases/download/v1.0.0/tcl.pth"
SHA256: str | None = None
"""Of the file at `URL`; not known here yet, so that of the first download is kept and compared."""

_CHUNK = 1 << 20


def locate_tcl(source: str | os.PathLike[str]) -> Path:
    """The file that a path, or "official" for the published checkpoint, stands for.

    "official" is tcl.pth in the folder weights/ of the working directory, or in the cache of this
    user (~/.cache/tcl_jax/weights), where it is downloaded to otherwise; a download that breaks off
    goes on from there the next time. The SHA-256 that the file in the cache had first, also if it
    was put there by hand, is kept beside it.

    Args:
        source: a path (~ is the home directory) or "official".

    Raises:
        WeightError: if the download fails, or the file is not what was downloaded; says which file
            to put where.
    """
    path = user_path(source)
    if os.fspath(source) != NAME or path.exists():
        return find_weights(path)
    path = Path(FOLDER, "tcl.pth")
    if not path.is_file():
        path = cache_folder("weights") / "tcl.pth"
        _download(path)
    if SHA256 is not None:
        verify(path, SHA256)
    logging.info("TCL's official checkpoint is read from %s", path)
    return path


def _download(path: Path) -> None:
    """Makes the file be there, with what is known of it in a JSON file beside it."""
    from huggingface_hub.utils import WeakFileLock  # of several processes one downloads

    note = path.with_name(f"{path.name}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                _fetch(path, note)
            known = _noted(path, note)
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        check_machine("TCL's official checkpoint", error)
        kept = ""
        if (part := _part(path)).is_file():
            kept = f"{part.stat().st_size:,} bytes are kept, and the next try goes on from there. "
        raise WeightError(
            f"TCL's official checkpoint could not be downloaded from {URL} "
            f"({first_cause(error)}). {kept}Try again with a connection "
            f"to the internet, or put the file into {str(Path(FOLDER).absolute())!r} as tcl.pth, "
            "or give its path"
        ) from error
    verify(path, known, "what was downloaded")


def _noted(path: Path, note: Path) -> str:
    """The SHA-256 that the file had first, whether it was downloaded or put there by hand."""
    known = json.loads(note.read_bytes()) if note.is_file() else {}
    if "sha256" not in known:
        size, sha256 = path.stat().st_size, sha256_of(path)
        known = {"url": URL, "size": size, "sha256": sha256}
        write_json(note, known)
        logging.info(
            "%s has %d bytes and the SHA-256 %s; the published hash is not known here, so this one "
            "is kept in %s and compared from now on", path, size, sha256, note.name,
        )  # fmt: skip
    return str(known["sha256"])


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _fetch(path: Path, note: Path) -> None:
    part, done, tag = _part(path), 0, None
    if part.is_file() and note.is_file():
        done, tag = part.stat().st_size, json.loads(note.read_bytes()).get("etag")
    # If the file has changed meanwhile, the server sends all of it.
    more = {"Range": f"bytes={done}-", "If-Range": tag} if done and tag else {}
    logging.info("downloading TCL's official checkpoint from %s to %s", URL, path)
    request = urllib.request.Request(URL, headers={"User-Agent": "tcl_jax", **more})
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is as long as the file, or longer
        raise
    with answer:
        done = done if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = answer.headers["Content-Length"]
        if length is None and not answer.chunked:
            raise ValueError("the server does not say how long the file is")
        size = None if length is None else done + int(length)
        write_json(note, {"url": URL, "etag": answer.headers["ETag"], "size": size})
        told = {"total": size, "initial": done, "unit": "B", "unit_scale": True, "disable": None}
        with part.open("ab" if done else "wb") as file, tqdm(desc="tcl.pth", **told) as bar:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if size not in (None, found := part.stat().st_size):
        raise ValueError(f"the connection ended after {found:,} of {size:,} bytes")
    part.replace(path)
