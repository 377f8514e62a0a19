r"""The paper's run: TCL on ViT-B/16 with CC3M + CC12M (Cha et al., CVPR 2023, section 4.1).

    python -m tcl_jax.main --config=configs/tcl.py --workdir=runs/tcl \
        --config.data.shards="('data/cc3m/{00000..00331}.tar','data/cc12m/{00000..01242}.tar')"

Needs three things. CLIP ViT-B/16 (`model.weights`): by name it is downloaded once; without internet
put OpenAI's own ViT-B-16.pt into weights/, or give the path of any CLIP file. The image-text pairs
as webdataset tar shards (`data.shards`), as img2dataset writes them: CC3M with 2,881,393 and CC12M
with 11,286,526 pairs, up to 10,000 a shard. It trains on whatever shards are there, and the log
counts and names those that are not; `data.allow_missing_shards=False` insists on all of them. And
the train splits of PASCAL VOC 2012 and PASCAL Context in data/, on which it is judged every 2,500
steps (`python -m tcl_jax.benchmarks check --split=train voc20 context59` says what is missing;
`--config.eval.tasks="()"` does without).

50,001 steps of 1,024 pairs; the paper used 16 GPUs of 64 pairs each. Published zero-shot mIoU, mean
of eight benchmarks: 33.9 (37.2 with PAMR). This project has not measured that run yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every field of a run; other configs change what differs."""
    config = ConfigDict()
    config.objective = "tcl"  # or "clip": the CLIP itself; "tcl_dino", "talk2dino": their configs
    config.seed = 0

    config.model = ConfigDict()
    config.model.weights = "ViT-B/16"  # a name, a path, a CLIP run's workdir, or builtin:NAME
    config.model.prefix = ""  # of the CLIP that is meant, where the file holds several; ".": none
    config.model.variant = "auto"  # sizes of `weights`; or a row of models.clip.VARIANTS, "custom"
    config.model.sizes = ConfigDict()  # what differs from the variant; 0: nothing
    config.model.sizes.embed_dim = 0
    config.model.sizes.resolution = 0
    config.model.sizes.patch_size = 0
    config.model.sizes.vision_width = 0
    config.model.sizes.vision_layers = 0
    config.model.sizes.text_width = 0
    config.model.sizes.text_layers = 0
    config.model.sizes.context_length = 0
    config.model.sizes.vocab_size = 0
    config.model.sizes.activation = ""
    config.model.backbone = ""  # of both on a DINO: a name as dinov2-reg:B/14, or a file
    config.model.backbone_heads = 0  # of its attention, where no file says it; 0: the usual
    config.model.image_size = 0  # of "tcl_dino": side in pixels
    config.model.projection = ""  # of "tcl_dino": how it begins
    config.model.feature_layer = 0  # block that feeds the grounder; 0: the last but one
    config.model.dtype = "bfloat16"  # compute; parameters, norms, softmax and losses are float32

    config.data = ConfigDict()
    config.data.source = "tar"  # tar, tfds, mixture or shapes, see data/sources.py
    config.data.shards = ("data/cc3m/*.tar", "data/cc12m/*.tar")  # files, folders, gs://, {0..331}
    config.data.allow_missing_shards = True  # train on what is there; the log says what is not
    config.data.index_dir = ""  # folder of the shards' index files; "": beside the shards
    config.data.caption_field = ""  # of KEY.json; "": KEY.txt, then caption, captions, text, ...
    config.data.caption_cache = False  # read what tcl_jax.embed_captions computed once
    config.data.features = ""  # folder of what tcl_jax.embed_images computed, for "talk2dino"
    config.data.tfds = ConfigDict()  # what source="tfds" reads
    config.data.tfds.name = "coco_captions"
    config.data.tfds.split = "train"
    config.data.tfds.data_dir = ""  # "": where tensorflow-datasets keeps its own
    config.data.tfds.image = "image"  # features, nested ones with slashes
    config.data.tfds.text = "captions/text"  # of several captions one is drawn each time
    config.data.tfds.key = ""  # feature that names an example in messages
    config.data.mixture = ConfigDict()  # what source="mixture" mixes: NAME = {source, ..., weight}
    config.data.num_examples = 2_000_000  # what source="shapes" draws; scenes of an epoch
    config.data.max_objects = 3  # of a drawn scene
    config.data.max_bad_share = 0.05  # of samples that cannot be used; more stop the run
    config.data.crop_scale = (0.08, 1.0)  # share of the image's area
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = 0.5
    config.data.rand_augment = ConfigDict()  # timm's rand-m9-mstd0.5-inc1
    config.data.rand_augment.operations = 2  # drawn per image; 0: none
    config.data.rand_augment.probability = 0.5  # that one that is drawn is applied
    config.data.rand_augment.magnitude = 9.0  # mean strength, 0 to 10
    config.data.rand_augment.magnitude_std = 0.5
    config.data.random_erasing = 0.25  # share of the images that lose a rectangle to noise
    config.data.num_workers = 8  # processes; 0 reads in the main process

    config.loss = ConfigDict()
    config.loss.tcl = 0.1
    config.loss.area = 0.4
    config.loss.tv = 1.0
    config.loss.area_prior = 0.4  # expected share of the image that a caption's mask covers
    # Images whose mean area is compared with the prior, consecutive ones of the global batch, on
    # however many devices; 0: all. 64 as in the paper's run, which compared on each of its GPUs.
    config.loss.area_group = 64
    config.loss.temperature = 1.0

    config.optim = ConfigDict()
    config.optim.base_lr = 3e-4
    config.optim.min_lr = 4e-5
    config.optim.scale_with_batch = True  # both rates x global_batch_size / 4096
    config.optim.warmup_steps = 15_000
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-6
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0

    config.train = ConfigDict()
    config.train.global_batch_size = 1024
    config.train.total_steps = 50_000  # of the schedule; the loop makes one step more
    config.train.backbone_from_step = 30_000  # phase 2: the grounder's blocks train too
    config.train.accumulation_steps = 1  # parts of a batch: less memory, same loss, more time
    config.train.remat = "none"  # what is computed again, not kept: none, activations, blocks
    config.train.fsdp = False  # split parameters over the devices, too
    config.train.log_every = 50
    config.train.checkpoint_every = 1000
    config.train.keep_latest = 2
    config.train.keep_best = 3

    config.eval = ConfigDict()
    config.eval.every = 2500
    # Benchmarks by name or a .toml file of yours, "shapes", "pairs"; () for none.
    config.eval.tasks = ("voc20", "context59")
    config.eval.shards = ()  # held-out pairs, as data.shards: with them "pairs" is a task, too
    config.eval.names = ""  # of "pairs": a file of names, a class a line; "": none are looked for
    config.eval.data = "data"  # folder of the benchmarks, see python -m tcl_jax.benchmarks check
    config.eval.split = "train"  # of the benchmarks; "": val, or what your .toml file says
    config.eval.num_scenes = 512  # that the task "shapes" draws, 128 at least
    config.eval.best_metric = ""  # "task/score" that ranks checkpoints, higher is better
    config.eval.batch_size = 64  # images of the tasks "shapes" and "pairs" at a time
    # Prompts for class names: a set of inference/templates.py, or "a picture of a {}; a drawn {}".
    config.eval.templates = "custom"
    config.eval.background = 0.5  # score of the background class
    config.eval.pamr = False
    config.eval.kp_weight = 0.3
    return config
