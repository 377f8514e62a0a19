"""Data sets that tensorflow-datasets really prepares here, from tar shards and by its own means."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tcl_jax.config_flags import read_config
from tcl_jax.data.images import decode
from tcl_jax.data.sources import make_source
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.tfds_source import TfdsSource
from tcl_jax.data.tfds_writer import prepare
from tcl_jax.errors import InputError
from tests.data.shards import picture, write_shard

ROOT = Path(__file__).parent.parent.parent


class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Laid out as the known data set of this name, whose code needs TensorFlow, and a nested image.

    Image i of `train` has i % 4 captions.
    """

    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2014", version=tfds.core.Version("1.1.0")),)

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "meta": {"picture": tfds.features.Image(encoding_format="png")},
            "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        texts = {i: [f"{100 * i + k}" for k in range(i % 4)] for i in range(12)}
        return {
            "train": self._generate_examples(texts),
            "val": self._generate_examples({3: [b"caf\xe9"]}),
        }

    def _generate_examples(self, texts):
        for i, captions in texts.items():
            yield (
                i,
                {
                    "image": picture(20 * i),
                    "image/filename": f"{i} é",
                    "image/id": i,
                    "meta": {"picture": picture(20 * i + 1, "PNG")},
                    "captions": [{"id": k, "text": text} for k, text in enumerate(captions)],
                },
            )


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    CocoCaptions(data_dir=str(folder)).download_and_prepare(file_format="array_record")
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        members = {}
        for i in range(5 * shard, 5 * shard + 5):
            members[f"{i:04d}.jpg"] = picture(10 * i, ("JPEG", "PNG", "WEBP")[i % 3])
            members[f"{i:04d}.txt"] = f"{i} ☕".encode()
        write_shard(folder / f"{shard}.tar", members)
    return f"{folder}/{{0..2}}.tar"


def test_fields_of_a_data_set(captions):
    source = TfdsSource("coco_captions", "train", data_dir=captions, text="captions/text")
    assert len(source) == 12
    for example in source:
        assert isinstance(example["image"], bytes)
        number = round(decode(example["image"]).mean() / 20)
        assert example["text"] == [f"{100 * number + k}" for k in range(number % 4)]
        assert example["shard"] == "coco_captions/train"
    (nested,) = TfdsSource("coco_captions/2014", "val", data_dir=captions, image="meta/picture",
                           text="image/filename", key="image/id")  # fmt: skip
    assert nested == {"image": picture(61, "PNG"), "text": ["3 é"], "key": "3",
                      "shard": "coco_captions/2014/val"}  # fmt: skip
    other = TfdsSource("coco_captions", "val", data_dir=captions, text="captions/text")
    assert other[0]["problem"].kind == "not_utf8"
    quarter = TfdsSource("coco_captions", "train[:25%]", data_dir=captions, text="captions/text")
    assert len(quarter) == 3
    assert len({s.fingerprint for s in (source, other, quarter)}) == 3
    for outside in (12, -1):
        with pytest.raises(IndexError):
            source[outside]


@pytest.fixture(scope="module")
def prepared(shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of data sets, and that of the one which the shards became."""
    folder = tmp_path_factory.mktemp("prepared")
    return folder, prepare([shards], name="cc", data_dir=str(folder))


def test_tar_shards_become_array_records(shards, prepared):
    tars, (tmp_path, folder) = TarSource([shards]), prepared
    files = [path.name for path in Path(folder).glob("*array_record*")]
    assert sorted(files) == [
        f"image_text_pairs-train.array_record-0000{i}-of-00003" for i in range(3)
    ]
    source = TfdsSource("image_text_pairs/cc", "train", data_dir=str(tmp_path), key="key")
    assert len(source) == len(tars) == 15
    for ours, theirs in zip(source, tars, strict=True):
        assert ours["image"] == theirs["image"]  # not encoded anew
        assert (ours["text"], ours["key"]) == (theirs["text"], theirs["key"])
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] and copy.fingerprint == source.fingerprint
    # Any program reads it.
    plain = tfds.data_source("image_text_pairs/cc", split="train", data_dir=str(tmp_path))
    np.testing.assert_array_equal(plain[4]["image"], decode(tars[4]["image"]))


def test_prepared_data_is_kept_and_not_mixed_up(shards, prepared):
    tmp_path, folder = prepared
    before = {path: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    assert prepare([shards], name="cc", data_dir=str(tmp_path)) == folder
    assert {path: path.stat().st_mtime_ns for path in Path(folder).iterdir()} == before
    fewer = shards.replace("0..2", "0..1")
    with pytest.raises(InputError, match="other shards, of 15 pairs, where these have 10"):
        prepare([fewer], name="cc", data_dir=str(tmp_path))
    with pytest.raises(InputError, match="other shards, of 15 pairs, where these have 15"):
        prepare([shards], name="cc", data_dir=str(tmp_path), caption_field="caption")
    for name in ("a/b", "", "a-b"):
        with pytest.raises(InputError, match="letters, digits and _"):
            prepare([shards], name=name, data_dir=str(tmp_path))
    with pytest.raises(InputError, match="1 of 4 are missing: .*3.tar"):
        prepare([shards.replace("0..2", "0..3")], name="more", data_dir=str(tmp_path))
    with pytest.raises(InputError, match="--shards: .*no-such-name"):
        prepare(["hf://no-such-name"], name="more", data_dir=str(tmp_path))


def test_command_needs_no_tensorflow(shards, tmp_path):
    """And says how its result is read."""
    code = (
        "import sys; from tcl_jax.tfds_builder import run; run(sys.argv[1:]);"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    command = [sys.executable, "-c", code, f"--shards={shards}", "--name=cc"]
    done = subprocess.run(
        [*command, f"--data_dir={tmp_path}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    flags = [word for word in shlex.split(done.stdout.splitlines()[-1]) if word.startswith("--")]
    config = read_config(str(ROOT / "configs/tcl.py"), flags, "tfds_builder")
    assert config is not None and len(make_source(config.data, 32)) == 15


def test_what_cannot_be_read_is_named(captions):
    for name, split, message in (
        ("coco_captions", "test", "'coco_captions', split 'test'"),
        ("mnist", "train", "'mnist'.*Prepare it first, as ArrayRec"),
    ):
        with pytest.raises(InputError, match=message):
            TfdsSource(name, split, data_dir=captions)
    for field in ("caption", "captions/words", "image/filename/deep", "captions/text/deep"):
        with pytest.raises(InputError, match=f"no feature '{field}'; its features are"):
            TfdsSource("coco_captions", "train", data_dir=captions, text=field)
    with pytest.raises(InputError, match="no feature 'picture'"):
        TfdsSource("coco_captions", "train", data_dir=captions, image="picture")
