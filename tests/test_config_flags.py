"""--config and its overrides, apart from the commands that read them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


def test_a_built_in_config_is_found_by_name_and_a_path_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config("configs/shapes.py", [], "x")
    assert config is not None and config.data.source == "shapes"
    (tmp_path / "configs").mkdir()
    own = "from configs.tcl import get_config as base\n\ndef get_config():\n    c = base()\n"
    (tmp_path / "configs/shapes.py").write_text(f"{own}    c.seed = 5\n    return c\n")
    config = read_config("configs/shapes.py", [], "x")
    assert config is not None and config.seed == 5 and config.data.source == "tar"


@pytest.mark.slow
def test_installed_configs_build_on_each_other(tmp_path: Path) -> None:
    """As `pip install .` lays them out, where no checkout is on Python's path."""
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    for folder in ("tcl_jax", "configs"):
        unmade = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=unmade)
    shutil.copy(ROOT / "setup.py", source)
    build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={site}"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    assert [path.name for path in site.iterdir()] == ["tcl_jax"]
    empty.mkdir()
    code = (
        "import os, sys\n"
        "sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'configs'))]\n"
        "from tcl_jax.config_flags import read_config\n"
        "print(read_config('configs/shapes.py', [], 'x').data.source)\n"
        "print(sys.modules['configs.tcl'].__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.stdout.split() == ["shapes", str(site / "tcl_jax/configs/tcl.py")], done.stderr


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("none.py", [], "--config='none.py': there is no such file"),
        (str(ROOT), [], "there is no such file"),
        (TCL, ["--config.data.flop=1"], 'flop.* Did you mean "flip"'),
        (TCL, ["--data.flip=1"], "data.flip.*; a field of the config is --config.FIELD=VALUE"),
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
