"""TCL on drawn scenes: embedded data, and a CLIP that ships with the package.

    python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes

Takes about three and a half minutes on two CPU cores. Prints, and writes to results.json and
shapes.png, zero-shot mIoU on held-out scenes of the CLIP alone (about 36) and of TCL (about 65),
over all classes and over the pairs that no training caption names (about 41 and 63).
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
    config.eval.background = 0.32  # best on validation scenes
    config.eval.kp_weight = 0.0  # CLIP's own masks are tuned to photographs
    return config
