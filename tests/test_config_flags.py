"""--config and its overrides, apart from the commands that read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl_jax.config_flags import read_config
from tcl_jax.errors import InputError

ROOT = Path(__file__).parent.parent
TCL = str(ROOT / "configs/tcl.py")


def test_fields_are_overridden_and_a_second_config_is_another() -> None:
    config = read_config(
        TCL, ["--config.data.flip=0.25", "--config.data.shards=('a.tar','b.tar')"], "x"
    )
    assert config is not None and config.data.flip == 0.25
    assert tuple(config.data.shards) == ("a.tar", "b.tar")
    other = read_config(TCL, [], "x")
    assert other is not None and other.data.flip == 0.5
    assert read_config(None, [], "x") is None


def test_bases_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config(str(ROOT / "configs/shapes.py"), ["--config.seed", "7"], "x")
    assert config is not None and config.seed == 7 and config.data.source == "shapes"


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("none.py", [], "--config='none.py': there is no such file"),
        (str(ROOT), [], "there is no such file"),
        (TCL, ["--config.data.flop=1"], "flop"),
        (TCL, ["--config.data.flip=much"], "flip"),
        (TCL, ["--confg=1"], "confg"),
        (TCL, ["more"], r"\['more'\] are not flags"),
        (None, ["--config.seed=1"], "give one with --config=FILE"),
        (None, ["--secnds=1"], "secnds"),
    ],
)
def test_mistakes_are_explained(file: str | None, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(file, overrides, "x")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: .*nothing_of_that_name"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config():\n    return undefined", "NameError: .*undefined"),
        ("def get_config():\n    return [].absent", "names what is not there: .*absent"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_mistakes_in_a_file_are_explained(code: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(InputError, match=message):
        read_config(str(file), [], "x")
