r"""A CLIP for image-text pairs of your own: a small one from scratch, or a given one further.

    python -m tcl_jax.main --config=configs/pairs_clip.py --workdir=runs/pairs_clip \
        --config.data.shards=data/own/train --config.eval.shards=data/own/held_out

`pack --held_out` writes both. Every 250 steps the run is judged on the pairs that are held out, if
there are any: how many images find their captions, and captions their images, and with
`--config.eval.names=names.txt` (a class a line) how many images are named right.

The workdir gets clip_STEP.safetensors (OpenAI's tensor names, float16), and configs/pairs.py takes
it as its `model.weights`. The same command with more `train.total_steps` goes on longer. A
published CLIP, or one of yours, trains further with a lower rate; it has its own sizes, not those
below:

    --config.model.weights=ViT-B/16 --config.optim.base_lr=1e-5 --config.optim.min_lr=1e-6

Sizes and steps suit tens of thousands of pairs; `python -m tcl_jax.preview` shows what crops leave
of the images, and how many captions are longer than `model.sizes.context_length` tokens. On
accelerators `model.dtype=bfloat16` is faster. The recipe is that of configs/shapes_clip.py with
larger images and towers; a run of its full length, 65 CPU minutes of 256,000 pairs by the first
steps' time, has not been measured yet.

A pair takes 1.36 GFLOP, 15 ms of one CPU core. `--config.model.sizes.patch_size=12` with
`--config.model.sizes.context_length=16`, for captions that are so short, takes 0.58 and 8 to 9 ms.
In a trial (20 concepts, emoji by three hands on photographs, 3,000 pairs, batches of 64; seeds
0 and 1, one core of a busy machine) it saw 7,600 pairs in 76 CPU seconds and named 35.0 and 35.5 %
of single objects, where the sizes below saw 3,600 in 84 and named 22.0 and 21.5 %; by a hand never
seen 33.0 and 26.0 against 26.0 and 23.0 %; retrieval@1 among 128 was 6.5 and 7.6 against 4.0 and
3.6 %. What true masks cover, as MaskCLIP embeds it, was named no better, 9.0 and 5.6 against 12.4
and 7.9 %, and masks are made of patches: true masks, averaged over those of 8, 12 and 16 pixels and
brought back to 96, have an IoU of 76, 67 and 58 %. So patches of 8 pixels stay.

Rows of the token table that never occur train like others: 41,000 fewer save 0.03 s of a step of
128 pairs, which is 2 % (4 % with patches of 16).
"""

from ml_collections import ConfigDict

from configs.tcl import get_config as paper_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/tcl.py."""
    config = paper_config()
    config.objective = "clip"

    config.model.weights = ""
    config.model.variant = "custom"
    config.model.sizes.embed_dim = 128
    config.model.sizes.resolution = 96
    config.model.sizes.patch_size = 8
    config.model.sizes.vision_width = 128
    config.model.sizes.vision_layers = 6
    config.model.sizes.text_width = 128
    config.model.sizes.text_layers = 3
    config.model.sizes.context_length = 32
    config.model.dtype = "float32"

    config.data.shards = ()  # files, folders, patterns; all that has to be given
    config.data.allow_missing_shards = False
    config.data.crop_scale = (0.6, 1.0)  # smaller ones may lose what a caption names
    config.data.rand_augment.operations = 0  # captions name colours
    config.data.random_erasing = 0.0
    config.data.num_workers = 2

    config.loss.area_group = 0

    config.optim.base_lr = 1e-3
    config.optim.min_lr = 2e-5
    config.optim.scale_with_batch = False
    config.optim.warmup_steps = 250
    config.optim.b2 = 0.98
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0

    config.train.global_batch_size = 128
    config.train.total_steps = 2000
    config.train.backbone_from_step = 0
    config.train.checkpoint_every = 500

    config.eval.tasks = ()  # with eval.shards that of held-out pairs
    config.eval.every = 250
    config.eval.split = ""
    config.eval.templates = "simple"
    return config
