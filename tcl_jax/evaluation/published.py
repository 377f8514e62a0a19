"""Scores that the authors of other methods than TCL have published, to stand beside measured ones.

TCL's are in the benchmarks' own files (tcl_jax/assets/benchmarks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Published:
    """A model's row.

    Attributes:
        title: of the model.
        method: the one in `models.methods.METHODS` that it is shown beside.
        protocol: whose it was evaluated by, in words.
        scores: mIoU in per cent by name of a benchmark.
        mean: over the benchmarks of TCL's paper, where the scores of each are not known here.
    """

    title: str
    method: str
    protocol: str
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    mean: float | None = None

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.title}, published ({self.protocol})"


_OWN, _TCL = "its own protocol", "TCL's protocol"

PUBLISHED = (
    Published(
        "SCLIP ViT-B/16", "sclip", _OWN,
        {
            "voc": 59.63, "context": 31.74, "coco_object": 33.52, "voc20": 81.54,
            "context59": 34.46, "coco_stuff": 22.77, "cityscapes": 32.34, "ade20k": 16.45,
        },
    ),
    Published(
        "NACLIP ViT-B/16 + PAMR", "naclip", _OWN,
        {
            "voc": 64.07, "context": 34.99, "coco_object": 36.19, "voc20": 83.03,
            "context59": 38.35, "coco_stuff": 25.69, "cityscapes": 38.27, "ade20k": 19.05,
        },
    ),
    Published("SC-CLIP ViT-B/16", "sc_clip", _OWN, mean=43.9),
    Published("ProxyCLIP ViT-B/16 + DINO B/8", "proxyclip", _OWN, mean=42.3),
    Published("CLIP-DINOiser ViT-B/16", "clip_dinoiser", _OWN, mean=40.3),
    Published("Talk2DINO B/14", "talk2dino", _TCL, mean=43.8),
    Published("Talk2DINO B/14 + PAMR", "talk2dino", _TCL, mean=46.3),
    Published("TIPSv2 B/14", "tips", _OWN, {"ade20k": 17.4}),
    Published("TIPSv2 L/14", "tips", _OWN, {"ade20k": 24.7}),
    Published("TIPSv2 So400m/14", "tips", _OWN, {"ade20k": 23.3}),
    Published("TIPSv2 g/14", "tips", _OWN, {"ade20k": 17.8}),
    Published("dino.txt L/16 on DINOv3", "dinotxt", _OWN, {"ade20k": 24.7}),
)  # fmt: skip
"""As the authors' repositories and papers have them: of TIPSv2 and dino.txt ADE20K alone, of others
all eight or their mean."""
