from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_jax.data.images import read_image
from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, custom_benchmark, load_benchmark
from tcl_jax.evaluation.evaluator import read_pixels
from tcl_jax.evaluation.examples import (
    Listing,
    Problem,
    describe_problems,
    list_examples,
    verify_examples,
)
from tcl_jax.evaluation.image_size import image_size
from tcl_jax.evaluation.labels import IGNORE, read_label, to_classes
from tcl_jax.evaluation.stock import describe_stock, take_stock

DATA = Path(__file__).parent.parent / "golden" / "eval" / "data"
EXPECTED_KEYS = {
    "voc": "voc_",
    "voc20": "voc_",
    "context": "cont_",
    "context59": "cont_",
    "coco_object": "coco_",
    "coco_stuff": "coco_",
    "cityscapes": "town/city_",
    "ade20k": "ade2_",
}
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


def test_photos_of_every_kind_belong_to_a_benchmark(own: Benchmark, tmp_path: Path) -> None:
    kinds = {"a": (".JFIF", "JPEG"), "b": (".avif", "AVIF"), "d": (".qoi", "QOI")}
    for key, (ending, kind) in kinds.items():
        (tmp_path / f"photos/{key}.jpg").unlink()
        photo().save(tmp_path / f"photos/{key}{ending}", kind)
    (tmp_path / "photos/__MACOSX").mkdir()
    shutil.copy(tmp_path / "photos/sub/c.jpg", tmp_path / "photos/__MACOSX/c.jpg")
    listing = list_examples(own, tmp_path)
    assert [example.key for example in listing.examples] == ["a", "b", "d", "sub/c"]
    assert not listing.problems and not verify_examples(listing, progress=False)[0]
    for example in listing.examples:
        assert read_pixels(example.image).shape == (30, 40, 3)


def kinds(problems: tuple[Problem, ...]) -> list[tuple[str, str, bool]]:
    return [(problem.kind, problem.path.name, problem.fatal) for problem in problems]


def keys(listing: Listing) -> list[str]:
    return [example.key for example in listing.examples]


# ------------------------------------------------------------------------------ the usual layouts


@pytest.mark.parametrize("name", BENCHMARKS)
def test_layouts(name: str) -> None:
    benchmark = load_benchmark(name)
    listing = list_examples(benchmark, DATA)
    assert keys(listing) == [f"{EXPECTED_KEYS[name]}00000{i}" for i in range(2)]
    assert kinds(listing.problems) == [("image count", listing.problems[0].path.name, False)]
    assert f"2 of {benchmark.splits['val']} images" in listing.problems[0].detail
    assert verify_examples(listing, progress=False)[0] == ()
    for example in listing.examples:
        assert f"_{example.key[-6:]}" in example.image.name
        assert f"_{example.key[-6:]}" in example.label.name
        raw = read_label(example.label)
        classes = to_classes(raw, benchmark)
        assert classes.shape == read_pixels(example.image).shape[:2]
        lost = (raw == 255) | ((raw == 0) & benchmark.reduce_zero_label)
        np.testing.assert_array_equal(classes == IGNORE, lost)
        assert set(np.unique(classes)) <= {IGNORE, *range(len(benchmark.names))}
        assert len(np.unique(classes)) > 3


def test_the_two_labels_of_coco_are_told_apart() -> None:
    labels = [
        [example.label.name for example in list_examples(load_benchmark(name), DATA).examples]
        for name in ("coco_object", "coco_stuff")
    ]
    assert labels[0] == [f"coco_00000{i}_instanceTrainIds.png" for i in range(2)]
    assert labels[1] == [f"coco_00000{i}_labelTrainIds.png" for i in range(2)]


@pytest.mark.parametrize("inner", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_folder_of_one_data_set_is_taken_for_the_root(inner: str) -> None:
    assert len(list_examples(load_benchmark("voc"), DATA / inner).examples) == 2


def test_images_beyond_the_split_and_original_labels_are_no_strays(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(DATA, root)
    voc = root / "VOCdevkit" / "VOC2012"
    write(voc, {"JPEGImages/other.jpg": photo(), "SegmentationClass/other.png": label()})
    coco = root / "coco_stuff164k" / "annotations" / "val2017"
    write(coco, {"coco_000000.png": label(), ".hidden.png": label()})
    town = root / "cityscapes" / "gtFine" / "val" / "town"
    write(town, {"city_000000_gtFine_color.png": label()})
    (town / "city_000001_gtFine_polygons.json").write_text("{}")
    for name in BENCHMARKS:
        assert [kind for kind, *_ in kinds(list_examples(load_benchmark(name), root).problems)] == [
            "image count"
        ]
    (town / "village_000000_gtFine_color.png").write_bytes(b"")
    (voc / "JPEGImages" / "notes.txt").write_text("")
    write(voc, {"SegmentationClass/alone.png": label()})
    assert kinds(list_examples(load_benchmark("cityscapes"), root).problems)[0] == (
        "stray file",
        "village_000000_gtFine_color.png",
        False,
    )
    assert kinds(list_examples(load_benchmark("voc"), root).problems)[:2] == [
        ("label without image", "alone.png", False),
        ("stray file", "notes.txt", False),
    ]


def test_nothing_there_says_where_it_should_be_and_how_it_is_made(tmp_path: Path) -> None:
    listing = list_examples(load_benchmark("coco_stuff"), tmp_path)
    assert listing.examples == ()
    text = describe_problems(listing.problems)
    assert f"{tmp_path}/coco_stuff164k/images/val2017" in text
    assert f"{tmp_path}/coco_stuff164k/annotations/val2017" in text
    assert "python -m tcl_jax.benchmarks prepare coco_stuff" in text
    voc = list_examples(load_benchmark("voc"), tmp_path).problems
    assert [(problem.kind, problem.fatal) for problem in voc] == [
        ("missing folder", True),
        ("missing folder", True),
        ("missing list", True),
    ]
    assert voc[2].path == tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"


def test_labels_not_prepared_yet(tmp_path: Path) -> None:
    shutil.copytree(DATA / "cityscapes", tmp_path / "cityscapes")
    for path in tmp_path.rglob("*_labelTrainIds.png"):
        path.rename(path.with_name(path.name.replace("TrainIds", "Ids")))
    listing = list_examples(load_benchmark("cityscapes"), tmp_path)
    assert kinds(listing.problems)[:2] == [
        ("missing label", "city_000000_gtFine_labelTrainIds.png", True),
        ("missing label", "city_000001_gtFine_labelTrainIds.png", True),
    ]
    text = describe_problems(listing.problems)
    assert text.count("python -m tcl_jax.benchmarks prepare cityscapes") == 1
    assert "missing label, 2 times (cannot be scored): " in text


def test_train_split_of_ade_has_another_folder(tmp_path: Path) -> None:
    listing = list_examples(load_benchmark("ade20k", split="train"), tmp_path)
    assert listing.problems[0].path == tmp_path / "ade/ADEChallengeData2016/images/training"


def test_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DATA / "cityscapes" / "leftImg8bit" / "val", tmp_path / "photos" / "val")
    shutil.copytree(DATA / "cityscapes" / "gtFine" / "val", tmp_path / "labels")
    (tmp_path / "some.txt").write_text("town/city_000001\n")
    monkeypatch.chdir(tmp_path)
    benchmark = load_benchmark("cityscapes")
    overrides = {"images": "photos/{split}", "labels": "labels/{key}_gtFine_labelTrainIds.png"}
    listing = list_examples(benchmark, "nowhere", overrides=overrides)
    assert keys(listing) == ["town/city_000000", "town/city_000001"]
    assert listing.examples[0].image.is_relative_to(tmp_path / "photos")
    listing = list_examples(benchmark, "nowhere", overrides={**overrides, "list": "some.txt"})
    assert keys(listing) == ["town/city_000001"]
    with pytest.raises(InputError, match="pictures cannot be overridden"):
        list_examples(benchmark, "nowhere", overrides={"pictures": "photos"})
    with pytest.raises(InputError, match=r"has \{name\}"):
        list_examples(benchmark, "nowhere", overrides={"images": "{name}.jpg"})


# -------------------------------------------------------------------------------------- one's own


def test_own_folder(own: Benchmark, tmp_path: Path) -> None:
    listing = list_examples(own, tmp_path / "any root")
    assert keys(listing) == ["a", "b", "d", "sub/c"]
    assert listing.problems == ()
    assert verify_examples(listing, progress=False)[0] == ()
    assert describe_problems(()) == "no problems"


def test_a_folder_with_everything_wrong_gives_one_list(own: Benchmark, tmp_path: Path) -> None:
    for key in ("wrong", "large", "both", "short"):
        write(tmp_path, {f"photos/{key}.png": photo(), f"labels/{key}.png": label()})
    truncated = tmp_path / "photos" / "a.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    cut = tmp_path / "photos" / "short.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    write(
        tmp_path,
        {
            "labels/wrong.png": label(7),
            "labels/large.png": label(size=(41, 30)),
            "labels/both.png": label(9, (30, 40)),
            "labels/alone.png": label(),
            "labels/b.png": photo(),
        },
    )
    (tmp_path / "labels" / "d.png").unlink()
    (tmp_path / "photos" / "notes.txt").write_text("nothing")
    (tmp_path / "photos" / "Thumbs.db").write_text("")
    listing = list_examples(own, tmp_path)
    assert sorted(kinds(listing.problems)) == [
        ("label without image", "alone.png", False),
        ("missing label", "d.png", True),
        ("stray file", "notes.txt", False),
    ]
    assert "d" not in keys(listing)
    found, _ = verify_examples(listing, progress=False)
    assert kinds(found) == [
        ("damaged image", "a.jpg", True),
        ("unreadable label", "b.png", True),
        ("sizes that differ", "both.png", True),
        ("wrong label values", "both.png", True),
        ("sizes that differ", "large.png", True),
        ("damaged image", "short.png", True),
        ("wrong label values", "wrong.png", True),
    ]
    text = describe_problems((*listing.problems, *found))
    lines = text.splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    assert [heading.split(":")[0] for heading in headings] == [
        "missing label (cannot be scored)",
        "damaged image, 2 times (cannot be scored)",
        "unreadable label (cannot be scored)",
        "sizes that differ, 2 times (cannot be scored)",
        "wrong label values, 2 times (cannot be scored)",
        "label without image",
        "stray file",
    ]
    assert f"  {tmp_path}/labels/both.png: label values 9 (1200 pixels); custom has 0 to 2" in text
    assert f"the label is 41 x 30 and {tmp_path}/photos/large.png is 40 x 30 pixels" in text
    assert "mode RGB, with 3 channels" in text
    assert "Ask Ann." in headings[0]


def test_many_problems_are_counted_and_ten_are_shown() -> None:
    problems = tuple(
        Problem("stray file", Path(f"/data/{i:02}"), f"detail {i}", False) for i in range(14)
    )
    lines = describe_problems(problems).splitlines()
    assert lines[0] == "stray file, 14 times:"
    assert lines[1] == "  /data/00: detail 0"
    assert lines[10:] == ["  /data/09: detail 9", "  and 4 more"]


def test_list_file(own: Benchmark, tmp_path: Path) -> None:
    names = tmp_path / "some.txt"
    names.write_bytes(b"\xef\xbb\xbfd\r\n\r\n a \r\nd\r\ngone\r\n")
    listing = list_examples(own, tmp_path, overrides={"list": str(names)})
    assert keys(listing) == ["d", "a"]
    assert kinds(listing.problems) == [
        ("listed twice", "some.txt", False),
        ("missing image", "gone.*", True),
    ]
    assert "lines 1 and 4 are 'd'" in listing.problems[0].detail
    names.write_text("")
    listing = list_examples(own, tmp_path, overrides={"list": str(names)})
    assert kinds(listing.problems) == [("no images", "some.txt", True)]


def test_no_images(own: Benchmark, tmp_path: Path) -> None:
    overrides = {"images": str(tmp_path / "photos" / "{key}.webp")}
    listing = list_examples(own, tmp_path, overrides=overrides)
    fatal = [problem for problem in listing.problems if problem.fatal]
    assert kinds(tuple(fatal)) == [("no images", "photos", True)]
    assert "photos/{key}.webp" in fatal[0].detail


def test_two_images_of_one_key(own: Benchmark, tmp_path: Path) -> None:
    write(tmp_path, {"photos/a.png": photo()})
    assert kinds(list_examples(own, tmp_path).problems) == [("same key twice", "a.png", True)]


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    for key in ("a", "b"):
        write(tmp_path, {f"{key}.png": photo(), f"{key}_mask.png": label()})
    write(tmp_path, {"masks/a.png": label(), "masks/b.png": label()})
    for labels in ("{key}_mask.png", "masks"):
        benchmark = custom_benchmark(tmp_path, tmp_path / labels, ["cat", "dog"])
        listing = list_examples(benchmark, tmp_path)
        found = [example for example in listing.examples if example.key in "ab"]
        assert [example.label for example in found] == [
            tmp_path / labels.replace("{key}", key) / ("" if "{" in labels else f"{key}.png")
            for key in "ab"
        ]
    listing = list_examples(custom_benchmark(tmp_path, tmp_path, ["cat"]), tmp_path)
    assert listing.examples == ()
    with pytest.raises(InputError, match="images and labels are both"):
        list_examples(custom_benchmark(tmp_path / "{key}.png", tmp_path, ["cat"]), tmp_path)


def test_links_are_followed_and_circles_are_not(own: Benchmark, tmp_path: Path) -> None:
    for folder in ("photos", "labels"):
        (tmp_path / folder / "sub").rename(tmp_path / f"moved_{folder}")
        (tmp_path / folder / "sub").symlink_to(tmp_path / f"moved_{folder}")
        (tmp_path / folder / "circle").symlink_to(tmp_path / folder)
    listing = list_examples(own, tmp_path)
    assert keys(listing) == ["a", "b", "d", "sub/c"]
    assert listing.problems == ()


def test_listing_opens_no_image(own: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "labels" / "a.png").write_bytes(b"")
    assert list_examples(own, tmp_path).problems == ()


def test_progress_is_shown_if_asked_for(
    own: Benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = list_examples(own, tmp_path)
    verify_examples(listing, progress=False)
    assert capsys.readouterr().err == ""
    verify_examples(listing, progress=True)
    assert "checking custom" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- image sizes


def encoded(suffix: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    photo().save(file, suffix, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "avif", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_and_turn_are_those_of_the_pixels(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / "image"
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    made = np.stack([8 * rows, 6 * columns, 4 * rows], axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(made).save(path, suffix, exif=exif)
    size, turn = image_size(path)
    upright, stored = read_pixels(path), read_pixels(path, "ignore")
    assert size == upright.shape[:2] == (SIZE if orientation > 4 else SIZE[::-1])
    np.testing.assert_array_equal(turn.apply(stored), upright)
    assert np.abs(stored.astype(int) - made).mean() < 4
    assert np.abs(upright.astype(int) - read_image(path)).mean() < 4


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "bmp"])
@pytest.mark.parametrize(
    ("change", "sound"),
    [
        (lambda data: data, True),
        (lambda data: data + bytes(100), True),
        (lambda data: data + b"made with a camera", True),
        (lambda data: data[: len(data) // 2], False),
        (lambda data: data[:-40], False),
        (lambda data: data[:12], False),
        (lambda data: b"", False),
    ],
)
def test_cut_images_are_found_and_longer_ones_tolerated(
    tmp_path: Path, suffix: str, change: Callable[[bytes], bytes], sound: bool
) -> None:
    path = tmp_path / "image"
    path.write_bytes(change(encoded(suffix)))
    if sound:
        assert image_size(path)[0] == SIZE[::-1]
    else:
        with pytest.raises(InputError, match=str(path)):
            image_size(path)


def test_a_sound_image_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr("tcl_jax.evaluation.image_size.open_file", refuse)
    path = tmp_path / "image"
    for suffix in ("jpeg", "png", "webp"):
        path.write_bytes(encoded(suffix) if suffix != "png" else _plain_png())
        assert image_size(path)[0] == SIZE[::-1]


def _plain_png() -> bytes:
    file = io.BytesIO()
    photo().save(file, "png")
    return file.getvalue()


def test_a_link_to_nothing_is_a_problem(own: Benchmark, tmp_path: Path) -> None:
    for name in ("photos/a.jpg", "labels/b.png"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / "gone")
    found, _ = verify_examples(list_examples(own, tmp_path), progress=False)
    assert kinds(found) == [("damaged image", "a.jpg", True), ("unreadable label", "b.png", True)]


def test_lists_in_other_formats(own: Benchmark, tmp_path: Path) -> None:
    """As VOC, DeepLab and mmsegmentation write them, and as PowerShell saves text."""
    listed = dataclasses.replace(own, list=str(tmp_path / "list.txt"))

    def read(text: str, encoding: str = "utf-8") -> Listing:
        (tmp_path / "list.txt").write_bytes(text.encode(encoding))
        return list_examples(listed, tmp_path)

    for text in (
        "b\n\na\nsub/c",
        "b.jpg\r\na.png\r\nsub/c.jpg\r\n",
        "./photos/b.jpg\na\nsub\\c.JPG",
        "/their data/photos/b.jpg\n/x/a.jpg\n/y/photos/sub/c.jpg",
    ):
        for encoding in ("utf-8", "utf-16"):
            found = read(text, encoding)
            assert keys(found) == ["b", "a", "sub/c"] and found.problems == ()
    for line in ("b  1", "b -1", "photos/b.jpg labels/b.png", "b.jpg,b.png"):
        (problem,) = read(f"a\n{line}\n").problems
        assert (
            problem.fatal
            and problem.kind == "unreadable list"
            and f"line 2, {line!r}" in (problem.detail)
        )
    write(tmp_path, {"photos/b 1.jpg": photo(), "labels/b 1.png": label()})
    assert keys(read("b 1")) == ["b 1"]
    assert kinds(read("a\ngone").problems) == [("missing image", "gone.*", True)]


def turned(orientation: int, size: tuple[int, int] = SIZE) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    photo(size).save(file, "jpeg", exif=exif)
    return file.getvalue()


def test_labels_of_photos_with_exif_orientation(tmp_path: Path) -> None:
    """A phone's photo is stored turned; whether its label was drawn so, its size tells or not."""
    write(tmp_path, {"labels/a.png": label()})
    (tmp_path / "photos").mkdir()

    def found(orientation: int, **settings: Any) -> list[tuple[str, bool, str]]:
        (tmp_path / "photos/a.jpg").write_bytes(turned(orientation))
        classes = ["cat", "dog"]
        own = custom_benchmark(tmp_path / "photos", tmp_path / "labels", classes, **settings)
        problems, _ = verify_examples(list_examples(own, tmp_path), progress=False)
        return [(problem.kind, problem.fatal, problem.detail) for problem in problems]

    assert found(1) == []
    ((kind, fatal, detail),) = found(6)
    assert (kind, fatal) == ("sizes that differ", True) and "--exif=ignore" in detail
    assert found(6, exif="ignore") == []
    ((kind, fatal, detail),) = found(3)
    assert (kind, fatal) == ("EXIF orientation", False) and "--exif=ignore" in detail
    assert found(3, exif="apply") == found(3, exif="ignore") == []
    write(tmp_path, {"labels/a.png": label(size=SIZE[::-1])})
    assert found(6) == []
    ((_, fatal, detail),) = found(6, exif="ignore")
    assert fatal and "--exif=apply" in detail
    path = tmp_path / "photos/a.jpg"
    assert read_pixels(path, "ignore").shape[:2] == read_pixels(path).shape[1::-1] == SIZE[::-1]


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.txt").write_bytes("Bäume\n".encode("latin-1"))
    benchmark = custom_benchmark(
        tmp_path / "images", tmp_path / "labels", ["a"], image_list=tmp_path / "list.txt"
    )
    assert "unreadable list" in describe_stock(take_stock(benchmark, tmp_path))
    problems = list_examples(benchmark, tmp_path).problems
    unreadable = [problem for problem in problems if problem.kind == "unreadable list"]
    assert len(unreadable) == 1 and unreadable[0].fatal and "UTF-8" in unreadable[0].detail


def test_a_fault_of_the_machine_is_no_fault_of_a_label(
    own: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(RunError, match=r"a\.png: .*memory"):
        verify_examples(list_examples(own, tmp_path), progress=False)


def test_a_file_of_a_usual_kind_is_preferred(own: Benchmark, tmp_path: Path) -> None:
    for name in ("a.heic", "a.psd"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    found = list_examples(own, tmp_path)
    assert found.examples[0].image.name == "a.jpg"
    assert kinds(found.problems) == [
        ("passed over", "a.heic", False),
        ("passed over", "a.psd", False),
    ]
    (tmp_path / "photos/a.jpg").unlink()
    assert [p.fatal for p in list_examples(own, tmp_path).problems] == [True]


def test_lines_of_other_folders_are_no_one_image(own: Benchmark, tmp_path: Path) -> None:
    listed = dataclasses.replace(own, list=str(tmp_path / "list.txt"))
    for text, fatal in (
        ("seq1/a\nseq2/a\n", True),
        ("photos/a.jpg\n./a.png\n", False),
        ("a\na", False),
    ):
        (tmp_path / "list.txt").write_text(text)
        assert [p.fatal for p in list_examples(listed, tmp_path).problems] == [fatal]
