"""Every way in which CLIP's tensors are named, and files that only look like a CLIP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tcl_jax.weights.clip import clip_params, infer_clip_config
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.model_config import read_activation
from tcl_jax.weights.names import to_openai_names
from tcl_jax.weights.tcl import find_tcl
from tcl_jax.weights.tensor_file import TensorSpec
from tests.reference import load

Tensors = dict[str, np.ndarray]
OUTSIDE = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def hugging_face() -> Tensors:
    """The reference CLIP as `transformers` would save it."""
    tensors: Tensors = {}
    for name, tensor in load("clip_state_dict").items():
        if name in ("visual.proj", "text_projection"):
            new = {"visual.proj": "visual_projection.weight"}.get(name, "text_projection.weight")
            tensors[new] = tensor.T
            continue
        for ours, theirs in OUTSIDE.items():
            name = name.replace(ours, theirs) if not name.startswith(theirs) else name
        if "in_proj" in name:
            before, kind = name.split("attn.in_proj_")
            for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
                tensors[f"{before}self_attn.{letter}_proj.{kind}"] = part
        else:
            tensors[name] = tensor
    for tower in ("vision", "text"):
        tensors[f"{tower}_model.embeddings.position_ids"] = np.arange(77)[None]
    return tensors


def open_clip(prefix: str) -> Tensors:
    """The reference CLIP as OpenCLIP would save it."""
    tensors = {
        name if name.startswith(("visual.", "logit_scale")) else prefix + name: tensor
        for name, tensor in load("clip_state_dict").items()
    }
    return {**tensors, f"{prefix}attn_mask": np.full((77, 77), -np.inf, np.float32)}


ONE = np.zeros(1, np.float32)


def tiny_clip_names(tensors: Tensors, wrapper: str = "") -> Tensors:
    """As TinyCLIP saves it: each tower in a module of its own, with DDP around each."""

    def rename(name: str) -> str:
        tower = "image_encoder" if name.startswith("visual.") else "text_encoder"
        return f"_{'logit_scale' if name == 'logit_scale' else tower}.{wrapper}{name}"

    return {rename(name): tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


STYLES = {
    "openai": lambda: {**load("clip_state_dict"), "input_resolution": np.array(64)},
    "openai with a bias of its loss": lambda: {**load("clip_state_dict"), "logit_bias": ONE},
    "openai as in TinyCLIP": lambda: tiny_clip_names(load("clip_state_dict")),
    "openai as in TinyCLIP with DDP": lambda: tiny_clip_names(load("clip_state_dict"), "module."),
    "openclip": lambda: open_clip(""),
    "openclip with text.": lambda: open_clip("text."),
    "huggingface": hugging_face,
}


class Lazy(Mapping[str, np.ndarray]):
    """Notes what is read."""

    def __init__(self, tensors: Tensors, path: str = "clip.safetensors") -> None:
        self._tensors, self.path, self.read = tensors, Path(path), list[str]()
        self.specs = {name: TensorSpec(x.shape, x.dtype) for name, x in tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.append(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_the_same_parameters(style: str) -> None:
    expected = load("clip_state_dict")
    tensors, found = to_openai_names(STYLES[style]())
    assert found == style.split()[0]
    assert set(tensors) == set(expected) and len(tensors) == len(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)
    config = infer_clip_config(expected)
    assert infer_clip_config(tensors) == config
    jax.tree.map(
        np.testing.assert_array_equal, clip_params(tensors, config), clip_params(expected, config)
    )


@pytest.mark.parametrize(
    ("style", "prefix"),  # the parts of wrappers go before anybody looks at the style
    [("openai", "module._orig_mod."), ("openclip with text.", "model._fsdp_wrapped_module."),
     ("huggingface", "a.b.c.")],
)  # fmt: skip
def test_a_clip_is_found_under_any_prefix(style: str, prefix: str) -> None:
    others = {
        "loss.weight": ONE, "logit_scale_of_loss": ONE, "optimizer.state.0.exp_avg": ONE,
        "queue": ONE, "decoder.layers.0.self_attn.q_proj.weight": ONE,
    }  # fmt: skip
    tensors, found = to_openai_names({**others, **under(prefix, STYLES[style]())})
    assert found == style.split()[0] and tensors.unused >= len(others)
    for name, tensor in load("clip_state_dict").items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)


@pytest.mark.parametrize(
    ("prefixes", "asked"),
    [
        (("model.", "model_ema."), ["model", "model_ema"]),
        (("student.module.", "teacher._orig_mod."), ["student", "teacher._orig_mod."]),
        (("", "ema."), [".", "ema."]),
        (("module.", ""), ["module", "."]),
        (("clip.", "clip.old."), ["clip", "clip.old"]),
    ],
)
def test_of_two_clips_a_prefix_chooses(prefixes: tuple[str, str], asked: list[str]) -> None:
    clips = [load("clip_state_dict"), load("clip_state_dict")]
    clips[1]["logit_scale"] = np.array(7, np.float16)
    both = {**under(prefixes[0], clips[0]), **under(prefixes[1], clips[1])}
    with pytest.raises(WeightError, match="2 CLIPs.* choose one with --prefix") as error:
        to_openai_names(both)
    for name in asked:
        assert f"'{name.rstrip('.').replace('._orig_mod', '') or '.'}'" in str(error.value)
    with pytest.raises(WeightError, match="the prefix 'nobody' fits none"):
        to_openai_names(both, "nobody")
    for prefix, clip in zip(asked, clips, strict=True):
        tensors, _ = to_openai_names(both, prefix)
        np.testing.assert_array_equal(tensors["logit_scale"], clip["logit_scale"])


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.", "state_dict."])
def test_tcl_is_found_under_any_prefix(prefix: str) -> None:
    expected = load("tcl_state_dict")
    beside = {"clip_text_encoder.token_embedding.weight": ONE}
    tensors = find_tcl({**under(prefix, {**expected, **beside}), "optimizer.state.0.exp_avg": ONE})
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, strict=True)
    two = {**under("model.", expected), **under("ema.", expected)}
    with pytest.raises(WeightError, match="2 TCLs, with names that begin with 'ema', 'model'"):
        find_tcl(two)
    assert find_tcl(two, "ema").prefix == "ema."
    with pytest.raises(WeightError, match="holds no CLIP"):
        to_openai_names(under(prefix, {**expected, **beside}))


@pytest.mark.parametrize("style", STYLES)
def test_nothing_is_read_before_it_is_asked_for(style: str) -> None:
    lazy = Lazy(STYLES[style]())
    tensors, _ = to_openai_names(lazy)
    assert "visual.proj" in tensors and "visual.conv1.bias" not in tensors
    assert {name: spec.shape for name, spec in tensors.specs.items()} == {
        name: tensor.shape for name, tensor in load("clip_state_dict").items()
    }
    assert {spec.dtype for spec in tensors.specs.values()} == {np.dtype(np.float16)}
    # The checker of types looks at the first item of a mapping, here and there.
    signs = ("visual.conv1.weight", OUTSIDE["visual.conv1.weight"])
    assert all(name == next(iter(lazy)) or name.endswith(signs) for name in lazy.read)
    lazy.read.clear()
    assert tensors["visual.transformer.resblocks.1.attn.in_proj_bias"].shape == (384,)
    assert len(lazy.read) == (3 if style == "huggingface" else 1)


def test_openclip_is_known_by_the_name_of_its_file() -> None:
    assert to_openai_names(Lazy(load("clip_state_dict")))[1] == "openai"
    file = "hub/open_clip_model.safetensors"
    assert to_openai_names(Lazy(load("clip_state_dict"), file))[1] == "openclip"


def without(tensors: Tensors, *beginnings: str) -> Tensors:
    return {name: x for name, x in tensors.items() if not name.startswith(beginnings)}


LORA = "self_attn.q_proj.base_layer.weight"
BROKEN = {
    "something else": (lambda: {"bert.layer.0.weight": ONE}, "its 1 tensors, such as bert.layer.0"),
    "SigLIP": (lambda: {**hugging_face(), "vision_model.head.probe": ONE}, "vision_model.head"),
    "LoRA": (
        lambda: {
            f"base_model.model.{name}".replace("self_attn.q_proj.weight", LORA): x
            for name, x in hugging_face().items()
        },
        rf"lacks 6 of \d+ tensors: .*has 6 that .*{LORA}.*adapters .LoRA. merged",
    ),
    "no text": (
        lambda: without(hugging_face(), "text_"),
        "such as vision_model.embeddings.patch_embedding.weight under '', no prefix has",
    ),
    "one of q, k, v": (
        lambda: without(hugging_face(), "text_model.encoder.layers.1.self_attn.k_proj.bias"),
        r"lacks 1 of \d+ tensors: text_model.encoder.layers.1.self_attn.k_proj.bias",
    ),
    "a block in between": (
        lambda: without(load("clip_state_dict"), "visual.transformer.resblocks.2."),
        r"lacks 12 of \d+ tensors: visual.transformer.resblocks.2",
    ),
    "no blocks": (
        lambda: without(hugging_face(), "text_model.encoder."),
        r"lacks 16 of \d+ tensors: text_model.encoder.layers.0",
    ),
    "a number too large": (
        lambda: {**open_clip(""), f"transformer.resblocks.{'9' * 5000}.ln_1.bias": ONE},
        "has 1 that OpenAI's lacks: transformer.resblocks.999",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_clip_is_described(case: str) -> None:
    make, message = BROKEN[case]
    with pytest.raises(WeightError, match=message) as error:
        to_openai_names(make())
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("shape", [(), (64, 128)])
def test_query_key_and_value_of_different_shapes(shape: tuple[int, ...]) -> None:
    name = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    tensors, _ = to_openai_names({**hugging_face(), name: np.zeros(shape, np.float16)})
    with pytest.raises(WeightError, match=f"{name}.*the same"):
        _ = tensors.specs


def hugging_face_config(**text: Any) -> dict[str, Any]:
    sizes = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
    vision = {**sizes, "hidden_size": 768, "num_attention_heads": 12}
    text = {**sizes, "hidden_size": 512, "num_attention_heads": 8, **text}
    return {"model_type": "clip", "vision_config": vision, "text_config": text}


def openclip_config(**vision: Any) -> dict[str, Any]:
    text = {"width": 512, "heads": 8, "context_length": 77}
    return {"model_cfg": {"vision_cfg": {"width": 768, "layers": 12, **vision}, "text_cfg": text}}


def quick(config: dict[str, Any]) -> dict[str, Any]:
    config["model_cfg"]["quick_gelu"] = True
    return config


@pytest.mark.parametrize(
    ("style", "file", "config", "expected"),
    [
        ("huggingface", "config.json", hugging_face_config(), "gelu"),
        ("huggingface", "config.json", {"vision_config": {}, "text_config": {}}, "quick_gelu"),
        ("openclip", "open_clip_config.json", openclip_config(), "gelu"),
        ("openclip", "open_clip_config.json", quick(openclip_config()), "quick_gelu"),
        ("openai", "open_clip_config.json", quick(openclip_config(head_width=64)), "quick_gelu"),
        ("openclip", "open_clip_config.json", openclip_config()["model_cfg"], "gelu"),
        # The other library's file is not read.
        ("huggingface", "open_clip_config.json", openclip_config(), None),
        ("openclip", "config.json", hugging_face_config(), None),
    ],
)
def test_activation_is_read_beside_the_weights(
    tmp_path: Path, style: str, file: str, config: dict[str, Any], expected: str | None
) -> None:
    weights = tmp_path / "weights.safetensors"
    assert read_activation(weights, style) is None
    (tmp_path / file).write_text('{"lr": 1e-3}')  # of whoever trained the model
    assert read_activation(weights, style) is None
    (tmp_path / file).write_text(json.dumps(config))
    assert read_activation(weights, style) == expected
    assert read_activation(str(weights), style) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hugging_face_config(hidden_act="quick_gelu"), "towers differ in hidden_act"),
        (hugging_face_config(num_attention_heads=16), "num_attention_heads is 16 where.* 8"),
        ({**hugging_face_config(), "model_type": "metaclip_2"}, "'metaclip_2', not 'clip'"),
        ({"vision_config": {}}, "it has no section 'text_config'"),
        ({"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}},
         "hidden_act is 'relu', not one of quick_gelu, gelu"),
        (openclip_config(head_width=80), "vision_cfg.head_width is 80 where CLIP's is 64"),
        ({"model_cfg": {**openclip_config()["model_cfg"], "quick_gelu": "no"}}, "quick_gelu is"),
        ('{"model_cfg": ', "Expecting value"),
    ],
)  # fmt: skip
def test_configs_of_other_architectures(tmp_path: Path, config: Any, message: str) -> None:
    openclip = "model_cfg" in config
    file = tmp_path / ("open_clip_config.json" if openclip else "config.json")
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(WeightError, match=message) as error:
        read_activation(tmp_path / "w.pt", "openclip" if openclip else "huggingface")
    assert str(file) in str(error.value)


def test_models_whose_names_would_become_one_stay_apart() -> None:
    four = load("clip_state_dict")
    three = {name: x for name, x in four.items() if ".resblocks.3." not in name}
    both = {**three, **under("module.", {name: x + 1 for name, x in four.items()})}
    for prefix, blocks, more in ((".", 3, 0), ("module", 4, 1)):
        found, _ = to_openai_names(both, prefix)
        assert infer_clip_config(found.specs).vision_layers == blocks
        np.testing.assert_array_equal(found["visual.proj"], four["visual.proj"] + more)
    beside, _ = to_openai_names({**under("module.", four), "logit_scale": np.float32(-3)})
    assert beside["logit_scale"] == four["logit_scale"]


def test_two_towers_without_a_temperature_are_a_clip() -> None:
    towers = {name: tensor for name, tensor in hugging_face().items() if name != "logit_scale"}
    found, _ = to_openai_names(towers)
    assert infer_clip_config(found.specs).vision_layers == 4
    assert found["logit_scale"] == np.float32(np.log(1 / 0.07))
    vision = under("vision.", {name: x for name, x in towers.items() if "vis" in name})
    text = under("text.", {name: x for name, x in towers.items() if "text" in name})
    with pytest.raises(WeightError, match=r"under 'text.' and .* under 'vision.'"):
        to_openai_names({**vision, **text})
