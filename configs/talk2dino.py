r"""Talk2DINO: CLIP's texts learn to speak of DINOv2's patches (Barsellotti et al., ICCV 2025).

Both towers are frozen. Their features of all images and captions are computed once, and then a
projection of a caption's embedding trains on these, in minutes on one accelerator:

    python -m tcl_jax.embed_images --config=configs/talk2dino.py
    python -m tcl_jax.main --config=configs/talk2dino.py --workdir=runs/talk2dino
    python -m tcl_jax.segment --checkpoint=runs/talk2dino --image=photo.jpg --text="a cat" \
        --text=grass --output=out
    python -m tcl_jax.evaluate --checkpoint=runs/talk2dino --data=data --output=results

The pairs are COCO Captions 2014 as tensorflow-datasets prepares them, which is done once, too:

    tfds.builder("coco_captions").download_and_prepare(file_format="array_record")

82,783 images and 414,113 captions; `data.features` takes 2.4 GB. Other pairs: all that TCL trains
on, such as --config.data.source=tar --config.data.shards="('data/coco/*.tar',)" with captions in a
list of KEY.json, or a mixture. Every caption is one sample. Other towers: `model.backbone` is a
name as dinov2-reg:L/14 or dinov3:B/16, or a file; with a ViT-L, --config.eval.background=0.54.
`model.weights` is any CLIP, or the text tower of TIPS or dino.txt: tips:B/14, dinotxt-v2:L/14, or a
file with it. Features of other data or towers are kept apart in the same folder.

Several processes share the embedding of one folder, and training goes on any number of devices. A
run is evaluated while it trains where `eval.tasks` names benchmarks (and `eval.every` how often):

    python -m tcl_jax.main --config=configs/talk2dino.py --workdir=runs/talk2dino \
        --config.eval.tasks="('voc20','context59')"

Published mIoU of ViT-B, mean of eight benchmarks: 43.8 (46.3 with PAMR). This project has not
measured that run yet. It differs from the original in two things: epochs follow each other without
a smaller last batch, and images' features are kept in float16.
"""

from ml_collections import ConfigDict

from configs.tcl import get_config as paper_config

CAPTIONS = 414_113
EPOCHS = 100


def get_config() -> ConfigDict:
    """Everything that differs from configs/tcl.py."""
    config = paper_config()
    config.objective = "talk2dino"
    config.model.weights = "ViT-B/16"  # its text tower
    config.model.backbone = "dinov2-reg:B/14"
    config.model.dtype = "float32"  # the towers run once

    config.data.features = "data/features"
    config.data.source = "tfds"
    config.data.rand_augment.operations = 0
    config.data.random_erasing = 0.0
    config.data.num_workers = 4

    config.loss.area_group = 0

    config.optim.base_lr = config.optim.min_lr = 1e-4  # constant
    config.optim.scale_with_batch = False
    config.optim.warmup_steps = 0
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1e9  # never

    config.train.global_batch_size = 128
    config.train.total_steps = EPOCHS * CAPTIONS // config.train.global_batch_size
    config.train.backbone_from_step = 0
    config.train.log_every = 500
    config.train.checkpoint_every = 10_000

    config.eval.every = 32_000
    config.eval.tasks = ()
    config.eval.templates = "subset"
    config.eval.background = 0.55
    config.eval.kp_weight = 0.0
    return config
