r"""TCL on DINOv2 in place of CLIP's vision tower: this project's own variant of the paper's run.

    python -m tcl_jax.main --config=configs/tcl_dino.py --workdir=runs/tcl_dino \
        --config.data.shards="('data/cc3m/{00000..00331}.tar','data/cc12m/{00000..01242}.tar')"

The grounder's blocks, its feature layer and its final norm are copied from DINOv2-B/14 with
registers, and a new projection leads into the space of CLIP's texts; the losses are the paper's.
CLIP, frozen, embeds the texts and the masked images. Both towers are downloaded once; without
internet put dinov2_vitb14_reg4_pretrain.pth and ViT-B-16.pt into weights/. Data and benchmarks are
those of configs/tcl.py. Nobody has published this recipe, and its results on photographs have not
been measured yet.
"""

from ml_collections import ConfigDict

from configs.tcl import get_config as paper_config


def get_config() -> ConfigDict:
    """Everything that differs from configs/tcl.py."""
    config = paper_config()
    config.objective = "tcl_dino"

    # A name of models.families.PRETRAINED, or the path of a file or folder.
    config.model.backbone = "dinov2-reg:B/14"
    # Side of the images in pixels: a multiple of both towers' patches. 14 and 16 take multiples of
    # 112, such as 224, 336 and 448; two of 16 take multiples of 16.
    config.model.image_size = 224
    # How the new projection begins: "least_squares" takes mean patches to CLIP's embeddings of the
    # run's first 4,096 images; or "random".
    config.model.projection = "least_squares"
    return config
