r"""TCL on image-text pairs of your own, upon a published CLIP or one of yours.

    python -m tcl_jax.main --config=configs/pairs.py --workdir=runs/pairs \
        --config.data.shards=data/own/train --config.eval.shards=data/own/held_out

This builds on CLIP ViT-B/16, which is downloaded once, and `--config.model.weights=runs/pairs_clip`
on the CLIP of a run of configs/pairs_clip.py, whose workdir it is; a path or another name does,
too. Pairs that are held out judge the run every 250 steps, as in configs/pairs_clip.py, and at its
end propose a threshold for its masks; `--config.eval.tasks="('mine.toml',)"` judges it on labelled
images of yours as well. The same command with more `train.total_steps` goes on longer. On
accelerators `model.dtype=bfloat16` is faster. The phases are the paper's, in fewer steps; results
of this recipe have not been measured yet.
"""

from ml_collections import ConfigDict

from configs.pairs_clip import get_config as clip_config
from configs.tcl import get_config as paper_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/pairs_clip.py."""
    config, paper = clip_config(), paper_config()
    config.objective = "tcl"
    config.model.weights = paper.model.weights
    config.model.variant, config.model.sizes = "auto", paper.model.sizes

    # Higher than the paper's, since the decoder's gates start at 0 and there are few steps.
    config.optim.base_lr = 1e-3
    config.optim.min_lr = 5e-5
    config.optim.warmup_steps = 100
    config.optim.b2 = 0.999
    config.optim.clip_norm = 5.0

    config.train.global_batch_size = 64
    config.train.total_steps = 2000
    config.train.backbone_from_step = 1200

    config.eval.kp_weight = 0.0  # a small CLIP's own masks are poor
    return config
