"""TCL on drawn scenes, embedded data and a CLIP that ships with the package.

python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes
"""

from ml_collections import ConfigDict

from configs.shapes_clip import get_config as clip_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/shapes_clip.py, whose CLIP it builds on."""
    config = clip_config()
    config.objective = "tcl"
    config.model.weights = "builtin:shapes_clip"

    config.loss.area_prior = 0.3

    config.optim.base_lr = 2e-3
    config.optim.min_lr = 1e-4
    config.optim.warmup_steps = 20
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0

    config.train.global_batch_size = 64
    config.train.total_steps = 240
    config.train.backbone_from_step = 120
    config.train.log_every = 20
    config.train.checkpoint_every = 60

    config.eval.every = 80
    config.eval.best_metric = "shapes/miou"
    config.eval.kp_weight = 0.0
    return config
