"""Lists as spreadsheets, pandas, COCO and `datasets` write them become shards."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tcl_jax.data.caption_files import read_caption_file
from tcl_jax.data.image_names import ImageFolder
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError
from tcl_jax.pack import run
from tcl_jax.parallel.lock import locked
from tests.data.shards import picture


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pics/a.JPG, pics/b é.png and pics/c/d.1.jpg."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics/c").mkdir(parents=True)
    (tmp_path / "pics/a.JPG").write_bytes(picture(0))
    (tmp_path / "pics/b é.png").write_bytes(picture(100, "PNG"))
    (tmp_path / "pics/c/d.1.jpg").write_bytes(picture(200))
    return tmp_path


IMAGES = [picture(0), picture(100, "PNG"), picture(200)]


def packed(*flags: str) -> dict[bytes, list[str]]:
    """The captions of the images in the shards that the command makes of pics/."""
    shutil.rmtree("out", ignore_errors=True)
    run(["pics", *flags, "out"])
    return {pair["image"]: sorted(pair["text"]) for pair in TarSource(["out/train"])}


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("out/pack.json").read_text())
    return content


def left_out() -> dict[str, list[str]]:
    return {k: [x["image"] for x in v["images"]] for k, v in report()["left_out"].items()}


def test_a_spreadsheet_with_everything_wrong(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows paths, a mark at the start, quotes, newlines, rows of one image, and what is bad."""
    long = "seconds " * 50
    (here / "pics/same.jpg").write_bytes(picture(0))
    (here / "pics/broken.jpg").write_bytes(picture(7)[:-200])
    (here / "pics/nobody's.jpg").write_bytes(picture(8))
    rows = [
        ("ID", "File Name", "Caption"),
        (1, r"C:\my pics\a.jpg", 'a "cat", \n sitting'),
        (2, r"C:\my pics\b é.png", "[grey] wall"),
        (3, r"C:\my pics\c\d.1.jpg", '["one", "two"]'),
        (3, r"c\d.1.jpg", "[3]"),
        (4, r"C:\my pics\a.jpg", long),
        (5, r"C:\my pics\same.jpg", "third"),
        (6, r"C:\my pics\broken.jpg", "half"),
        (7, r"C:\my pics\gone.jpg", "nothing"),
        (7, r"C:\my pics\gone.jpg", "in two rows"),
        (8, r"C:\my pics\c\d.1.jpg", " "),
    ]
    with (here / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    found = packed("--captions=list.csv")
    assert found == {
        IMAGES[0]: ['a "cat", \n sitting', long.strip(), "third"],
        IMAGES[1]: ["[grey] wall"],
        IMAGES[2]: ["[3]", "one", "two"],
    }
    assert left_out() == {
        "missing_image": [r"C:\my pics\gone.jpg"],
        "empty_caption": [r"C:\my pics\c\d.1.jpg"],
        "no_caption": ["nobody's.jpg"],
        "duplicate_image": ["same.jpg"],
        "unreadable_image": ["broken.jpg"],
    }
    assert report()["pairs"] == {"train": 3, "held_out": 0} and report()["captions"] == 7
    said = capsys.readouterr().out
    assert "missing image: 1: " in said and "line 10: there is no such file" in said
    assert report()["tokens"] == {"mean": 10.25, "longest": 52, "longest_of_99_percent": 52}
    # 3 do not fill a batch, and one of 8 captions does not fit 48 tokens.
    flags = " --config.data.shards=out/train --config.train.global_batch_size=2"
    assert said.endswith(f"{flags} --config.model.sizes.context_length=64\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # pandas' to_csv(sep="\t"), then one without heading and with quotes that are letters.
        ("p.tsv", '\timage_path\ttext\n0\ta.JPG\t"say ""x"""\n1\tb é.png\ty\n2\tc/d.1.jpg\tz\n'),
        ("raw.tsv", 'say "x"\ta.JPG\ny\tb é.png\nz\td.1.jpg\n'),
        ("quotes.tsv", 'image\tcaption\na.JPG\t say "x"\nb é.png\ty\nd.1\tz\n'),
        ("semi.csv", 'caption;image\r\n"say ""x""";A.jpg\r\ny;b é\r\nz;c/d.1.jpg\r\n'),
        ("flickr.txt", 'a.JPG#0\tsay "x"\nb é.png#0\ty\nd.1.jpg#0\tz\n'),
        ("pipes.csv", 'image_name| comment_number| comment\na.JPG| 0| say "x"\nb é.png| 0| y\n'
                      "d.1.jpg| 0| z\n"),
        ("l.jsonl", '{"file_name": "a.JPG", "text": "say \\"x\\""}\n\n'
                    '{"file_name": "b é.png", "text": ["y"]}\n'
                    '{"file_name": "c/d.1.jpg", "text": "z"}'),
        ("map.json", '{"a.JPG": "say \\"x\\"", "b é.png": ["y"], "c/d.1.jpg": "z"}'),
        ("rows.json", '{"data": [{"img": "a.JPG", "caption": "say \\"x\\""}, {"img": "b é.png",'
                      '"caption": "y"}, {"img": "c/d.1.jpg", "caption": "z"}]}'),
        ("coco.json", json.dumps({
            "info": {}, "licenses": [], "annotations": [
                {"image_id": 9, "id": 1, "caption": "z"}, {"image_id": 4, "id": 2, "caption": "y "},
                {"image_id": 7, "id": 3, "caption": 'say "x"\n'},
            ], "images": [{"id": i, "file_name": name, "height": 16, "width": 16} for i, name in
                          ((7, "a.JPG"), (4, "b é.png"), (9, "d.1.jpg"))]})),
    ],
)  # fmt: skip
def test_every_format(here: Path, name: str, text: str) -> None:
    (here / name).write_text(text, encoding="utf-8")
    found = packed(f"--captions={name}")
    assert found == dict(zip(IMAGES, [['say "x"'], ["y"], ["z"]], strict=True))
    assert left_out() == {}


def test_other_columns_by_flags(here: Path) -> None:
    (here / "l.csv").write_text("nr,what,words\n1,a.JPG,x\n")
    with pytest.raises(InputError, match="hold images; it has 'nr', 'what', 'words'.*image_column"):
        packed("--captions=l.csv")
    assert packed("--captions=l.csv", "--image_column=what", "--caption_column=words") == {
        IMAGES[0]: ["x"]
    }
    with pytest.raises(InputError, match="'what' cannot hold both .*--caption_column"):
        packed("--captions=l.csv", "--image_column=what", "--caption_column=what")
    (here / "l.csv").write_text("a.JPG,x,y\n")
    assert packed("--captions=l.csv", "--caption_column=2") == {IMAGES[0]: ["x"]}


def test_texts_beside_images_or_metadata(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "names.csv").write_text("")
    with pytest.raises(
        InputError, match=r"3 images, and none has captions in.*names.csv.*--captions"
    ):
        packed()
    (here / "pics/a.txt").write_text("x\n")
    (here / "pics/b é.json").write_text('{"caption": ["y", "y2"]}')
    (here / "pics/c/d.1.TXT").write_text(" ")
    assert packed() == {IMAGES[0]: ["x"], IMAGES[1]: ["y", "y2"]}
    assert left_out() == {"empty_caption": ["c/d.1.jpg"]}
    (here / "pics/metadata.jsonl").write_text('{"file_name": "c/d.1.jpg", "text": "z"}')
    assert packed() == {IMAGES[2]: ["z"]}


def test_data_sets_on_disk(here: Path) -> None:
    """As `save_to_disk` and the hub have them."""
    pics, kind = here / "pics", pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": data, "path": None} for data in IMAGES[:2]] + [
        {"bytes": None, "path": "c/d.1.jpg"}
    ]
    table = pa.table(
        {
            "image": pa.array(images, kind),
            "label": [0, 0, 0],
            "caption": pa.array([["x"], ["y", "y2"], ["z"]], pa.list_(pa.string())),
        }
    )
    expected = dict(zip(IMAGES, (["x"], ["y", "y2"], ["z"]), strict=True))
    (pics / "train").mkdir()
    (pics / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (pics / "train/state.json").write_text(json.dumps(state))
    with pa.ipc.new_stream(pics / "train/data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert packed() == expected
    (pics / "dataset_dict.json").unlink()
    shutil.rmtree(pics / "train")
    for split in ("train", "test"):
        rows = table if split == "train" else table.slice(0, 1)
        pq.write_table(rows, pics / f"{split}-00000-of-00001.parquet", row_group_size=2)
    assert packed() == expected
    (here / "names.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="names.parquet"):
        packed("--captions=names.parquet")
    pq.write_table(pa.table({"path": ["a.JPG"], "text": ["x"]}), here / "names.parquet")
    assert packed("--captions=names.parquet") == {IMAGES[0]: ["x"]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["default/train/0000", "default/train/0001", "default/validation/0000"], {0, 1}),
        (["data/train", "data/test"], {0}),
        (["a/train-0", "b/train-1", "b/karpathy_test"], {0, 1}),
        (["train/data-00000-of-00001", "test/data-00000-of-00001"], {0}),
        (["train2017/x", "val2017/x", "more"], {0}),
        (["x-00000-of-00002", "x-00001-of-00002"], {0, 1}),
        (["2023/part_0", "2024/part_0", "latest"], {0, 1, 2}),
        (["my_train", "validation"], None),
    ],
)  # fmt: skip
def test_splits_of_tables(here: Path, files: list[str], expected: set[int] | None) -> None:
    """Tables of the same name in several folders stay apart, and only those of one split count."""
    for number, file in enumerate(files):
        path = here / f"pics/{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [picture(2 * number), picture(2 * number + 1)]
        rows = [{"bytes": data, "path": None} for data in images]
        pq.write_table(pa.table({"image": rows, "caption": [f"{number}a", f"{number}b"]}), path)
    if expected is None:
        with pytest.raises(
            InputError, match="splits my_train, validation; give the folder or file"
        ):
            packed()
        return
    assert packed() == {
        picture(2 * n + k): [f"{n}{text}"] for n in expected for k, text in enumerate("ab")
    }
    assert left_out() == {}


def test_stopped_and_begun_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held out is never trained on; shards are whole or absent, and the same each time."""
    lines = ["image,caption"]
    for number in range(20):
        (here / f"pics/{number}.png").write_bytes(picture(10 * number + 1, "PNG"))
        lines.append(f"{number}.png,n{number}")
    (here / "l.csv").write_text("\n".join(lines))
    flags = ["pics", "--captions=l.csv", "--held_out=0.3", "--shard_pairs=5"]
    run([*flags, "whole"])
    files = [f"{name}.tar" for name in ("held_out/00000", "held_out/00001", "train/00000",
                                        "train/00001", "train/00002")]  # fmt: skip
    assert sorted(str(f.relative_to("whole")) for f in Path("whole").rglob("*.tar")) == files
    train, held_out = ({e["text"][0] for e in TarSource([f"whole/{part}"])} for part in
                       ("train", "held_out"))  # fmt: skip
    assert (len(train), len(held_out)) == (14, 6) and not train & held_out

    from tcl_jax.data import tar_writer

    add = tar_writer._add
    # Stopped in its first shard it may begin with other flags; in the second it has one to keep.
    for stop_at, begun, there in ((1, flags[:2], []), (1, flags, []), (13, flags, ["00000.tar"])):
        calls: list[Any] = []

        def stop(*args: Any, calls: list[Any] = calls, stop_at: int = stop_at) -> None:
            calls.append(args)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            add(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tar_writer, "_add", stop)
            run([*begun, "out"])
        assert [f.name for f in Path("out/train").iterdir()] == there
        assert not report()["complete"]
    kept = Path("out/train/00000.tar").stat().st_mtime_ns
    run([*flags, "out"])
    assert Path("out/train/00000.tar").stat().st_mtime_ns == kept
    for file in (*files, "pack.json"):
        assert Path("out", file).read_bytes() == Path("whole", file).read_bytes()
    for wrong, message in (
        ([*flags[:3], "out"], "of other images, captions or flags"),
        ([*flags, "pics"], "not made by this command"),
        ([*flags, "l.csv/out"], "l.csv is a file"),
        ([*flags[:2], "--held_out=20", "new"], "some must be left to train on"),
        ([*flags[:2], "--held_out=1", "new"], "one of 20 images"),
    ):
        with pytest.raises(InputError, match=message):
            run(wrong)
    run([*flags[:2], "--held_out=0.02", "few"])  # two, though one is the share
    assert json.loads(Path("few/pack.json").read_text())["pairs"] == {"train": 18, "held_out": 2}


def test_one_run_at_a_time(here: Path) -> None:
    (here / "l.csv").write_text("image,caption\na.JPG,x\n")
    with locked(here / "out", "it"), pytest.raises(InputError, match="OUT='out': another run"):
        run(["pics", "--captions=l.csv", "out"])
    run(["pics", "--captions=l.csv", "out"])
    assert report()["complete"]


def test_a_shard_of_unreadable_images_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no file, is not counted, and is not tried again."""
    (here / "pics/broken.jpg").write_bytes(picture(7)[:-200])
    (here / "l.csv").write_text("image,caption\na.JPG,x\nbroken.jpg,y\nb é.png,z\n")
    assert packed("--captions=l.csv", "--shard_pairs=1") == {IMAGES[0]: ["x"], IMAGES[1]: ["z"]}
    tars = ["out/train/00000.tar", "out/train/00002.tar"]
    assert sorted(map(str, Path("out").rglob("*.tar"))) == tars
    assert "out/train: 2 images in 2 tar shard(s)" in capsys.readouterr().out
    assert report()["bytes"] == sum(Path(tar).stat().st_size for tar in tars)
    before = Path("out/pack.json").read_bytes()
    times = [Path(tar).stat().st_mtime_ns for tar in tars]
    run(["pics", "--captions=l.csv", "--shard_pairs=1", "out"])
    assert Path("out/pack.json").read_bytes() == before
    assert [Path(tar).stat().st_mtime_ns for tar in tars] == times


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,caption\na.jpg,a dog, running\n", "line 2 has 3 cells and the first"),
        ("a.csv", 'image,caption\na.jpg,"a dog, big\nb.jpg,"x"\n', "line 3: .*quotes within a"),
        ("a.csv", b"image,caption\na.jpg,caf\xe9\n", "line 2 is not UTF-8"),
        ("a.csv", "", "it has no rows"),
        ("a.jsonl", '{"image": "a"\n', "line 1 is no JSON"),
        ("a.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}',
         "'caption' is not there as in captions_train2017.json"),
        ("a.json", "3", "no list of objects"),
        ("a.xlsx", "", "read are .csv"),
        ("a.csv", "image,caption\nb.jpg,x\n", "none of its 1 rows.*'b.jpg'.*'a.JPG'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(
    here: Path, name: str, text: str | bytes, message: str
) -> None:
    (here / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=message):
        packed(f"--captions={name}")


def test_names_from_elsewhere(here: Path) -> None:
    """Leading folders do not count where most names agree; a name never means another file."""
    folder = ImageFolder(here / "pics")
    for names, files, lead in (
        (["x/pics/a.jpg", "x/pics/c/d.1.jpg", "y/a.jpg"], ["a.JPG", "c/d.1.jpg", ""], "x/pics/"),
        (["/x/c/d.1.jpg", "./a.JPG", "c/a.jpg", "a"], ["", "a.JPG", "", "a.JPG"], ""),
        ([str(here / "pics/a.JPG"), "", "b e\u0301"], ["a.JPG", "", "b é.png"], None),
        ([str(here / "l.jpg")], [str(here / "l.jpg")], ""),
    ):
        (here / "l.jpg").write_bytes(b"")
        matches, found = folder.find_all(names)
        assert [match.file for match in matches] == files
        assert lead in (found, None)
    (here / "pics/d.1.png").write_bytes(b"")
    ((match,), _) = ImageFolder(here / "pics").find_all(["d.1"])
    assert match == ("d.1.png", "")
    (here / "pics/c/a.png").write_bytes(b"")
    ((match,), _) = ImageFolder(here / "pics/c").find_all(["A"])
    assert match.file == "a.png"
    (here / "pics/c/a.gif").write_bytes(b"")
    ((match,), _) = ImageFolder(here / "pics/c").find_all(["A"])
    assert match == ("", "several files may be meant: a.gif, a.png")


def test_rows_say_where_they_are(here: Path) -> None:
    (here / "a.csv").write_text('image,caption\na,"x\ny"\nb,z\n')
    rows, said = read_caption_file("a.csv")
    assert [(row.image, row.captions, row.where) for row in rows] == [
        ("a", ("x\ny",), "line 3"),
        ("b", ("z",), "line 4"),
    ]
    assert said == "images in column 'image', captions in column 'caption'"
