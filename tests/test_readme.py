"""README's commands do what it says: each is taken from the file and run, on tiny things.

A command that is added to README is run without a change here. What it needs goes into
tests/readme_folder.py; what is special about it, into SPECIAL.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from configs.tcl import get_config as paper_config
from tcl_jax.evaluation.published import PUBLISHED
from tcl_jax.evaluation.results import published_mean
from tcl_jax.models.clip import VARIANTS
from tcl_jax.weights.hub import OPENAI_SHA256
from tests.in_process import Done, run_module
from tests.readme_folder import ASKED, OUTSIDE, ROOT, SIZES, make_folder

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
"""Languages and contents."""
TRAINING = shlex.split("python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes")
"""Makes what several blocks begin with, as the first of README does."""


@dataclasses.dataclass(frozen=True)
class Special:
    """What is special about a command.

    Attributes:
        more: flags after those of README, which make it shorter.
        code: its exit code.
        says: what it prints, whatever the code.
        instead: arguments that take the place of README's.
    """

    more: tuple[str, ...] = ()
    code: int = 0
    says: str = ""
    instead: tuple[str, ...] | None = None


GRADIO = importlib.util.find_spec("gradio") is not None
FEW = ("--rounds=1", "--warmup=1")
# By the words that a command begins with; of several that fit, the longest.
SPECIAL = {
    # It runs these tests.
    "bash launch/test.sh": Special(instead=("--help",), says="usage:"),
    # It takes minutes.
    "bash launch/measure_gpu.sh": Special(instead=("--help",), says="usage:"),
    "bash launch/tpu_vm.sh": Special(says="gcloud compute tpus"),  # a dry run
    "python -m tcl_jax.bench input": Special(more=("--seconds=0.1", "--workers=0")),
    "python -m tcl_jax.bench train": Special(
        more=(*FEW, "--steps=1", "--batch_sizes=2", "--phases=1")
    ),
    "python -m tcl_jax.bench masks": Special(more=(*FEW, "--calls=1", "--pamr=yes")),
    "python -m tcl_jax.bench masks --method=all": Special(
        # ProxyCLIP takes multiples of 56.
        more=(*FEW, "--calls=1", "--pamr=no", "--windows=56"),
        says="clip_dinoiser",
    ),
    # Without the TPU's compiler; tests/plan has it compile.
    "python -m tcl_jax.plan": Special(code=2, says="pip install 'tcl_jax[tpu]'"),
    # Of each benchmark there is one image.
    "python -m tcl_jax.benchmarks check": Special(code=1, says="8 of 8 are incomplete"),
    "python -m tcl_jax.benchmarks prepare": Special(says="1 labels are there"),
    "python -m tcl_jax.demo": Special() if GRADIO else Special(code=2, says="pip install .[demo]"),
}


def commands(block: str) -> list[list[str]]:
    """The commands of a bash block, as words without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


# ------------------------------------------------------------------------------------ how it is run


def environment(folder: Path) -> dict[str, str]:
    """Of a process in the folder."""
    return {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_script(words: list[str], folder: Path) -> Done:
    """A script of launch/, and what it asks of Python, unless several processes must meet."""
    done = subprocess.run(
        words, cwd=folder, env=environment(folder), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    asked = folder / ASKED
    lines = asked.read_text().splitlines() if asked.exists() else []
    asked.unlink(missing_ok=True)
    for line in lines:
        if "--coordinator" not in line and done.returncode == 0:
            return run_module(["python", *line.split()], folder)
    return Done(done.returncode, done.stdout)


def run_server(words: list[str], folder: Path) -> Done:
    """Starts a server, opens the page that it names, and stops it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *words[1:], f"--port={port}"], cwd=folder, env=environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if address := re.search(r"https?://\S+:\d+", line):
                with urllib.request.urlopen(address[0]) as page:
                    assert page.status == 200
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate()
    finally:
        process.kill()
    return Done(process.returncode, said + rest)


def check_files(words: list[str]) -> Done:
    """What needs a cluster: the files that it names are there."""
    named = [word for word in words[1:] if word.startswith("launch/")]
    lacking = [word for word in named if not (ROOT / word).exists()]
    return Done(int(bool(lacking or not named)), f"files that are not there: {lacking}")


def run(words: list[str], folder: Path) -> str:
    """Runs a command of README in the folder; says what went wrong, or nothing."""
    line = f"{shlex.join(words)} "
    fitting = [start for start in SPECIAL if line.startswith(f"{start} ")]
    special = SPECIAL[max(fitting, key=len)] if fitting else Special()
    words = words if special.instead is None else [*words[:2], *special.instead]
    words = [*words, *special.more]
    if words[0] in OUTSIDE:
        done = check_files(words)
    elif words[0] == "bash":
        done = run_script(words, folder)
    else:
        server = "tcl_jax.demo" in words
        done = run_server(words, folder) if server else run_module(words, folder)
    if done.code != special.code:
        return f"ended with exit code {done.code} rather than {special.code}\n{done.said}"
    if special.says not in done.said:
        return f"did not say {special.says!r}\n{done.said}"
    outputs = re.findall(r"^--(?:output|json|workdir)=(.*)", "\n".join(words), re.MULTILINE)
    lacking = [name for name in outputs if not (folder / name).exists()]
    return f"has not written {lacking}\n{done.said}" if lacking and words[0] == "python" else ""


# -------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, digest = make_folder(tmp_path_factory.mktemp("readme"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setitem(VARIANTS, "ViT-B/16", SIZES)
        patch.setitem(OPENAI_SHA256, "ViT-B/16", digest)
        # What stands in for the official code computes no masks.
        equal = "tcl_jax.bench.against.Official.check"
        patch.setattr(equal, lambda *_, **__: {"masks": 0.0})
        find_spec = importlib.util.find_spec
        patch.setattr("importlib.util.find_spec", lambda x: None if x == "libtpu" else find_spec(x))
        # Commands compile much that others have compiled.
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield folder
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.partition("\n")[0][:50])
        for language, block in BLOCKS
        if language == "bash"
    ],
)
def test_every_command_runs(block: str, folder: Path) -> None:
    """Those of a block one after the other; blocks in any order."""
    if "runs/shapes" in block and not (folder / "runs/shapes").exists():
        assert not run(TRAINING, folder)
    wrong = [f"{shlex.join(x)}\n{problem}" for x in commands(block) if (problem := run(x, folder))]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
def test_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (folder / "runs/shapes").exists():
        assert not run(TRAINING, folder)
    monkeypatch.chdir(folder)
    for record in Path("masks").glob("*.json"):
        record.unlink()
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), {})
    (record,) = Path("masks").glob("*.json")
    assert len(list(Path("masks").glob(f"{record.stem}_*"))) == 3


def test_blocks_are_of_languages_that_are_run() -> None:
    assert {language for language, _ in BLOCKS} <= {"bash", "python", "mermaid", ""}
    for language, block in BLOCKS:
        assert language or " -m " not in block, "commands belong into blocks of bash"


def test_fields_that_readme_names_are_those_of_configs() -> None:
    config = paper_config()
    parts = "|".join(name for name, value in config.items() if hasattr(value, "items"))
    names = re.findall(rf"(?<![\w./])(?:--config\.)?({parts})\.(\w+)", TEXT)
    fields = [(part, name) for part, name in names if name not in ("py", "json")]
    assert len(fields) > 3
    for part, name in fields:
        assert name in config[part], f"README names {part}.{name}, which no config has"


def test_extras_that_readme_names_are_those_of_setup() -> None:
    named = set(re.findall(r"(?<!\w)\.\[(\w+)\]", TEXT))
    setup = (ROOT / "setup.py").read_text()
    assert named and all(f'"{name}": [' in setup for name in named)


def test_published_scores_are_those_that_reports_show() -> None:
    table = TEXT.split("| method | published by its authors")[1].partition("\n\n")[0]
    rows = [row.split("|")[1:5] for row in table.splitlines()[2:]]
    shown = {protocol.strip(" `"): scores for _, scores, protocol, _ in rows}
    assert shown.keys() - {"tcl"} == {row.method for row in PUBLISHED} | {"clearclip"}
    for row in PUBLISHED:
        score = row.mean or published_mean(row.scores) or row.scores["ade20k"]
        assert f"{score:.1f}" in shown[row.method], row.title


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -m tcl_jax.segment --image=x", "exit code 2"),
        ("python -m tcl_jax.segment --help --output=masks", "has not written ['masks']"),
        ("python -m tcl_jax.benchmarks check --data=nowhere voc", "did not say '8 of 8"),
        ("bash launch/none.sh", "exit code 127"),
        ("kubectl apply -f launch/none.yaml", "launch/none.yaml"),
    ],
)
def test_commands_that_would_fail_for_a_reader_fail(
    command: str, message: str, tmp_path: Path
) -> None:
    assert message in run(shlex.split(command), tmp_path)


def test_the_table_of_the_method_names_what_is_there() -> None:
    table = TEXT.split("## The method in the code")[1]
    rows = [
        row.split("|")[2:4] for row in table.split("## ")[0].splitlines() if row.endswith(".py` |")
    ]
    assert len(rows) >= 10
    for functions, files in rows:
        paths = re.findall(r"`(\S+?\.py)`", files)
        code = "".join((ROOT / "tcl_jax" / path).read_text(encoding="utf-8") for path in paths)
        for name in re.findall(r"`([\w.]+)`", functions):
            assert re.search(rf"^ *(def|class) {name.split('.')[-1]}\b", code, re.MULTILINE), name
