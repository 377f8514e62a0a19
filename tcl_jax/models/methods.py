"""The methods that segment, by name. A new one is a subclass of `Method` and a row here."""

from __future__ import annotations

from tcl_jax.models.dense import NACLIP, SCLIP, MaskCLIP
from tcl_jax.models.dinotxt import DinoTxt
from tcl_jax.models.method import Method
from tcl_jax.models.talk2dino_method import Talk2DINO
from tcl_jax.models.tcl import TCL
from tcl_jax.models.tips import TIPS

METHODS: dict[str, type[Method]] = {
    "tcl": TCL,
    "maskclip": MaskCLIP,
    "sclip": SCLIP,
    "naclip": NACLIP,
    "tips": TIPS,
    "dinotxt": DinoTxt,
    "talk2dino": Talk2DINO,
}
