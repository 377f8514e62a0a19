"""Numbers and words of the named protocols, as their authors' configurations have them."""

from __future__ import annotations

from typing import Any

import pytest

from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import BENCHMARKS, custom_benchmark, load_benchmark
from tcl_jax.evaluation.protocol import Protocol, make_protocol
from tcl_jax.inference.model import Model
from tcl_jax.inference.presets import PROTOCOLS, load_preset
from tcl_jax.inference.settings import default_settings
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.dense import SCLIP, MaskCLIP
from tcl_jax.models.methods import METHODS
from tcl_jax.models.tcl import TCL

B16 = CLIPConfig(512, 224, 16, 768, 12, 512, 12)


def protocol_of(name: str, method: Any = MaskCLIP, **choices: Any) -> Protocol:
    made = method(B16)
    return make_protocol(Model(made, {}, default_settings(made)), name, **choices)


@pytest.mark.parametrize(
    ("name", "benchmark", "expected"),
    [
        ("sclip", "voc", (336, 224, 112, 65.0, 0.1, 0.1, "none")),
        ("sclip", "coco_stuff", (448, 224, 112, 40.0, 0.1, None, "none")),
        ("sclip", "context", (336, 224, 112, 50.0, 0.1, None, "none")),
        ("naclip", "voc20", (336, 0, 112, 40.0, 0.1, None, "pamr")),
        ("naclip", "cityscapes", (560, 224, 112, 40.0, 0.1, None, "pamr")),
        ("clearclip", "context", (448, 448, 224, 50.0, 0.15, None, "none")),
        ("clearclip", "cityscapes", (448, 224, 224, 50.0, 0.5, None, "none")),
        ("sc_clip", "voc", (336, 224, 112, 50.0, 0.15, 0.1, "none")),
        ("sc_clip", "coco_object", (336, 224, 112, 55.0, 0.35, None, "none")),
        ("proxyclip", "cityscapes", (448, 224, 112, 40.0, 0.2, None, "none")),
        ("proxyclip", "ade20k", (448, 336, 112, 40.0, 0.2, None, "none")),
        ("proxyclip", "coco_object", (336, 336, 112, 40.0, 0.25, None, "none")),
        ("clip_dinoiser", "voc", (448, 448, 224, 100.0, 0.0, None, "none")),
        ("tcl", "voc", (448, 448, 224, 1.0, 0.4, None, "pamr")),
    ],
)
def test_numbers(name: str, benchmark: str, expected: tuple[Any, ...]) -> None:
    found = protocol_of(name).of(load_benchmark(benchmark))
    fields = (
        "short_side",
        "window",
        "stride",
        "logit_scale",
        "threshold",
        "area_threshold",
        "refine",
    )
    assert tuple(getattr(found, field) for field in fields) == expected
    masks = name == "tcl"
    assert (found.templates, found.normalize_sentences) == (
        ("custom", False) if masks else ("full", True)
    )
    assert found.pixels == ("imagenet" if masks else "clip") and found.resize == "opencv"
    assert found.pamr_dilations == (8, 16) and found.pamr_iterations == 10


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("tcl", {"voc": 20, "coco_object": 80, "ade20k": 150}),
        ("clearclip", {"voc": 21, "context": 60, "coco_object": 81, "voc20": 20}),
        ("sclip", {"voc": 56, "voc20": 30, "coco_object": 113, "context": 60, "context59": 59}),
        ("naclip", {"voc": 56, "voc20": 30, "coco_object": 113}),
        ("sc_clip", {"voc": 56, "voc20": 30, "coco_object": 113}),
        ("proxyclip", {"voc": 46, "voc20": 20, "coco_object": 97, "context": 60}),
        ("clip_dinoiser", {"voc": 21, "context": 60, "coco_object": 81}),
    ],
)
def test_numbers_of_words(name: str, counts: dict[str, int]) -> None:
    protocol = protocol_of(name)
    for benchmark, count in counts.items():
        words = protocol.words_of(load_benchmark(benchmark))
        assert sum(map(len, words)) == count
        assert name == "tcl" or len(words) == len(load_benchmark(benchmark).names)
    for benchmark in BENCHMARKS:
        texts = protocol.texts_of(load_benchmark(benchmark))
        assert check_words(texts) == [*texts]  # all differ for CLIP


def test_words() -> None:
    sclip = protocol_of("sclip")
    voc = dict(zip(load_benchmark("voc").names, sclip.words_of(load_benchmark("voc")), strict=True))
    assert voc["background"][:2] == ("sky", "wall") and voc["boat"] == ("ship",)
    assert voc["person"][-1] == "person in jacket" and voc["tvmonitor"][-1] == "screen"
    thing = load_benchmark("coco_object")
    words, numbers = sclip.words_of(thing), sclip.synonyms_of(thing)
    bed = thing.names.index("bed")
    assert words[bed] == ("bed",) and numbers[bed][0] in numbers[0]  # of the background, too
    assert words[thing.names.index("person")][-1] == "body" and ("traffic light",) in words
    assert protocol_of("proxyclip").words_of(thing)[0][-1] == "rail"
    ade = protocol_of("clearclip").words_of(load_benchmark("ade20k"))
    assert ("chestofdrawers",) in ade and ("bed",) in ade and ("airplane",) in ade
    dinoiser = protocol_of("clip_dinoiser")
    assert ("aeroplane",) in dinoiser.words_of(thing)
    assert ("airplane",) in dinoiser.words_of(load_benchmark("coco_stuff"))
    assert ("potted plant",) in dinoiser.words_of(load_benchmark("context"))
    assert [dinoiser.of(load_benchmark(x)).cleaning for x in ("voc", "context")] == [True, False]


def test_a_benchmark_of_ones_own_has_what_holds_for_most() -> None:
    own = custom_benchmark("i", "l", [["Sky", "air"], "cat"], background=True, threshold=0.3)
    sclip = protocol_of("sclip")
    words = sclip.words_of(own)
    assert len(words) == 3 and len(words[0]) == 25 and "sky" not in words[0]
    rule = sclip.rule_of(own)
    assert rule is not None and (rule.logit_scale, rule.threshold) == (40.0, 0.3)
    plain = custom_benchmark("i", "l", ["dog", "cat"])
    rule = sclip.rule_of(plain)
    assert rule is not None and rule.threshold == 0.0 and rule.classes == ((0,), (1,))
    assert protocol_of("tcl").rule_of(own) is None


def test_what_is_chosen_goes_before_the_protocol() -> None:
    voc, city = load_benchmark("voc"), load_benchmark("cityscapes")
    chosen = protocol_of("sclip", logit_scale=30.0, area_threshold=0.2, threshold=0.5)
    of_voc = chosen.of(voc)
    assert (of_voc.logit_scale, of_voc.area_threshold, of_voc.threshold) == (30.0, 0.2, 0.5)
    rules = [chosen.rule_of(load_benchmark(name)) for name in ("voc", "voc20")]
    # Without a background no class is smaller for one that is not there.
    assert [rule and rule.area_threshold for rule in rules] == [0.2, None]
    assert of_voc.names and chosen.of(city).short_side == 560
    small = protocol_of("sclip", short_side=168).of(city)
    assert (small.short_side, small.window, small.stride) == (168, 112, 56)
    assert protocol_of("proxyclip", stride=56).of(city).stride == 56
    whole = protocol_of("naclip", window=224).of(voc)
    assert (whole.window, whole.stride, whole.short_side) == (224, 112, 336)
    with pytest.raises(InputError, match="logit_scale is of protocols that compare cosines"):
        protocol_of("tcl", logit_scale=30.0)


def test_every_method_has_a_protocol_and_takes_every_other() -> None:
    assert {method.protocol for method in METHODS.values()} <= {*PROTOCOLS}
    for name in PROTOCOLS:
        assert {*load_preset(name).benchmarks} <= {*BENCHMARKS}
        for method in (TCL, SCLIP):
            found = protocol_of(name, method)
            assert found.protocol == name and found.threshold is not None
            assert protocol_of("own", method) == protocol_of(method.protocol, method)
    # Masks keep their own score of the background, cosines have none to keep.
    assert (protocol_of("tcl", SCLIP).threshold, protocol_of("tcl", SCLIP).refine) == (0.4, "pamr")
    with pytest.raises(InputError, match="'mine' is unknown; choose one of own, tcl, sclip"):
        protocol_of("mine")
