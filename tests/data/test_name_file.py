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
    [
        "photo at 10:30",
        "ratio 16:9",
        "http://x.y/1:80",
        "at 10:30\ncat\nat 11:45",
        "a photo of 3 dogs\nnine cats",
        "car [front]\ncar [back]",
        '"label"',
        "at 10:30\nat 11:45",
    ],
)
def test_texts_with_numbers_and_signs(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == NameFile(tuple((x.strip('"'),) for x in text.split("\n")))


def test_commas_are_synonyms_also_among_numbers(tmp_path: Path) -> None:
    found = read(tmp_path, 'a photo of 3 dogs, 2 cats and 1 bird\n"class", lesson\n')
    assert found.classes == (("a photo of 3 dogs", "2 cats and 1 bird"), ("class", "lesson"))
    assert read(tmp_path, '"class", lesson').classes == (("class", "lesson"),)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, "cat\r\nKäfer\r\n", encoding).classes == (("cat",), ("Käfer",))


@pytest.mark.parametrize(("encoding", "why"), [("latin-1", "Latin-1"), ("utf-16-le", "UTF-16")])
def test_encodings_without_one(tmp_path: Path, encoding: str, why: str) -> None:
    with pytest.raises(InputError, match=f"cannot be read: .*{why}.* as UTF-8"):
        read(tmp_path, "cat\nKäfer\n", encoding)


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
        ("cat\n0: dog\n", "line 1, 'cat'"),
        ("0: cat\n0: dog\n", "line 2, '0: dog', has the label value of line 1"),
        ("-1: plate\n0: cat\n", "line 1, '-1: plate', .* -1"),
        ("7 road\n8 sidewalk\n", "line 1, '7 road', may be"),
        ("0 7 road\n1 8 sidewalk\n", "line 1"),
        ("id name\n0 cat\n", "line 1, 'id name', looks like a heading"),
        ("name\ncat\n", "line 1, 'name', looks like a heading"),
        ("id,name\n0,cat\nx,dog\n", "line 3, 'x,dog', lacks 'id'"),
        ("id,name\n0,cat\n1\n", "line 3, '1', lacks"),
        ("r,g,b,name\n128,0,0,cat\n", "line 1, .* without label values"),
        ('"name","description"\n"cat","small"\n', "line 1, .*is the heading"),
        ("cat,128,0,0\n", "line 1, .* expected is a class a line"),
        ("# label:color_rgb:parts:actions\ncat:128,0,0::\n", "line 2, .* a colour"),
        ("64 128 64\tAnimal\n", "line 1, .* a colour"),
        ("path: x\nnames:\n  0: person\n", "line 2, 'names:', looks like JSON, YAML"),
        ('{"categories": [{"id": 1, "name": "cat"}]}', "line 1, .* expected is a class"),
        ("- cat\n- dog\n", "line 1, .* YAML"),
        ("wall\nbuilding;edifice\n", "line 2, .* commas"),
        ("cat\nvoid\n", "line 2, 'void', names no class"),
        ("cat\ndog, 4\n", "line 2, .* a number for a name"),
        ("cat\ndog,\n", "line 2, .* a comma too many"),
        ("cat: 0\ndog: 1\n", "line 1, 'cat: 0', .* value behind .*`0: cat`"),
        ("cat 0\ndog 1\n", "line 1, 'cat 0', may be"),
        ("names: [cat, dog]\n", "line 1, .* YAML"),
        ('cat\n"dog" food\n', "line 2, .* quotes"),
    ],
)
def test_other_formats_are_refused_by_their_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError, match=f"names.txt': {line}"):
        read(tmp_path, text)
