"""What there is of a benchmark on disk: found by names, then looked into."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, custom_benchmark, load_benchmark
from tcl_jax.evaluation.evaluator import read_pixels
from tcl_jax.evaluation.examples import (
    DatasetIndex,
    Problem,
    describe_dataset,
    list_examples,
    verify_examples,
)
from tcl_jax.evaluation.labels import IGNORE, read_label, to_classes

DATA = Path(__file__).parent.parent / "golden" / "eval" / "data"
KEYS = {
    "voc": "voc_", "voc20": "voc_", "context": "cont_", "context59": "cont_",
    "coco_object": "coco_", "coco_stuff": "coco_", "cityscapes": "town/city_", "ade20k": "ade2_",
}  # fmt: skip
SIZE = (40, 30)  # width, height


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise)


def label(value: int = 1, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0]), value, np.uint8))


def write(folder: Path, files: dict[str, Image.Image]) -> None:
    for name, image in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)


@pytest.fixture
def own(tmp_path: Path) -> Benchmark:
    """A benchmark of three classes with four sound examples."""
    for key in ("a", "b", "sub/c", "d"):
        write(tmp_path, {f"photos/{key}.jpg": photo(), f"labels/{key}.png": label()})
    return custom_benchmark(
        tmp_path / "photos", tmp_path / "labels", ["cat", "dog", "cow"], hint="Ask Ann."
    )


def kinds(problems: tuple[Problem, ...]) -> list[tuple[str, str, bool]]:
    return [(problem.kind, problem.path.name, problem.fatal) for problem in problems]


def keys(index: DatasetIndex) -> list[str]:
    return [example.key for example in index.examples]


# ------------------------------------------------------------------------------ the usual layouts


@pytest.mark.parametrize("name", KEYS)
def test_layouts(name: str) -> None:
    benchmark = load_benchmark(name)
    index = list_examples(benchmark, DATA)
    assert keys(index) == [f"{KEYS[name]}00000{i}" for i in range(2)]
    assert (index.images, index.labels) == (2, 2) and not index.is_complete
    assert verify_examples(index, progress=False).problems == ()
    endings = {"coco_object": "_instanceTrainIds.png", "coco_stuff": "_labelTrainIds.png"}
    for example in index.examples:
        assert f"_{example.key[-6:]}" in example.image.name
        assert f"_{example.key[-6:]}" in example.label.name
        assert example.label.name.endswith(endings.get(name, ".png"))
        raw = read_label(example.label)
        classes = to_classes(raw, benchmark)
        assert classes.shape == read_pixels(example.image).shape[:2]
        lost = (raw == 255) | ((raw == 0) & benchmark.reduce_zero_label)
        np.testing.assert_array_equal(classes == IGNORE, lost)
        assert set(np.unique(classes)) <= {IGNORE, *range(len(benchmark.names))}
        assert len(np.unique(classes)) > 3


def test_images_beyond_the_split_and_original_labels_are_no_strays(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(DATA, root)
    voc = root / "VOCdevkit" / "VOC2012"
    write(voc, {"JPEGImages/other.jpg": photo(), "SegmentationClass/other.png": label()})
    coco = root / "coco_stuff164k" / "annotations" / "val2017"
    write(coco, {"coco_000000.png": label(), ".hidden.png": label()})
    town = root / "cityscapes" / "gtFine" / "val" / "town"
    write(town, {"city_000000_gtFine_color.png": label()})
    for name in BENCHMARKS:
        assert list_examples(load_benchmark(name), root).problems == ()
    write(voc, {"SegmentationClass/alone.png": label()})
    assert kinds(list_examples(load_benchmark("voc"), root).problems) == [
        ("label without image", "alone.png", False),
    ]


def test_nothing_there_says_where_it_should_be_and_how_it_is_made(tmp_path: Path) -> None:
    text = describe_dataset(list_examples(load_benchmark("coco_stuff"), tmp_path))
    assert f"{tmp_path}/coco_stuff164k/images/val2017" in text
    assert f"{tmp_path}/coco_stuff164k/annotations/val2017" in text
    assert "python -m tcl_jax.benchmarks prepare coco_stuff" in text
    voc = list_examples(load_benchmark("voc"), tmp_path).problems
    missing = ["missing folder", "missing folder", "missing list"]
    assert [problem.kind for problem in voc] == missing and all(p.fatal for p in voc)
    assert voc[2].path == tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    ade = list_examples(load_benchmark("ade20k", split="train"), tmp_path).problems
    assert ade[1].path == tmp_path / "ade/ADEChallengeData2016/images/training"


def test_a_kind_of_problem_is_listed_ten_times_at_most(own: Benchmark) -> None:
    problems = tuple(Problem("missing label", Path(f"{i:02}.png")) for i in range(14))
    text = describe_dataset(DatasetIndex(own, (), problems, 14, 0, None))
    assert "\n  missing label, 14 times (cannot be scored)\n" in text
    assert "09.png" in text and "10.png" not in text and "and 4 more\n" in text
    assert text.endswith("  to do      Ask Ann.")


# -------------------------------------------------------------------------------------- one's own


def test_photos_of_every_kind_and_behind_links(own: Benchmark, tmp_path: Path) -> None:
    for key, ending, kind in (("a", ".JFIF", "JPEG"), ("b", ".avif", "AVIF"), ("d", ".qoi", "QOI")):
        (tmp_path / f"photos/{key}.jpg").unlink()
        photo().save(tmp_path / f"photos/{key}{ending}", kind)
    (tmp_path / "photos/__MACOSX").mkdir()
    shutil.copy(tmp_path / "photos/sub/c.jpg", tmp_path / "photos/__MACOSX/c.jpg")
    for folder in ("photos", "labels"):
        (tmp_path / folder / "sub").rename(tmp_path / f"moved_{folder}")
        (tmp_path / folder / "sub").symlink_to(tmp_path / f"moved_{folder}")
        (tmp_path / folder / "circle").symlink_to(tmp_path / folder)
    index = list_examples(own, tmp_path / "any root")
    assert keys(index) == ["a", "b", "d", "sub/c"] and index.problems == ()
    assert verify_examples(index, progress=False).problems == ()
    assert all(read_pixels(one.image).shape == (30, 40, 3) for one in index.examples)


def test_a_folder_with_everything_wrong_gives_one_list(own: Benchmark, tmp_path: Path) -> None:
    for key in ("wrong", "large", "both", "short", "twice", "gone"):
        write(tmp_path, {f"photos/{key}.png": photo(), f"labels/{key}.png": label()})
    for name in ("photos/a.jpg", "photos/short.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    write(tmp_path, {
        "photos/twice.webp": photo(),
        "labels/wrong.png": label(7),
        "labels/large.png": label(size=(41, 30)),
        "labels/both.png": label(9, (30, 40)),
        "labels/alone.png": label(),
        "labels/b.png": photo(),
    })  # fmt: skip
    (tmp_path / "labels/d.png").unlink()
    (tmp_path / "labels/gone.png").unlink()
    (tmp_path / "labels/gone.png").symlink_to(tmp_path / "nowhere")
    index = list_examples(own, tmp_path)
    assert sorted(kinds(index.problems)) == [
        ("label without image", "alone.png", False),
        ("missing label", "d.png", True),
        ("same key twice", "twice.webp", True),
    ]
    assert "d" not in keys(index)
    found = verify_examples(index, progress=False)
    assert kinds(found.problems[len(index.problems) :]) == [
        ("damaged image", "a.jpg", True),
        ("unreadable label", "b.png", True),
        ("sizes that differ", "both.png", True),
        ("wrong label values", "both.png", True),
        ("unreadable label", "gone.png", True),
        ("sizes that differ", "large.png", True),
        ("damaged image", "short.png", True),
        ("wrong label values", "wrong.png", True),
    ]
    text = describe_dataset(found)
    assert text.index("same key twice (cannot") < text.index("damaged image, 2 times (cannot")
    assert text.index("wrong label values") < text.index("  label without image\n")
    for part in ("Ask Ann.", "41 x 30", "label values 9;"):
        assert part in text


def test_no_images(own: Benchmark, tmp_path: Path) -> None:
    pattern = str(tmp_path / "photos" / "{key}.webp")
    index = list_examples(dataclasses.replace(own, images=pattern), tmp_path)
    assert kinds(index.problems) == [("no images", "photos", True)]
    assert pattern in index.problems[0].detail


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    for key in ("a", "b"):
        write(tmp_path, {f"{key}.png": photo(), f"{key}_mask.png": label()})
        write(tmp_path, {f"masks/{key}.png": label()})
    for labels, file in (("{key}_mask.png", "{key}_mask.png"), ("masks", "masks/{key}.png")):
        benchmark = custom_benchmark(tmp_path, tmp_path / labels, ["cat", "dog"])
        found = [one for one in list_examples(benchmark, tmp_path).examples if one.key in "ab"]
        assert [one.label for one in found] == [tmp_path / file.format(key=k) for k in "ab"]
    assert list_examples(custom_benchmark(tmp_path, tmp_path, ["cat"]), tmp_path).examples == ()
    with pytest.raises(InputError, match="images and labels are both"):
        list_examples(custom_benchmark(tmp_path / "{key}.png", tmp_path, ["cat"]), tmp_path)


def test_lists_of_images(own: Benchmark, tmp_path: Path) -> None:
    """As VOC, DeepLab and mmsegmentation write them, and as PowerShell saves text."""
    listed = dataclasses.replace(own, list=str(tmp_path / "list.txt"))

    def read(text: str, encoding: str = "utf-8") -> DatasetIndex:
        (tmp_path / "list.txt").write_bytes(text.encode(encoding))
        return list_examples(listed, tmp_path)

    for text in (
        "\ufeffb\n\na\nsub/c",
        "b.jpg\r\n a.png \r\nsub/c.jpg\r\n",
        "./photos/b.jpg\na\nsub\\c.JPG",
        "/their data/photos/b.jpg\n/x/a.jpg\n/y/photos/sub/c.jpg",
    ):
        for encoding in ("utf-8", "utf-16"):
            if encoding == "utf-8" or text[0] != "\ufeff":
                found = read(text, encoding)
                assert keys(found) == ["b", "a", "sub/c"] and found.problems == ()
    write(tmp_path, {"photos/b 1.jpg": photo(), "labels/b 1.png": label()})
    assert keys(read("b 1")) == ["b 1"]
    (tmp_path / "photos/b 1.jpg").unlink()
    (tmp_path / "labels/b 1.png").unlink()
    for text, problem, part in (
        ("a\ngone", ("missing image", "gone.*", True), "named in"),
        ("", ("no images", "list.txt", True), "it is empty"),
        # As lists of one class have it.
        ("a\nb -1", ("missing image", "b -1.*", True), "named in"),
    ):
        found = read(text)
        assert kinds(found.problems) == [problem] and part in found.problems[0].detail
    assert keys(read("a\nd\na\n")) == ["a", "d"]
    with pytest.raises(InputError, match=r"list\.txt .*UTF-8"):
        read("Bäume\n", "latin-1")


def test_a_fault_of_the_machine_is_no_fault_of_a_label(
    own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(RunError, match=r"a\.png: .*memory"):
        verify_examples(list_examples(own, tmp_path), progress=False)


# ------------------------------------------------------------------------------------ orientation


def save_turned(path: Path, orientation: int, image: Image.Image | None = None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    (image or photo()).save(path, exif=exif)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_photos_are_turned_upright_unless_exif_is_ignored(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    path = tmp_path / f"image.{ending}"
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    made = np.stack([8 * rows, 6 * columns, 4 * rows], axis=-1).astype(np.uint8)
    save_turned(path, orientation, Image.fromarray(made))
    upright = {1: made, 3: made[::-1, ::-1], 6: np.rot90(made, -1)}[orientation]
    assert np.abs(read_pixels(path).astype(int) - upright).mean() < 4
    stored = made if ending in ("jpg", "png", "webp") else upright
    assert np.abs(read_pixels(path, "ignore").astype(int) - stored).mean() < 4


def test_labels_of_photos_with_exif_orientation(tmp_path: Path) -> None:
    write(tmp_path, {"labels/a.png": label()})
    save_turned(tmp_path / "photos/a.jpg", 6)

    def found(**settings: Any) -> tuple[Problem, ...]:
        classes = ["cat", "dog"]
        own = custom_benchmark(tmp_path / "photos", tmp_path / "labels", classes, **settings)
        return verify_examples(list_examples(own, tmp_path), progress=False).problems

    (problem,) = found()
    assert problem.kind == "sizes that differ" and "--exif=ignore" in problem.detail
    assert found(exif="ignore") == ()
    write(tmp_path, {"labels/a.png": label(size=SIZE[::-1])})
    assert found() == ()
