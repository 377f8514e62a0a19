r"""Turns tar shards into a data set of tensorflow-datasets, stored as ArrayRecord.

    python -m tcl_jax.data.tfds_builder --name=cc3m --data_dir=/data/tfds \
        --shards='data/cc3m/{00000..00331}.tar'
    python -m tcl_jax.main --config=configs/tcl.py --workdir=runs/tcl --config.data.source=tfds \
        --config.data.tfds.name=image_text_pairs/cc3m --config.data.tfds.data_dir=/data/tfds

One shard becomes one file; images stay the bytes they are, and nothing is shuffled, since training
reads in any order. Needs as much free space as the shards take, and no TensorFlow. Any program can
read the result with tfds.data_source; a bucket holds it as well once the folder is copied there and
mounted. Exit codes: 0 done, 1 failure, 2 bad input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from tcl_jax.commands import command_parser
from tcl_jax.config_flags import show_own_log
from tcl_jax.data.shard_names import shorten
from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError, run_command


def make_builder(source: TarSource, *, name: str, data_dir: str) -> Any:
    """A tfds.core.DatasetBuilder of `image_text_pairs/NAME`, with the split `train`.

    Features: `image` (encoded bytes), `text` and `key`.

    Args:
        source: the tar shards.
        name: of this data set among others.
        data_dir: folder for it.
    """
    # Not at import: it takes seconds, and is needed by those alone who prepare data.
    import tensorflow_datasets as tfds

    version = tfds.core.Version("1.0.0")

    # Not registered, so that the prepared files speak for themselves when they are read.
    class ImageTextPairs(  # type: ignore[call-arg]
        tfds.core.ShardBasedBuilder, skip_registration=True
    ):
        VERSION = version
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=name, version=version),)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(),
                "text": tfds.features.Text(),
                "key": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images with captions, from webdataset tar shards.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[_Shard]]:
            del dl_manager
            return {"train": [_Shard(source, part) for part in source.ranges]}

    return ImageTextPairs(data_dir=data_dir, config=name, file_format="array_record")


class _Shard:
    """The examples of one shard."""

    def __init__(self, source: TarSource, part: range) -> None:
        self._source, self._part = source, part

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in self._part:
            pair = self._source[i]
            yield i, {"image": _Once(pair["image"]), "text": pair["text"] or "", "key": pair["key"]}


class _Once:
    """An image file that can be read once: the writer keeps what it is given to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        """All bytes, which are forgotten here."""
        data, self._data = self._data, b""
        return data


def prepare(
    patterns: Sequence[str],
    *,
    name: str,
    data_dir: str,
    allow_missing: bool = False,
    index_dir: str | None = None,
) -> str:
    """Writes the data set; does nothing if it is there already.

    Args:
        patterns: tar shards, as `TarSource` takes them.
        name: of the data set.
        data_dir: folder for it.
        allow_missing, index_dir: as in `TarSource`.

    Returns:
        The folder with its files.

    Raises:
        InputError: shards are missing or cannot be read, the name is none, or there is a data set
            of that name with another number of pairs.
    """
    if not name.isidentifier():
        raise InputError(
            f"--name={name!r}: tensorflow-datasets takes letters, digits and _ only, as in cc3m"
        )
    source = TarSource(patterns, allow_missing=allow_missing, index_dir=index_dir)
    builder = make_builder(source, name=name, data_dir=data_dir)
    if builder.is_prepared() and builder.info.splits["train"].num_examples != len(source):
        raise InputError(
            f"{builder.data_dir} holds a data set of other shards, of "
            f"{builder.info.splits['train'].num_examples} pairs, where these have {len(source)}; "
            "give another --name, or remove that folder first"
        )
    logging.info("writing %d pairs of %s", len(source), shorten(source.patterns))
    builder.download_and_prepare()
    return str(builder.data_dir)


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    p = command_parser("data.tfds_builder", __doc__)
    p.add_argument("--shards", action="append", required=True, help="path or pattern of tar files")
    p.add_argument("--name", required=True, help="of the data set, as cc3m")
    p.add_argument("--data_dir", required=True, metavar="DIR")
    p.add_argument("--index_dir", metavar="DIR", help="where index files of the shards go")
    p.add_argument("--allow_missing", action="store_true", help="go on without missing shards")
    flags = p.parse_args(argv)
    folder = prepare(
        flags.shards,
        name=flags.name,
        data_dir=flags.data_dir,
        allow_missing=flags.allow_missing,
        index_dir=flags.index_dir,
    )
    print(f"wrote {folder}; --config.data.tfds.name=image_text_pairs/{flags.name} reads it")


def main() -> None:
    """Entry point."""
    show_own_log()
    run_command(run)


if __name__ == "__main__":
    main()
