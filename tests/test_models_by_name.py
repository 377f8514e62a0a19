"""--model, --weights and --protocol, of every method, in every command that takes a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from tcl_jax import Segmenter, convert, evaluate, export, segment
from tcl_jax.demo.answers import Answers
from tcl_jax.errors import InputError
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.inference.model import load_model
from tcl_jax.inference.pretrained import RELEASES, load_pretrained
from tcl_jax.models.clip import VARIANTS
from tcl_jax.models.families import FAMILIES, Size
from tests.released_files import WRITERS, weights_flags

WORDS = ["cat", "small dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, label maps of two classes, and their names."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, shape, top in (("images", (60, 80, 3), 256), ("labels", (60, 80), 2)):
        (folder / name).mkdir()
        for i in range(2):
            Image.fromarray(rng.integers(0, top, shape, np.uint8)).save(folder / f"{name}/{i}.png")
    (folder / "names.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by what they are."""
    folder = tmp_path_factory.mktemp("parts")
    own = WRITERS["talk2dino"](folder)
    found = {"dino": own["backbone"], "projection": own["projection"]}
    return {**found, **WRITERS["tcl"](folder), "tips": WRITERS["tips"](folder)["backbone"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_every_command_takes_every_model(name: str, photos: Path, tmp_path: Path) -> None:
    files = WRITERS[name](tmp_path)
    flags = [f"--model={name}", *weights_flags(files)]
    photo = photos / "images/0.png"
    own = [f"--images={photos}/images", f"--labels={photos}/labels"]
    own += [f"--classes={photos}/names.txt", "--short_side=64"]

    convert.run(["model", name, str(tmp_path / "model"), *flags[1:]])
    model = load_model(tmp_path / "model")
    assert model.method.name == name
    segmenter = Segmenter.from_pretrained(name, **files)
    assert segmenter.fingerprint == Segmenter(model, tokenizer_file=None).fingerprint

    texts = [f"--text={word}" for word in WORDS]
    side = ["--short_side=64", "--masks=none"]
    segment.run([*flags, f"--image={photo}", *texts, *side, f"--output={tmp_path}/masks"])
    labels = np.asarray(Image.open(tmp_path / "masks/0_labels.png"))
    expected = segmenter.segment(photo, WORDS, short_side=64).labels
    np.testing.assert_array_equal(labels, expected)

    settings = segmenter.settings
    evaluate.run([*flags, *own, "--protocol=tcl", "--no-pamr", f"--output={tmp_path}/tcl"])
    found = json.loads((tmp_path / "tcl/results.json").read_text())
    assert found["fingerprint"]["method"] == name
    assert found["fingerprint"]["templates"] == "custom" and found["benchmarks"]["custom"]["miou"]
    if settings.scores == "masks":  # else the score of the background is of another kind
        assert found["fingerprint"]["threshold"] == settings.background_score(model.method, "none")

    size = ["--image_size=60x80", "--platforms=cpu", "--no-pamr"]  # of any batch
    export.run([*flags, *size, *texts, f"--output={tmp_path}/masks.stablehlo"])
    program = jax_export.deserialize(bytearray((tmp_path / "masks.stablehlo").read_bytes()))
    image = np.asarray(Image.open(photo))
    exported = np.asarray(program.call(image[None]))[0]
    statistics = model.method.pixel_statistics
    normalised = (image / 255 - statistics[0]) / statistics[1]
    embeddings = segmenter.embed_texts(WORDS)
    masks = segmenter.masks_normalized(np.float32(normalised), embeddings, pamr=False)
    np.testing.assert_allclose(exported, masks, atol=2e-6)

    answers = Answers(load_pretrained(name, **files))
    question = answers.question(photo, "\n".join(WORDS), pamr=False, baseline=True)
    shown = answers.answer(question)[1]
    assert [*shown] == [name, *({"maskclip"} & {*model.methods} - {name})]
    assert answers.thresholds(False)[name] == settings.background_score(model.method, "none")


@pytest.mark.parametrize("name", WRITERS)
def test_protocols(name: str, tmp_path: Path) -> None:
    model = load_pretrained(name, **WRITERS[name](tmp_path))
    own, tcl = make_protocol(model), make_protocol(model, protocol="tcl")
    fields = ("window", "stride", "short_side", "templates", "resize")
    side = model.method.resolution if model.method.resolution < 224 else 448
    assert [getattr(tcl, x) for x in fields] == [side, side // 2, side, "custom", "opencv"]
    if own.scores == "masks":  # else its score of the background is of another kind
        for field in ("threshold", "refine", "kp_weight"):
            assert getattr(tcl, field) == getattr(own, field)
    assert (own == tcl) == (name in ("tcl", "maskclip"))
    assert make_protocol(model, protocol="tcl", templates="simple").templates == "simple"
    with pytest.raises(InputError, match="protocol 'mine' is unknown; choose one of own, tcl"):
        make_protocol(model, protocol="mine")


def test_a_projection_nobody_downloads_is_asked_for_and_taken_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = WRITERS["talk2dino"](tmp_path)
    projection = files.pop("projection")
    with pytest.raises(
        InputError,
        match=r"talk2dino:B/14.*licence.*github.*vitb_mlp_infonce.pth.*--weights projection=",
    ):
        load_pretrained("talk2dino:B/14", **files)
    (tmp_path / "weights").mkdir()
    projection.rename("weights/vitb_mlp_infonce.pth")
    model = load_pretrained("talk2dino:B/14", **files)
    assert model.origin["projection"]["file"] == "vitb_mlp_infonce.pth"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=tipps:B/14"], "'tipps:B/14' is unknown.*talk2dino:B/14"),
        (["--model=tips:B/16"], "'tips:B/16' is unknown; choose one of tips:B/14, tips:L/14"),
        (["--model=tips"], "needs a size, as in tips:B/14.*or a file of backbone"),
        (["--model=tips", "--weights=clip=x"], "--weights=clip.*its parts are backbone, text"),
        (["--model=tips", "--weights=text=x", "--weights=text=y"], "give each part once"),
        (["--model=tips", "--weights=backbone=nowhere.npz"], "nowhere.npz"),
        (["--model=tcl", "--clip=ViT-B/16"], "give either --checkpoint"),
        (["--model=tcl", "--tcl=official"], "--tcl belongs to --clip"),
        (["--model=tips", "--weights=backbone=x", "--activation=gelu"], "has no such option"),
        (["--clip=ViT-B/16", "--weights=clip=x"], "--weights belongs to --model"),
        (["--model=tcl", "--method=tcp"], "--method 'tcp' is unknown"),
        (
            [
                "--model=talk2dino:B/16",
                "--weights=projection={projection}",
                "--weights=backbone={dino}",
            ],
            "it holds no dinov3, but DINOv2 with registers",
        ),
        (
            ["--model=dinotxt", "--weights=backbone={dino}"],
            r"it holds no dinotxt, but DINOv2.* one of dinov2-reg, dinotxt-v2 in place of dinotxt",
        ),
        (
            ["--clip={dino}"],
            r"holds no CLIP.* It is DINOv2 with registers.*--model=talk2dino --weights=backbone=.*",
        ),
        (["--clip={tips}"], r"holds no CLIP.* It is TIPSv2.*--model=tips --weights=backbone="),
    ],
)
def test_mistakes(
    flags: list[str], message: str, photos: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    flags = [flag.format(**parts) for flag in flags]
    rest = [f"--image={photos}/images", "--text=cat", f"--output={tmp_path}/masks"]
    with pytest.raises(InputError, match=message):
        segment.run([*flags, *rest])
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("maskclip:ViT-L/14", "clip", r"clip.npz is CLIP ViT-B/32 .* leave the size out"),
        ("tips:L/14", "tips", r"vision.npz': it is TIPSv2 of the size of B/14 .* not tips:L/14"),
    ],
)
def test_a_file_of_another_size_than_the_name(
    name: str, part: str, message: str, parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {"clip" if part == "clip" else "backbone": parts[part]}
    clip: Any = load_pretrained("maskclip", clip=parts["clip"]).method
    monkeypatch.setitem(VARIANTS, "ViT-B/32", clip.config)
    monkeypatch.setitem(FAMILIES["tips"].sizes, "B/14", Size(96, 3, 2, ()))
    with pytest.raises(InputError, match=message):
        load_pretrained(name, **file)


def test_a_share_of_clip_that_nothing_mixes_in_is_told(
    parts: dict[str, Path], photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--model=maskclip", f"--weights=clip={parts['clip']}", "--kp_weight=0.5"]
    rest = [f"--image={photos}/images/0.png", "--text=cat", "--short_side=32", "--masks=none"]
    segment.run([*flags, *rest, f"--output={tmp_path}/masks"])
    told = [x.getMessage() for x in caplog.records if "kp_weight" in x.getMessage()]
    assert len(told) == 1 and "changes nothing: MaskCLIP" in told[0]


def test_what_is_not_part_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        segment.run(["--model=tips", "--weights=vision.npz"])
    assert "'vision.npz' is not PART=FILE" in capsys.readouterr().err


def test_options_of_a_model_and_of_the_segmenter(tmp_path: Path) -> None:
    files = WRITERS["dinotxt"](tmp_path)
    segmenter = Segmenter.from_pretrained(
        "dinotxt", **files, own_patches=True, dtype="bfloat16", batch_size=2
    )
    assert segmenter._method.describe()["own_patches"]
    with pytest.raises(InputError, match="'dinotxt' has no 'projection'; .* backbone, text, head"):
        Segmenter.from_pretrained("dinotxt", **files, projection="x")
    with pytest.raises(InputError, match=r"vision.npz.*no text.*--weights text=FILE"):
        Segmenter.from_pretrained("dinotxt", backbone=files["backbone"])


def test_every_size_has_its_backbone() -> None:
    assert {f"{name}:{x}" for name, row in RELEASES.items() for x in row.sizes} >= {
        "tcl:ViT-B/16", "maskclip:ViT-L/14", "naclip:ViT-B/16", "tips:So400m/14", "dinotxt:L/16",
        "dinotxt-v2:L/14", "talk2dino:B/14", "talk2dino:L/14", "clip_dinoiser:ViT-B/16",
    }  # fmt: skip
