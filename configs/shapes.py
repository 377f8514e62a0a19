"""TCL on drawn scenes: embedded data, and a CLIP that ships with the package.

    python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes

Takes about four minutes on two CPU cores. Prints, and writes to results.json and shapes.png,
zero-shot scores on held-out scenes of the CLIP alone and of TCL, each without PAMR and with it:
mIoU over all classes (about 36, 39, 68 and 81) and over the pairs that no training caption names
(41, 46, 66 and 79), and the share of right pixels within 2 pixels of true edges (42, 40, 64, 85).

The decoder does next to nothing here: its gates end below 0.05, since what the contrastive terms
ask of a gate differs from batch to batch by five to ten times its mean. Begun at 0.5 instead of 0,
gates close to between 0.1 and 0.2 in 240 steps, and gain 1.0 mIoU without PAMR, 0.6 with it (one
seed); total variation matters little, begun at 0.2 they close to 0.08 without it, too.
"""

from ml_collections import ConfigDict

from configs.shapes_clip import get_config as clip_config
from configs.tcl import get_config as paper_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/shapes_clip.py, whose CLIP it builds on."""
    config = clip_config()
    config.objective = "tcl"
    config.model.weights = "builtin:shapes_clip"
    config.model.variant, config.model.sizes = "auto", paper_config().model.sizes

    config.loss.area_prior = 0.3  # objects cover 31 % of a scene, and captions skip some
    config.loss.tv = 0.1  # masks of 32 x 32 pixels have a larger share of edges than photographs

    config.optim.base_lr = 1e-2
    config.optim.min_lr = 3e-4
    config.optim.warmup_steps = 20
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0

    config.train.global_batch_size = 32
    config.train.total_steps = 720
    config.train.backbone_from_step = 240
    config.train.log_every = 40
    config.train.checkpoint_every = 80

    config.eval.every = 240
    config.eval.best_metric = "shapes/miou"
    config.eval.pamr = True  # masks of few patches are blocks without it
    config.eval.background = 0.34  # best on validation scenes
    config.eval.kp_weight = 0.0  # CLIP's own masks are tuned to photographs
    return config
