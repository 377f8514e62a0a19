"""The preview: what it shows is what training gets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tcl_jax import preview as command
from tcl_jax.bench.photos import make_photo
from tcl_jax.config_flags import read_config
from tcl_jax.data.pipeline import make_iterator
from tcl_jax.data.rand_augment import OPERATIONS
from tcl_jax.data.sources import make_erasing, make_source, make_transform
from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.data.transforms import RandomResizedCrop
from tcl_jax.errors import InputError
from tcl_jax.training.preview import Preview, take_preview, with_noise
from tests.data.shards import write_photos, write_shard

ROOT = Path(__file__).parent.parent.parent
TCL, SHAPES = (str(ROOT / f"configs/{name}.py") for name in ("tcl", "shapes"))
SIDE, LENGTH = 64, 77
SMALL = ("--config.model.variant=ViT-B/16", f"--config.model.sizes.resolution={SIDE}")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "photos.tar"
    write_photos(path, 24)
    return path


def config_of(shard: Path | str, *overrides: str, batch: int = 8) -> ConfigDict:
    config = read_config(
        TCL,
        [
            f"--config.data.shards=('{shard}',)",
            f"--config.train.global_batch_size={batch}",
            *SMALL,
            *overrides,
        ],
        "x",
    )
    assert config is not None
    return config


def training(config: ConfigDict, batches: int) -> dict[str, np.ndarray]:
    """Whole global batches, one after the other."""
    iterator = make_iterator(
        make_source(config.data, SIDE),
        tokenizer=ClipTokenizer(LENGTH),
        transform=make_transform(config.data, SIDE),
        erasing=make_erasing(config.data),
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
    )
    taken = [next(iterator) for _ in range(batches)]
    iterator.close()
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


def assert_as_trained(taken: Preview, expected: dict[str, np.ndarray], rows: list[int]) -> None:
    np.testing.assert_array_equal(taken.images, expected["image"][rows])
    np.testing.assert_array_equal(taken.tokens, expected["tokens"][rows])
    np.testing.assert_array_equal(ClipTokenizer(LENGTH)(taken.captions), taken.tokens)
    if "erase" in expected:
        np.testing.assert_array_equal(taken.erase, expected["erase"][rows])
    assert len(taken.captions) == len(taken.origins) == len(rows)


def test_rows_are_the_first_of_training(shard: Path) -> None:
    config = config_of(shard)
    taken = take_preview(config, 11)
    assert taken.pairs == 24
    assert_as_trained(taken, training(config, 2), list(range(11)))


def test_originals_and_changes_are_those_of_the_images(shard: Path) -> None:
    taken = take_preview(config_of(shard, "--config.data.rand_augment.probability=1.0"), 24)
    assert sum("flipped" in origin.changes for origin in taken.origins) not in (0, 24)
    drawn = [make_photo(number) for number in range(24)]
    for image, caption, origin in zip(taken.images, taken.captions, taken.origins, strict=True):
        assert origin.original is not None and origin.part is not None
        error, nearest = min(
            (float(np.abs(picture.astype(int) - origin.original).mean()), text)
            for picture, text in drawn
        )
        assert error < 6 and nearest == caption
        remade = RandomResizedCrop(SIDE).resize_part(Image.fromarray(origin.original), origin.part)
        names = list(origin.changes)
        if names[:1] == ["flipped"]:
            remade = remade[:, ::-1].copy()
            names = names[1:]
        assert len(names) == 2
        for change in names:
            name, *arguments = change.split()
            numbers = [int(a) if a.lstrip("-").isdigit() else float(a) for a in arguments]
            remade = np.asarray(OPERATIONS[name].apply(Image.fromarray(remade), *numbers))
        # Decoded at reduced scale where that will do, and arguments are given to three digits.
        assert np.abs(remade.astype(int) - image).mean() < 12
        assert np.median(np.abs(remade.astype(int) - image)) <= 4


def test_crops_that_lose_what_is_named_are_told(shard: Path) -> None:
    taken = take_preview(config_of(shard), 2)
    assert taken.smallest_crop == 0.08 and "down to 8% of an image" in taken.describe()
    kept = take_preview(config_of(shard, "--config.data.crop_scale=(0.6,1.0)"), 2)
    assert kept.smallest_crop == 0.6 and "crops" not in kept.describe()


def test_bad_samples_are_counted_and_captions_stay_with_their_images(
    shard: Path, tmp_path: Path
) -> None:
    members: dict[str, bytes] = {}
    for number in range(40):
        color = 6 * number
        buffer = io.BytesIO()
        Image.fromarray(np.full((80, 80, 3), color, np.uint8)).save(buffer, "PNG")
        image = buffer.getvalue()
        members[f"{number}.png"] = image[: len(image) // 2] if number % 5 == 0 else image
        members[f"{number}.txt"] = b" " if number % 5 == 1 else f"colour {color}".encode()
    members |= {"27.txt": b"couleur \xe9", "alone.gif": b"", "0.npy": b""}
    config = config_of(
        write_shard(tmp_path / "bad.tar", members), "--config.data.rand_augment.operations=0",
        "--config.data.random_erasing=0.0", batch=40,
    )  # fmt: skip
    taken = take_preview(config, 40)
    assert_as_trained(taken, training(config, 1), list(range(40)))
    for image, caption in zip(taken.images, taken.captions, strict=True):
        assert caption == f"colour {image[0, 0, 0]}"
    bad = sum(taken.totals[1:])
    assert taken.totals[0] == 40 and bad >= 17
    output = taken.describe()
    assert f"bad samples: {bad} of {40 + bad} looked at" in output
    assert "unreadable_image" in output and "empty_caption" in output
    assert "27 (not_utf8): the caption b'couleur \\xe9' cannot be read" in output
    assert f"{taken.tokens.astype(bool).sum(1).max()} at most; 0% fill all {LENGTH}" in output
    assert "left out: members of other kinds: 1 (the first: 0.npy in " in output
    assert "images without caption: 1 (the first: alone.gif" in output


def test_erased_rectangles_are_noise_and_nothing_else_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    boxes = np.array([[4, 6, 20, 10], [0, 0, 0, 0], [0, 0, 32, 31]], np.int32)
    shown = with_noise(images, boxes)
    erased = np.zeros(images.shape[:3], bool)
    erased[0, 4:24, 6:16] = erased[2, :, :31] = True
    np.testing.assert_array_equal(shown[~erased], images[~erased])
    pixels = shown[erased].astype(float)
    np.testing.assert_allclose(pixels.mean(0), [124, 116, 104], atol=8)
    np.testing.assert_allclose(pixels.std(0), [56, 55, 56], atol=6)  # less than 58: clipped
    assert (shown[erased] != images[erased]).mean() > 0.9


# ------------------------------------------------------------------------------------ the command


def run(tmp_path: Path, *arguments: str) -> np.ndarray:
    output = tmp_path / "new/page.png"
    command.run([f"--output={output}", *arguments])
    return np.asarray(Image.open(output))


def test_a_page_of_photos(shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--config.data.shards=('{shard}',)", "--config.train.global_batch_size=8"]
    page = run(tmp_path, f"--config={TCL}", "--count=6", *flags)
    output = capsys.readouterr().out
    taken = take_preview(config_of(shard, "--config.model.sizes.resolution=224"), 6)
    assert "pairs: 24" in output and taken.captions[0] in output and "bad samples: 0 of" in output
    assert "new/page.png" in output
    shown = [card.image for card in taken.cards()]
    assert on_page(page, shown) == len(shown)


def on_page(page: np.ndarray, images: list[np.ndarray]) -> int:
    """How many images are on the page, pixel by pixel."""
    found = 0
    for image in images:
        height, width = image.shape[:2]
        corners = np.argwhere((page == image[0, 0]).all(-1))
        found += any(np.array_equal(page[y : y + height, x : x + width], image) for y, x in corners)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is needed"),
        ([f"--config={SHAPES}", "--count=0"], "--count=0"),
        ([f"--config={SHAPES}", "--output=page.jpg"], "--output='page.jpg'"),
        ([f"--config={SHAPES}", "--config.data.nothing=1"], "nothing"),
        ([f"--config={TCL}", "--config.data.shards=('none.tar',)"], "none.tar"),
        ([f"--config={SHAPES}", "--config.train.global_batch_size=0"], "global_batch_size"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        command.run(arguments)
    assert not list(tmp_path.iterdir())


def test_fewer_pairs_than_a_batch_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "few.png"
    command.run(
        [f"--config={SHAPES}", "--config.data.num_examples=5", "--count=5", f"--output={output}"]
    )
    assert output.is_file()  # of drawn scenes, which have no originals
    assert "5 pairs do not fill a batch of 32" in caplog.text
