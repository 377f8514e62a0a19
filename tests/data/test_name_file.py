"""Files of class names and words, as people and labelling tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl_jax.data.name_file import NameFile, read_names
from tcl_jax.errors import InputError

ABC = (("cat",), ("dog",), ("grass",))


def read(folder: Path, text: str, encoding: str = "utf-8") -> NameFile:
    (folder / "names.txt").write_bytes(text.encode(encoding))
    return read_names(folder / "names.txt", "class names 'names.txt'")


def test_names_and_synonyms(tmp_path: Path) -> None:
    plain = read(tmp_path, "# mine\ncat\n\n dog , puppy\nbow_(ribbon)\ncar\n2 wheeler\n")
    assert plain == NameFile(
        (("cat",), ("dog", "puppy"), ("bow_(ribbon)",), ("car",), ("2 wheeler",))
    )
    quoted = read(tmp_path, '"a cat, sitting"\ndog, "puppy, small"\n"0: none"\n"id"\n12" record\n')
    assert quoted.classes == (
        ("a cat, sitting",), ("dog", "puppy, small"), ("0: none",), ("id",), ('12" record',),
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["photo at 10:30", "ratio 16:9", "http://x.y/1:80", "at 10:30\ncat\nat 11:45",
     "a photo of 3 dogs\nnine cats", "car [front]\ncar [back]", '"label"', "at 10:30\nat 11:45"],
)  # fmt: skip
def test_texts_with_numbers_and_signs(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == NameFile(tuple((x.strip('"'),) for x in text.split("\n")))


def test_commas_are_synonyms_also_among_numbers(tmp_path: Path) -> None:
    found = read(tmp_path, 'a photo of 3 dogs, 2 cats and 1 bird\n"class", lesson\n')
    assert found.classes == (("a photo of 3 dogs", "2 cats and 1 bird"), ("class", "lesson"))
    assert read(tmp_path, '"class", lesson').classes == (("class", "lesson"),)


def test_encodings(tmp_path: Path) -> None:
    assert read(tmp_path, "cat\r\nKäfer\r\n", "utf-16").classes == (("cat",), ("Käfer",))
    with pytest.raises(InputError, match="names.txt' cannot be read: .*UTF-8"):
        read(tmp_path, "cat\nKäfer\n", "latin-1")


@pytest.mark.parametrize(
    "text",
    [
        "id,name\n0,cat\n2,grass\n1,dog\n",
        'name;color;id\ncat;red;0\n"dog";x;1\ngrass;;2\n',
        '"","label"\n"0","cat"\n"1","dog"\n"2","grass"\n',  # a data frame's
        "0: cat\n1: dog\n2: grass\n",
        "2:grass\n0:cat\n1:dog\n",
        "0\tcat\n1\tdog\n2\tgrass\n",
        "-1: ignore\n0: cat\n1: dog\n2: grass\n",
        "0,cat\n1,dog\n2,grass\n255,void\n",
    ],
)
def test_names_with_their_label_values(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert (found.classes, found.values, found.background) == (ABC, (0, 1, 2), False)
    assert set(found.ignored) <= {255}


def test_values_with_gaps_and_synonyms(tmp_path: Path) -> None:
    found = read(tmp_path, "7: road, street\n255: thing\n11: wall\n")
    assert found == NameFile((("road", "street"), ("wall",), ("thing",)), (7, 11, 255))
    ade = read(tmp_path, "Idx,Ratio,Train,Name\n1,0.15,11664,wall\n2,0.1,6046,building;edifice\n")
    assert ade == NameFile((("wall",), ("building", "edifice")), (1, 2))


def test_the_list_of_labelme(tmp_path: Path) -> None:
    found = read(tmp_path, "__ignore__\n_background_\ncat\ndog\n")
    assert found == NameFile((("cat",), ("dog",)), (1, 2), True, (255,))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cat\n0: dog\n", 1),
        ("0: cat\n0: dog\n", 2),
        ("-1: plate\n0: cat\n", 1),
        ("7 road\n8 sidewalk\n", 1),
        ("0 7 road\n1 8 sidewalk\n", 1),
        ("id name\n0 cat\n", 1),
        ("name\ncat\n", 1),
        ("id,name\n0,cat\nx,dog\n", 3),
        ("id,name\n0,cat\n1\n", 3),
        ("r,g,b,name\n128,0,0,cat\n", 1),
        ('"name","description"\n"cat","small"\n', 1),
        ("cat,128,0,0\n", 1),
        ("# label:color_rgb:parts:actions\ncat:128,0,0::\n", 2),
        ("64 128 64\tAnimal\n", 1),
        ("path: x\nnames:\n  0: person\n", 2),
        ('{"categories": [{"id": 1, "name": "cat"}]}', 1),
        ("- cat\n- dog\n", 1),
        ("wall\nbuilding;edifice\n", 2),
        ("cat\nvoid\n", 2),
        ("cat\ndog, 4\n", 2),
        ("cat\ndog,\n", 2),
        ("cat: 0\ndog: 1\n", 1),
        ("cat 0\ndog 1\n", 1),
        ("names: [cat, dog]\n", 1),
        ('cat\n"dog" food\n', 2),
    ],
)
def test_other_formats_are_refused_by_their_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(InputError, match=f"names.txt': line {line}, .*expected is a class a line"):
        read(tmp_path, text)
