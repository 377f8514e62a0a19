r"""TCL on image-text pairs of your own, upon a CLIP of yours or a published one.

    python -m tcl_jax.main --config=configs/pairs.py --workdir=runs/pairs \
        --config.data.shards=data/own/train --config.eval.shards=data/own/held_out

This builds on the CLIP of the run of configs/pairs_clip.py in runs/pairs_clip; another's, as
`--config.model.weights=WORKDIR`, a path or a name does, too. Rates, the weight of total variation
and the prior suit that small CLIP and pictures in which what a caption names covers a sixth; upon a
published CLIP ones nearer to the paper's are in place (not measured):

    --config.model.weights=ViT-B/16 --config.optim.base_lr=1e-3 --config.loss.tv=1 \
        --config.loss.area_prior=0.4

Pairs that are held out judge the run every 250 steps, as in configs/pairs_clip.py, and at its end
propose a threshold for its masks; `--config.eval.tasks="('mine.toml',)"` judges it on labelled
images of yours as well. The same command with more `train.total_steps` goes on longer. On
accelerators `model.dtype=bfloat16` is faster. Upon that CLIP a pair takes 70 ms of one CPU core,
most of them the decoder's, which go with the square of the CLIP's width; the run's 32,000 take
about 40 CPU minutes.

Chosen by trials of 8,000 pairs (250 steps, the second phase from 150; one seed) upon the CLIP that
configs/pairs_clip.py tells of, on 150 pictures whose objects cover 15 %. In %: IoU of all objects
together, where everything would be 15; mIoU when each picture is offered its own names alone, with
the background; regions named right by one of 200 names.

    rate 1e-3                                             19.7   17.8    6.8
    rate 1e-2                                             23.1   21.4    7.1
    rate 1e-2, loss.tv=0.1                                25.6   21.8   10.2
    rate 1e-2, loss.tv=0.1, loss.area_prior=0.2           36.0   28.4   12.9   (below)

64,000 pairs at the first rate (1,000 steps of 64, 75 CPU minutes) came to 22.0, 20.3 and 13.6: the
prior matters most. The whole run as below has not been measured.
"""

from ml_collections import ConfigDict

from configs.pairs_clip import get_config as clip_config
from configs.tcl import get_config as paper_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/pairs_clip.py."""
    config, paper = clip_config(), paper_config()
    config.objective = "tcl"
    config.model.weights = "runs/pairs_clip"
    config.model.variant, config.model.sizes = "auto", paper.model.sizes

    config.loss.area_prior = 0.2  # what a caption's mask covers: less than in the paper's photos
    config.loss.tv = 0.1  # small objects have a larger share of edges

    # Higher than the paper's, since the decoder's gates start at 0 and there are few steps.
    config.optim.base_lr = 1e-2
    config.optim.min_lr = 5e-5
    config.optim.warmup_steps = 80
    config.optim.b2 = 0.999
    config.optim.clip_norm = 5.0

    config.train.global_batch_size = 32
    config.train.total_steps = 1000
    config.train.backbone_from_step = 600

    config.eval.kp_weight = 0.0  # a small CLIP's own masks are poor
    return config
