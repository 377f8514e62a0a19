"""README's commands do what it says: each is taken from the file and run, on tiny things.

A command that is added to README is run without a change here, if it is of the kinds in PROGRAMS.
What it needs goes into tests/readme_folder.py; what is special about it, into SPECIAL.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from configs.tcl import get_config as paper_config
from tcl_jax.errors import InputError, RunError
from tcl_jax.models.clip import VARIANTS
from tcl_jax.parallel.processes import check_host_name
from tcl_jax.weights.hub import OPENAI_SHA256
from tests.in_process import Done, run_module
from tests.readme_folder import ROOT, SIZES, make_folder

README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"{(\w+)}")
TRAINING = shlex.split("python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes")
"""Makes what several blocks begin with, as the first of README does."""


@dataclasses.dataclass(frozen=True)
class Special:
    """What is special about a command.

    Attributes:
        why: the reason.
        more: flags after those of README, which make it shorter.
        code: its exit code.
        says: what it prints, whatever the code.
        writes: files that it leaves, besides those that its flags name.
        alone: whether it runs in a process of its own, as those do that JAX must be set up for.
        instead: arguments that take the place of README's.
    """

    why: str
    more: tuple[str, ...] = ()
    code: int = 0
    says: str = ""
    writes: tuple[str, ...] = ()
    alone: bool = False
    instead: tuple[str, ...] | None = None


def can_connect() -> bool:
    """Whether several processes can find each other."""
    try:
        check_host_name()
    except RunError:
        return False
    return True


LIBTPU = importlib.util.find_spec("libtpu") is not None
GRADIO = importlib.util.find_spec("gradio") is not None
FEW = ("--rounds=1", "--warmup=1")
# By the words that a command begins with; of several that fit, the longest.
SPECIAL = {
    "bash launch/test.sh": Special("it runs these tests", instead=("--help",), says="usage:"),
    "bash launch/measure_gpu.sh": Special("it takes minutes", instead=("--help",), says="usage:"),
    "bash launch/local_processes.sh": Special(
        "the processes report together at the end", writes=("{workdir}/results.json",)
    ) if can_connect() else Special(
        "they cannot connect", code=1, says="does not resolve"
    ),
    "bash launch/tpu_vm.sh": Special("README's is a dry run", says="gcloud compute tpus"),
    "sbatch": Special("there is no cluster", says="-m tcl_jax.main"),
    "python -m tcl_jax.segment": Special(
        "README says what a picture gets",
        writes=("{output}/*_overlay.png", "{output}/*_labels.png", "{output}/*_masks.npz"),
    ),
    "python -m tcl_jax.convert tcl": Special("no flag names the file", writes=("models/tcl",)),
    "python -m tcl_jax.convert export-torch": Special(
        "no flag names the file", writes=("tcl.safetensors",)
    ),
    "python -m tcl_jax.main": Special(
        "README says what the work directory gets",
        writes=("{workdir}/metrics.jsonl", "{workdir}/tensorboard/*", "{workdir}/*.json"),
    ),
    "python -m tcl_jax.preview": Special("the default of --output", writes=("preview.png",)),
    "python -m tcl_jax.bench input": Special(
        "ten seconds for each number of workers", more=("--seconds=0.1", "--workers=0")
    ),
    "python -m tcl_jax.bench train": Special(
        "large batches and many programs take long",
        more=(*FEW, "--steps=1", "--batch_sizes=2", "--phases=1"),
    ),
    "python -m tcl_jax.bench masks": Special(
        "many programs take long", more=(*FEW, "--calls=1", "--pamr=yes")
    ),
    "python -m tcl_jax.plan": Special(
        "the TPU's compiler is not everywhere, and wants other settings of JAX",
        alone=True,
        **({"says": "v5e"} if LIBTPU else {"code": 2, "says": "pip install 'tcl_jax[tpu]'"}),
    ),
    "python -m tcl_jax.benchmarks check": Special(
        "of each benchmark there is one image", code=1, says="8 of 8 are incomplete"
    ),
    "python -m tcl_jax.benchmarks prepare": Special(
        "of each benchmark there is one image", says="1 labels are there",
        writes=(
            "data/coco_stuff164k/annotations/val2017/*_instanceTrainIds.png",
            "data/VOCdevkit/VOC2010/SegmentationClassContext/*.png",
        ),
    ),
    "python -m tcl_jax.evaluate": Special(
        "README says what the folder gets, with several methods a folder for each",
        writes=tuple(f"{{output}}/**/{name}" for name in ("results.json", "results.md", "*.html")),
    ),
    "python -m tcl_jax.evaluate --compare": Special("it writes nothing"),
}  # fmt: skip
SERVERS = {
    "python -m tcl_jax.demo": Special(
        "it serves until Ctrl-C",
        **({} if GRADIO else {"code": 2, "says": "pip install .[demo]"}),
    ),
}
"""They are started, asked for their page and stopped with Ctrl-C."""


# ------------------------------------------------------------------------------ what README says


def blocks(text: str) -> list[tuple[str, str]]:
    """Languages and contents of the fenced blocks."""
    return BLOCK.findall(text)


def commands(block: str) -> list[list[str]]:
    """The commands of a bash block, as words without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def find(words: list[str], table: dict[str, Special]) -> Special | None:
    """The entry of a command."""
    told = " ".join(words) + " "
    fitting = [start for start in table if told.startswith(start + " ")]
    return table[max(fitting, key=len)] if fitting else None


# ------------------------------------------------------------------------------------ how it is run


def environment(words: list[str], folder: Path) -> dict[str, str]:
    """Of a process in the folder."""
    # The TPU's compiler refuses flags of the CPU's.
    left_out = ("XLA_FLAGS",) if "tcl_jax.plan" in words else ()
    return {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # as here, for programs to be the same
    }


def run_process(words: list[str], folder: Path) -> Done:
    """In a process of its own."""
    program = [sys.executable] if words[0] == "python" else words[:1]
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment(words, folder), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return Done(done.returncode, done.stdout)


def run_script(words: list[str], folder: Path) -> Done:
    """A script of launch/: its help, and the script in a folder whose .venv is this Python."""
    told = run_process([*words[:2], "--help"], folder)
    if told.code or "usage:" not in told.said:
        return told
    return run_process(words, folder)


def run_server(words: list[str], folder: Path) -> Done:
    """Starts a server, opens the page that it names, and stops it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *words[1:], f"--port={port}"], cwd=folder, env=environment(words, folder),
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


def check_files(words: list[str], folder: Path) -> Done:
    """What needs a cluster or another program: the files that it names are there."""
    named = [word for word in words[1:] if "/" in word and "=" not in word and ":" not in word]
    lacking = [word for word in named if not (ROOT / word).exists()]
    if lacking or not (named or "." in words):
        return Done(2, f"names no file of the repository, or these, which are not there: {lacking}")
    return Done(0, "")


def run_batch_script(words: list[str], folder: Path) -> Done:
    """What sbatch would start: the script tells what it would do."""
    start = next((i for i, word in enumerate(words) if word.startswith("launch/")), None)
    if start is None:
        return Done(2, "names no script of launch/")
    return run_process(["env", "DRY_RUN=1", "bash", *words[start:]], folder)


PROGRAMS: dict[str, Callable[[list[str], Path], Done]] = {
    "python": run_module,
    "bash": run_script,
    "sbatch": run_batch_script,
    "kubectl": check_files,
    "docker": check_files,
}


def run(words: list[str], folder: Path) -> str:
    """Runs a command of README in the folder; says what went wrong, or nothing."""
    if server := find(words, SERVERS):
        done, special = run_server(words, folder), server
    else:
        special = find(words, SPECIAL) or Special("it is run as it is")
        if words[0] not in PROGRAMS:
            return f"there is no rule for {words[0]!r}: give it one in PROGRAMS of {__file__}"
        program = run_process if special.alone else PROGRAMS[words[0]]
        kept = words if special.instead is None else [*words[:2], *special.instead]
        promised = _promised(kept, special)
        before = {pattern: _state(folder, pattern) for pattern in promised}
        done = program([*kept, *special.more], folder)
        for pattern in promised if done.code == special.code else ():
            if _state(folder, pattern) in ({}, before[pattern]):
                return f"has not written {pattern}\n{done.said}"
    if done.code != special.code:
        wanted = f"{special.code} ({special.why})" if special.code else "0"
        return f"ended with exit code {done.code} rather than {wanted}\n{done.said}"
    if special.says not in done.said:
        return f"did not say {special.says!r}\n{done.said}"
    return ""


def _promised(words: list[str], special: Special) -> list[str]:
    """Patterns of what the command writes, if it runs here."""
    if "--dry-run" in words or words[0] not in ("python", "bash"):
        return []
    flags = dict(word[2:].split("=", 1) for word in words if re.match(r"--\w+=", word))
    named = [flags[name] for name in ("output", "json", "workdir") if name in flags]
    patterns = [pattern for pattern in special.writes if set(FLAG.findall(pattern)) <= {*flags}]
    return [*named, *(pattern.format(**flags) for pattern in patterns)]


def _state(folder: Path, pattern: str) -> dict[Path, int]:
    """The files of a pattern and those below it, and when they were written."""
    found = [path for top in folder.glob(pattern) for path in (top, *top.rglob("*"))]
    return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


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
        # Commands compile much that others have compiled.
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        yield folder
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "block"),
    [
        pytest.param(language, block, id=block.partition("\n")[0][:50])
        for language, block in blocks(README.read_text(encoding="utf-8"))
        if language
    ],
)
def test_every_command_runs(language: str, block: str, folder: Path) -> None:
    """Those of a block one after the other; blocks in any order."""
    if "runs/shapes" in block.replace(TRAINING[-1], "") and not (folder / "runs/shapes").exists():
        assert not run(TRAINING, folder)
    if language == "python":
        assert not _python(block, folder)
    wrong = []
    for words in commands(block) if language == "bash" else ():
        if told := run(words, folder):
            wrong.append(f"{shlex.join(words)}\n{told}")
    assert not wrong, "\n\n".join(wrong)


def _python(block: str, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = _state(folder, "masks")
        try:
            exec(compile(block, "README.md", "exec"), {})
        except InputError as error:
            return str(error)
        wrote = "save(" not in block or _state(folder, "masks") != before
        return "" if wrote else "wrote no masks"


def test_blocks_are_of_languages_that_are_run() -> None:
    found = blocks(README.read_text(encoding="utf-8"))
    assert {language for language, _ in found} <= {"bash", "python", "mermaid", ""}
    assert sum(len(commands(block)) for language, block in found if language == "bash") > 20
    for language, block in found:
        assert language or " -m " not in block, "commands belong into blocks of bash"


def test_fields_that_readme_names_are_those_of_configs() -> None:
    config = paper_config()
    parts = "|".join(name for name, value in config.items() if hasattr(value, "items"))
    names = re.findall(rf"(?<![\w./])(?:--config\.)?({parts})\.(\w+)", README.read_text())
    fields = [(part, name) for part, name in names if name not in ("py", "json")]
    assert len(fields) > 3
    for part, name in fields:
        assert name in config[part], f"README names {part}.{name}, which no config has"


def test_extras_that_readme_names_are_those_of_setup() -> None:
    named = set(re.findall(r"(?<!\w)\.\[(\w+)\]", README.read_text()))
    setup = (ROOT / "setup.py").read_text()
    assert named and all(f'"{name}": [' in setup for name in named)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -m tcl_jax.segment --image=x", "exit code 2"),
        ("python -m tcl_jax.segment --help --output=masks", "has not written masks"),
        ("python -m tcl_jax.benchmarks check --data=nowhere voc", "did not say '8 of 8"),
        ("bash launch/none.sh", "exit code 127"),
        ("make all", "there is no rule for 'make'"),
        ("kubectl apply -f launch/none.yaml", "launch/none.yaml"),
    ],
)
def test_commands_that_would_fail_for_a_reader_fail(
    command: str, message: str, tmp_path: Path
) -> None:
    assert message in run(shlex.split(command), tmp_path)


def test_the_table_of_the_method_names_what_is_there() -> None:
    table = README.read_text(encoding="utf-8").split("## The method in the code")[1]
    rows = [
        row.split("|")[2:4] for row in table.split("## ")[0].splitlines() if row.endswith(".py` |")
    ]
    assert len(rows) >= 10
    for functions, files in rows:
        paths = re.findall(r"`(\S+?\.py)`", files)
        code = "".join((ROOT / "tcl_jax" / path).read_text(encoding="utf-8") for path in paths)
        for name in re.findall(r"`([\w.]+)`", functions):
            assert re.search(rf"^ *(def|class) {name.split('.')[-1]}\b", code, re.MULTILINE), name
