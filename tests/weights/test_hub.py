"""Weights by path and by name, with a hub that is a folder, and a release of this machine."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from tcl_jax.errors import RunError
from tcl_jax.models.clip import VARIANTS
from tcl_jax.models.families import FAMILIES, PRETRAINED, Size
from tcl_jax.weights import hub
from tcl_jax.weights.hub import (
    BUILT_IN,
    CLIP_FILES,
    OPENAI_SHA256,
    locate_backbone,
    locate_clip,
    locate_head,
    locate_laion,
    locate_tcl,
    locate_texts,
    openai_filename,
)
from tcl_jax.weights.mapping import WeightError
from tests.reference import GOLDEN

CONTENT = b"weights of a CLIP"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "ViT-B/16"
PUBLISHED = dict(CLIP_FILES)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and cache, and published files that are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    file = dataclasses.replace(CLIP_FILES[NAME], sha256=SHA256)
    monkeypatch.setitem(CLIP_FILES, NAME, file)
    monkeypatch.setitem(OPENAI_SHA256, NAME, SHA256)
    return tmp_path


class Hub:
    """Downloads as the library does: into blobs, with links from the snapshot of a revision."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.content, self.asked = cache, CONTENT, list[str]()

    def metadata(self, url: str, timeout: float) -> None:
        assert url.startswith("https://huggingface.co/") and timeout <= 10

    def refuse(self, *arguments: Any, **options: Any) -> str:
        raise ValueError("no connection")

    def download(self, repo: str, filename: str, revision: str, etag_timeout: float) -> str:
        assert etag_timeout <= 10
        self.asked.append(f"{repo}/{filename}@{revision}")
        folder = self.cache / f"models--{repo.replace('/', '--')}"
        blob = folder / "blobs" / f"etag-of-{filename}"
        link = folder / "snapshots" / revision / filename
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(self.content if filename.endswith(".safetensors") else b"{}")
        link.symlink_to(blob)
        return str(link)


@pytest.fixture
def online(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(nowhere / "cache")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fake.metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def test_names_are_the_variants() -> None:
    assert CLIP_FILES.keys() == OPENAI_SHA256.keys() == VARIANTS.keys()
    for name, file in PUBLISHED.items():
        assert re.fullmatch("[0-9a-f]{40}", file.revision)
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert re.fullmatch("[0-9a-f]{64}", OPENAI_SHA256[name])
        assert f"patch{VARIANTS[name].patch_size}_clip_{VARIANTS[name].resolution}" in file.repo
    assert [openai_filename(name) for name in VARIANTS] == [
        "ViT-B-32.pt", "ViT-B-16.pt", "ViT-L-14.pt", "ViT-L-14-336px.pt",
    ]  # fmt: skip


def test_paths_and_built_in_weights(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = GOLDEN / "clip_state_dict.npz"
    assert locate_clip(str(path)) == path
    monkeypatch.setenv("HOME", str(nowhere))
    (nowhere / "clip.pt").write_bytes(b"")
    assert locate_clip("~/clip.pt") == nowhere / "clip.pt"
    assert locate_clip("clip.pt") == Path("clip.pt")
    for name, path in BUILT_IN.items():
        assert locate_clip(name) == path and path.stat().st_size <= 8e6


def test_downloaded_once_with_the_config_beside(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = locate_clip(NAME)
    file = CLIP_FILES[NAME]
    assert path.read_bytes() == CONTENT
    assert (path.parent / file.config).read_bytes() == b"{}"
    assert online.asked == [
        f"{file.repo}/{file.config}@{file.revision}",
        f"{file.repo}/{file.filename}@{file.revision}",
    ]
    for function in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.delattr(huggingface_hub, function)  # the cache needs no connection
    assert locate_clip(NAME) == path


def test_another_content_than_published_is_not_used(online: Hub) -> None:
    online.content = CONTENT + b"!"
    for _ in range(2):  # fresh, and from the cache
        with pytest.raises(WeightError, match="SHA-256.*not used: delete '(.*)' and") as error:
            locate_clip(NAME)
    deleted = re.search("delete '(.*)' and", str(error.value))
    assert deleted
    blob = Path(deleted[1])
    assert blob.parent.name == "blobs" and not blob.is_symlink()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_folder_of_weights_comes_first(online: Hub, suffix: str) -> None:
    file = Path("weights", openai_filename(NAME)).with_suffix(suffix)
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    assert locate_clip(NAME) == file
    assert online.asked == []
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightError, match=f"'{file}' have the SHA-256.*{SHA256}"):
        locate_clip(NAME)


def test_offline_says_which_file_to_put_where(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightError) as error:
        locate_clip("ViT-L/14@336px")
    for part in (
        "CLIP ViT-L/14@336px could not be downloaded",
        str(nowhere / "weights"),
        "ViT-L-14-336px.pt (https://openaipublic.azureedge.net/clip/models/3035c92b",
        "https://huggingface.co/timm/vit_large_patch14_clip_336.openai/resolve/81e38efc",
        "under the name ViT-L-14-336px.safetensors",
    ):
        assert part in str(error.value)


def test_whatever_the_library_raises_is_explained(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, kind, message in (
        (ValueError(""), WeightError, r"downloaded.*\(ValueError: .*weights"),
        (OSError(errno.ENOSPC, "No space left"), RunError, "is the disk full"),
    ):

        def fail(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(kind, match=message):
            locate_clip(NAME)


@pytest.mark.parametrize("name", ["ViT-B/64", "nothing.pt", "~nobody-of-this-name/clip.pt", "a\0b"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(WeightError, match=r"do not exist.*ViT-B/32, ViT-B/16, .*builtin:shapes"):
        locate_clip(name)


def test_folders_and_no_name(nowhere: Path) -> None:
    with pytest.raises(WeightError, match="are a folder that holds no weights"):
        locate_clip(str(nowhere))
    assert locate_clip(os.devnull) == Path(os.devnull)  # which is told when it is opened
    with pytest.raises(WeightError, match="'officail' do not exist; .*'official'"):
        locate_tcl("officail")
    for name, wrong in {"": "have no name", "builtin:nothing": "do not come with"}.items():
        with pytest.raises(WeightError, match=f"weights '{name}' {wrong}.*builtin:shapes_clip"):
            locate_clip(name)


class Release(http.server.BaseHTTPRequestHandler):
    """Answers as GitHub does, after a redirect."""

    def __init__(self, state: dict[str, Any], *arguments: Any) -> None:
        self.state = state
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/v1/tcl.pth":
            self.send_response(302)
            self.send_header("Location", "/asset")
            self.end_headers()
            return
        self.state["calls"] += 1
        sent, kind = CONTENT[: self.state["until"]], self.state["kind"]
        self.send_response(200)
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent)
        elif kind == "whole":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Is not shown."""


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server that plays the release of TCL: until where it sends, how, and how often."""
    state: dict[str, Any] = {"until": None, "kind": "whole", "calls": 0}
    handler = functools.partial(Release, state)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, "TCL_URL", f"http://localhost:{httpd.server_port}/v1/tcl.pth")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield state
        httpd.shutdown()


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_tcl_is_downloaded_once(release: dict[str, Any], tmp_path: Path, kind: str) -> None:
    release["kind"] = kind
    path = locate_tcl("official")
    assert path == tmp_path / "cache/tcl_jax/weights/tcl.pth" and path.read_bytes() == CONTENT
    assert locate_tcl("official") == path and release["calls"] == 1


def test_a_broken_download_leaves_nothing(
    release: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="is the disk full"):
        patch.setattr("shutil.copyfileobj", full)
        locate_tcl("official")
    release["until"] = 5
    with pytest.raises(WeightError, match="ended after 5 of 17"):
        locate_tcl("official")
    release["kind"] = "of no length"
    with pytest.raises(WeightError, match="does not say how long the file is"):
        locate_tcl("official")
    assert list((tmp_path / "cache/tcl_jax/weights").iterdir()) == []


def test_offline_it_says_which_tcl_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "TCL_URL", "http://localhost:9/v1/tcl.pth")
    with pytest.raises(WeightError, match="could not be downloaded from http://localhost:9/") as e:
        locate_tcl("official")
    folder = tmp_path / "weights"
    assert f"put the file into {str(folder)!r} as tcl.pth, or give its path" in str(e.value)
    folder.mkdir()
    (folder / "tcl.pth").write_bytes(b"x")
    assert locate_tcl("official") == Path("weights/tcl.pth")


def test_what_clip_dinoiser_is_made_of(
    online: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, repo = tmp_path / "weights", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert locate_laion().read_bytes() == CONTENT
    assert [x.split("@")[0] for x in online.asked] == [
        f"{repo}/open_clip_config.json", f"{repo}/open_clip_model.safetensors",
    ]  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HEAD_URL", "http://localhost:9/last.pt")
    name = "clip_dinoiser_last.pt"
    with pytest.raises(WeightError, match=f"head could not .*localhost:9.*{folder}' as {name}"):
        locate_head("official")
    folder.mkdir()
    for path in (Path("weights", name), Path("weights", f"{Path(repo).name}.safetensors")):
        path.write_bytes(b"x")
    assert locate_head("official") == Path("weights", name)
    assert locate_laion() == path


# ---------------------------------------------------------------------------------------- backbones


def test_names_of_backbones() -> None:
    for name, (family, size) in PRETRAINED.items():
        row = family.sizes[size]
        assert name == f"{family.name}:{size}" and row.width % row.heads == 0
        assert all(address.startswith("https://") for address in row.addresses)
        towers = family.towers or family.name
        assert bool(row.repo) == family.gated == (towers == "dinov3")
    assert FAMILIES["dinov2-reg"].sizes["B/14"].addresses == (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth",
    )


def test_a_backbone_is_looked_for_in_the_folder_of_weights(nowhere: Path, online: Hub) -> None:
    (nowhere / "weights").mkdir()
    folder = nowhere / "weights/dinov3-vits16-pretrain-lvd1689m"
    for name, file in {
        "dinov2-reg:B/14": "dinov2_vitb14_reg4_pretrain.pth",
        "dinov2:B/14": "dinov2_vitb14_pretrain.pth",
        "dinov3:B/16": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
        "dinov3:L/16": "dinov3-vitl16-pretrain-lvd1689m.safetensors",
        "dinov3:S/16": f"{folder.name}/model.safetensors",
        "tips:So400m/14": "tips_v2_so400m14_vision.npz",
        "dinotxt-v2:L/14": "dinov2_vitl14_reg4_pretrain.pth",
    }.items():
        path = Path("weights", file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        assert locate_backbone(name) == path
    assert online.asked == []
    assert locate_backbone(path) == path
    for name, files in {
        "tips:B/14": ["tips_v2_b14_text.npz"],
        "dinotxt-v2:L/14": [
            f"dinov2_vitl14_reg4_dinotxt_tet1280d20h24l_{x}.pth"
            for x in ("vision_head", "text_encoder")
        ],
        "dinov2:B/14": [],
    }.items():
        paths = [Path("weights", file) for file in files]
        for text in paths:
            text.write_bytes(b"")
        assert locate_texts(name) == paths
    with pytest.raises(WeightError, match="'dinov2:H/14' do not exist.*dinov2-reg:S/14"):
        locate_backbone("dinov2:H/14")


def test_a_gated_backbone_is_downloaded_from_the_hub(
    online: Hub, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = "facebook/dinov3-vitb16-pretrain-lvd1689m"
    assert locate_backbone("dinov3:B/16").read_bytes() == CONTENT
    assert online.asked == [f"{repo}/{x}@main" for x in ("config.json", "model.safetensors")]

    def refuse(url: str, timeout: float) -> None:
        raise ValueError("401: access is restricted")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(WeightError) as error:
        locate_backbone("dinov3:L/16")
    for part in (
        "DINOv3 L/16 could not be downloaded", "(ValueError: 401: access is restricted)",
        "accept the DINOv3 License at https://huggingface.co/facebook/dinov3-vitl16-",
        str(nowhere / "weights"), "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth (from https://dl.",
        "under the name dinov3-vitl16-pretrain-lvd1689m.safetensors",
    ):  # fmt: skip
        assert part in str(error.value)


def test_a_backbone_in_several_files(
    online: Hub, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}

    def metadata(url: str, timeout: float) -> None:
        if url.endswith("model.safetensors"):
            raise EntryNotFoundError("404")

    def download(repo: str, filename: str, **options: Any) -> str:
        path = Path(online.download(repo, filename, **options))
        if filename.endswith(".index.json"):
            path.write_text(json.dumps({"weight_map": listed}))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    index = locate_backbone("dinov3:7B/16")
    assert index.name == "model.safetensors.index.json"
    names = ["config.json", index.name, "1.safetensors", "2.safetensors"]
    assert [x.split("/")[-1] for x in online.asked] == [f"{name}@main" for name in names]
    assert locate_backbone("dinov3:7B/16") == index and len(online.asked) == 4
    (index.parent / "2.safetensors").unlink()  # as after a download that was interrupted
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", online.refuse)
    with pytest.raises(WeightError, match="DINOv3 7B/16 could not be downloaded"):
        locate_backbone("dinov3:7B/16")


def test_a_backbone_is_downloaded_from_the_address_that_has_it(
    release: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = hub.TCL_URL.replace("tcl.pth", "so400m14.npz")
    absent = "http://localhost:9/so14.npz"
    sizes = FAMILIES["tips"].sizes
    monkeypatch.setitem(sizes, "So400m/14", Size(1152, 27, 16, (absent, there)))
    path = locate_backbone("tips:So400m/14")
    assert path == tmp_path / "cache/tcl_jax/weights/so400m14.npz" and path.read_bytes() == CONTENT
    assert locate_backbone("tips:So400m/14") == path and release["calls"] == 1
    monkeypatch.setitem(sizes, "So400m/14", Size(1152, 27, 16, (absent,)))
    with pytest.raises(WeightError, match="TIPSv2 So400m/14 could not .*localhost:9.*as so14.npz"):
        locate_backbone("tips:So400m/14")
