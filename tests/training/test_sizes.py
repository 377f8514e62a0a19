"""The sizes of a run's CLIP: of a variant, of the weights without reading them, or as given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs.shapes import get_config as shapes_config
from configs.tcl import get_config as paper_config
from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.config_flags import read_config
from tcl_jax.errors import InputError
from tcl_jax.models.clip import VARIANTS, CLIPConfig
from tcl_jax.training.build import abstract_experiment, build_experiment
from tcl_jax.weights import load
from tcl_jax.weights.load import Pretrained, load_clip, load_configured, sizes_of
from tcl_jax.weights.tensor_file import TensorFile
from tests.reference import GOLDEN

CLIP = str(GOLDEN / "clip_state_dict.npz")
OPENCLIP = b'{"model_cfg": {"vision_cfg": {}, "text_cfg": {"width": 512}}}'
ROOT = Path(__file__).parent.parent.parent


def changed(config: ConfigDict, **fields: object) -> ConfigDict:
    config.update_from_flattened_dict({f"model.{name}": x for name, x in fields.items()})
    return config


def clip_config(config: ConfigDict) -> CLIPConfig:
    return sizes_of(config.model.to_dict())


def loaded(config: ConfigDict) -> Pretrained:
    return load_configured(config.model.to_dict())


def test_every_size_is_a_field_that_can_be_given() -> None:
    overrides = ["--config.model.variant=custom", "--config.model.sizes.embed_dim=48"]
    config = read_config(str(ROOT / "configs/tcl.py"), overrides, "plan")
    assert config is not None
    with pytest.raises(InputError, match=r"give model.sizes.resolution, .*text_layers, too"):
        clip_config(config)
    assert set(paper_config().model.sizes) == set(CLIPConfig.__dataclass_fields__)
    smaller = changed(paper_config(), variant="ViT-B/32", **{"sizes.vision_layers": 3})
    assert clip_config(smaller) == CLIPConfig(512, 224, 32, 768, 3, 512, 12)


def test_a_name_tells_sizes_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, sizes in VARIANTS.items():
        assert clip_config(changed(paper_config(), weights=name)) == sizes


def test_a_file_tells_them_and_no_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(paper_config(), weights=CLIP)
    clip = loaded(config)
    assert clip.config.vision_layers == 4
    assert clip.params["text"]["token_embedding"].shape[0] == 600

    read = set[str]()
    get = TensorFile.__getitem__
    monkeypatch.setattr(TensorFile, "__getitem__", lambda file, x: read.add(x) or get(file, x))
    assert clip_config(config) == clip.config
    assert len(read) < 3  # the checker of types looks at one
    assert clip_config(shapes_config()).vision_width == 96


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": CLIP, "sizes.embed_dim": 48}, "sizes.embed_dim=48, and the weights have 32"),
        ({"weights": ""}, "variant='auto' takes the sizes from model.weights"),
        ({"weights": "none.pt"}, "'none.pt' do not exist"),
        ({"weights": CLIP, "variant": "ViT-H/14"}, "'ViT-H/14' is unknown; .*'auto'"),
    ],
)
def test_sizes_that_nothing_tells(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        clip_config(changed(paper_config(), **fields))


def test_a_clip_trains_further_from_its_weights() -> None:
    config = changed(paper_config(), weights=CLIP, variant="custom", **{"sizes.embed_dim": 96})
    config.objective = "clip"
    experiment, given = build_experiment(config), load_clip(CLIP)
    assert experiment.method.describe() == {"clip": dataclasses.asdict(given.config)}
    assert not experiment.frozen and not experiment.identities
    assert experiment.begun_from["clip"]["arrays_sha256"] == hash_leaves(given.params)
    assert hash_leaves(experiment.params["clip"]) == hash_leaves(given.params)
    shapes = jax.tree.map(lambda x: x.shape, abstract_experiment(config).params)
    assert shapes == jax.tree.map(lambda x: x.shape, experiment.params)


def test_a_prefix_that_fits_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="prefix 'teacher' is of no model in the files given"):
        loaded(changed(paper_config(), weights=CLIP, prefix="teacher"))


def test_the_activation_is_taken_where_nothing_else_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[str]()
    opening = load.open_model
    monkeypatch.setattr(load, "open_model", lambda path: opened.append(path.name) or opening(path))
    sizes = dataclasses.asdict(clip_config(changed(paper_config(), weights=CLIP)))
    custom = {f"sizes.{name}": size for name, size in sizes.items()}
    custom |= {"variant": "custom", "sizes.activation": "gelu"}
    opened.clear()
    for fields in ({"sizes.activation": "gelu"}, custom):
        config = changed(paper_config(), weights=CLIP, **fields)
        assert loaded(config).config.activation == "gelu"
    assert len(opened) == 2, "once each"
    for name in ("clip.npz", "open_clip_config.json"):
        content = Path(CLIP).read_bytes() if name == "clip.npz" else OPENCLIP
        (tmp_path / name).write_bytes(content)
    other = changed(paper_config(), weights=str(tmp_path / "clip.npz"), **custom)
    other.model.sizes.activation = "quick_gelu"
    with pytest.raises(InputError, match="activation=quick_gelu is asked for, .* is gelu"):
        loaded(other)
    other.model.sizes.activation = ""
    assert loaded(other).config.activation == "gelu"
