"""Folders as OpenCLIP and Hugging Face's libraries write them, in one file or in several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from tcl_jax import convert as command
from tcl_jax.weights.folders import open_model, trained_clip
from tcl_jax.weights.load import load_clip
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import write_safetensors
from tests.reference import load
from tests.torch_files import save_state_dict
from tests.weights.test_names import hugging_face, hugging_face_config, openclip_config
from tests.weights.test_readers import safetensors_of

INDEX = "model.safetensors.index.json"


def openclip_folder(folder: Path, bin_: bool = False) -> None:
    vision = {"width": 128, "layers": 4, "patch_size": 16, "image_size": 64}
    config = openclip_config(**vision)
    config["model_cfg"]["text_cfg"].update(width=64, heads=1)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if bin_:
        save_state_dict(folder / "open_clip_pytorch_model.bin", load("clip_state_dict"))
    else:
        write_safetensors(folder / "open_clip_model.safetensors", load("clip_state_dict"), {})


def config_json(folder: Path, **more: object) -> None:
    config = {**hugging_face_config(num_attention_heads=1, hidden_size=64), **more}
    config["vision_config"].update(hidden_size=128, num_attention_heads=2)
    (folder / "config.json").write_text(json.dumps(config))


def sharded(folder: Path, bin_: bool = False, parts: int = 3) -> None:
    """As `save_pretrained(max_shard_size=...)` leaves it."""
    config_json(folder)
    tensors, places = hugging_face(), {}
    stem, suffix = ("pytorch_model", "bin") if bin_ else ("model", "safetensors")
    for i in range(parts):
        name = f"{stem}-{i + 1:05}-of-{parts:05}.{suffix}"
        part = {key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)[i::parts]}
        places |= dict.fromkeys(part, name)
        if bin_:
            save_state_dict(folder / name, part)
        else:
            write_safetensors(folder / name, part, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def single(folder: Path) -> None:
    config_json(folder)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in hugging_face().items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    # As hub folders have it: others of the same weights, and what is none.
    (folder / "pytorch_model.bin").write_bytes(b"is not read")
    (folder / "tokenizer.json").write_text("{}")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "OpenCLIP, safetensors": openclip_folder,
    "OpenCLIP, bin": lambda folder: openclip_folder(folder, bin_=True),
    "Hugging Face": single,
    "Hugging Face, sharded safetensors": sharded,
    "Hugging Face, sharded bin": lambda folder: sharded(folder, bin_=True),
    "one file of any name": lambda folder: np.savez(folder / "x.npz", **load("clip_state_dict")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_read(
    layout: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    LAYOUTS[layout](tmp_path)
    expected = load_clip(Path("tests/golden/clip_state_dict.npz"), activation="gelu")
    caplog.clear()
    found = load_clip(tmp_path)
    configured = "any name" not in layout
    assert found.config.activation == ("gelu" if configured else "quick_gelu")
    assert ("no config file beside it" in caplog.text) is not configured
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    command.run(["inspect", str(tmp_path)])
    output = capsys.readouterr().out
    assert "a CLIP of other sizes" in output and found.origin["sha256"] in output


def test_the_index_itself_is_read_and_each_file_counts(tmp_path: Path) -> None:
    sharded(tmp_path)
    before = load_clip(tmp_path / INDEX).origin["sha256"]
    part = tmp_path / "model-00003-of-00003.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert load_clip(tmp_path).origin["sha256"] != before


def test_tensors_of_unknown_kinds_beside_a_clip_are_no_fault(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(safetensors_of("F8_E4M3", b"\0" * 4))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["a"] = "other.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert load_clip(tmp_path).config.activation == "gelu"
    with open_model(tmp_path / INDEX) as file:
        assert file.left_out == {"a": "F8_E4M3"} and "a" not in file


def lose(name: str) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        sharded(folder)
        (folder / name).unlink()

    return broken


def with_index(index: object) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        sharded(folder)
        (folder / INDEX).write_text(json.dumps(index))

    return broken


def epochs(folder: Path) -> None:
    for i in (1, 2):
        save_state_dict(folder / f"epoch_{i}.pt", {"state_dict": load("clip_state_dict")})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (lose("model-00002-of-00003.safetensors"), "1 are not there: mod"),
    "no index": (lose(INDEX), "model-00001-of-00003.*index.json is needed"),
    "an index of nothing": (with_index({}), "KeyError"),
    "an index of files elsewhere": (with_index({"weight_map": {"a": "../a.bin"}}), "beside it"),
    "a tensor is missing": (
        with_index({"weight_map": {"a": "model-00001-of-00003.safetensors"}}),
        "list 1 tensors that their files lack, such as 'a'",
    ),
    "several": (epochs, "holds epoch_1.pt, epoch_2.pt; give the path of the one"),
    "nothing": (lambda _: None, "holds no weights; .*open_clip_model.safetensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_folders_that_cannot_be_read_say_why(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    make(tmp_path)
    with pytest.raises(WeightError, match=message) as error:
        load_clip(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_what_transformers_writes(tmp_path: Path) -> None:
    """CLIPSeg's CLIP, in several files."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    vision = {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "image_size": 32,
        "num_attention_heads": 1, "patch_size": 8,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 99,
        "num_attention_heads": 1, "max_position_embeddings": 16, "bos_token_id": 97,
        "eos_token_id": 98,
    }  # fmt: skip
    both = {"vision_config": vision, "text_config": text}
    more = {"projection_dim": 16, "reduce_dim": 16, "extract_layers": [0]}
    more["decoder_num_attention_heads"] = 1
    model = transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**both, **more))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / INDEX).is_file()
    seg = load_clip(tmp_path)
    assert seg.config.embed_dim == 16 and seg.config.vision_layers == 3
    assert seg.origin["prefix"] == "clip." and seg.config.activation == "quick_gelu"


def test_a_repository_in_the_cache_of_a_hub(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots/abc"
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    single(snapshot)
    (snapshot / "model.safetensors").rename(repository / "blobs/1")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert load_clip(repository).config.activation == "gelu"
    (repository / "snapshots/def").mkdir()
    with pytest.raises(WeightError, match="models--a--b.*holds abc, def; give the path"):
        load_clip(repository)


def test_a_run_s_workdir_is_its_clip_of_most_steps(tmp_path: Path) -> None:
    assert trained_clip(tmp_path) is None and trained_clip(tmp_path / "absent") is None
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightError, match="a run's workdir whose config.json cannot be read"):
        trained_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"objective": "tcl"}')
    with pytest.raises(WeightError, match="with objective='tcl', and a CLIP is needed"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"objective": "clip"}')
    with pytest.raises(WeightError, match="is not at its end: there is no clip_"):
        trained_clip(tmp_path)
    tensors = load("clip_state_dict")
    for step in ("9", "10", "x"):
        write_safetensors(tmp_path / f"clip_{step}.safetensors", tensors, {"activation": "gelu"})
    assert trained_clip(tmp_path) == tmp_path / "clip_10.safetensors"
    assert load_clip(tmp_path).config.activation == "gelu"
