"""Sentences a class name is put into before it is embedded ("prompt ensembling").

The embedding of a class is the mean over its sentences, so that a set with more and more varied
ones gives a steadier target. `full` are the 80 that CLIP's authors used for ImageNet and `subset`
the 7 they found to do most of the work (Radford et al. 2021, section 3.1.4); `custom`, the subset
and two plurals, is what TCL is trained and evaluated with; `shapes` are those of drawn scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcl_jax.errors import InputError
from tcl_jax.shapes import grammar

_FULL = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.",
    "graffiti of a {}.", "a bad photo of the {}.", "a cropped photo of the {}.",
    "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.",
    "a photo of the cool {}.", "a close-up photo of a {}.", "a black and white photo of the {}.",
    "a painting of the {}.", "a painting of a {}.", "a pixelated photo of the {}.",
    "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.",
    "a rendering of the {}.", "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.",
    "a close-up photo of the {}.", "a photo of a {}.", "the origami {}.", "the {} in a video game.",
    "a sketch of a {}.", "a doodle of the {}.", "a origami {}.", "a low resolution photo of a {}.",
    "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.", "a photo of a large {}.",
    "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
    "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.",
    "a jpeg corrupted photo of the {}.", "a good photo of a {}.", "a plushie {}.",
    "a photo of the nice {}.", "a photo of the small {}.", "a photo of the weird {}.",
    "the cartoon {}.", "art of the {}.", "a drawing of the {}.", "a photo of the large {}.",
    "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.", "itap of a {}.",
    "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.",
    "a photo of a small {}.", "a tattoo of the {}.",
)  # fmt: skip
_SUBSET = (
    "itap of a {}.", "a bad photo of a {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
_MASKCLIP = (
    "there is a {} in the scene.", "there is the {} in the scene.", "this is a {} in the scene.",
    "this is the {} in the scene.", "this is one {} in the scene.",
)  # fmt: skip

TEMPLATES: dict[str, tuple[str, ...]] = {
    "identity": ("{}",),
    "simple": ("a photo of a {}.",),
    "plural": ("a photo of {}s.",),
    "subset": _SUBSET,
    "custom": (*_SUBSET, "a photo of many {}.", "a photo of {}s."),
    "maskclip": _MASKCLIP,
    "subset+maskclip": _SUBSET + _MASKCLIP,
    "full": _FULL,
    "full+maskclip": _FULL + _MASKCLIP,
    "shapes": grammar.caption_templates(),
}
"""The named sets; `{}` stands for the class name."""


def sentences_of(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by the name of their set in `TEMPLATES`, or those that are given themselves.

    Args:
      templates: a name; or sentences with `{}` for the class name, as a list, or as one text with
        semicolons between them.

    Raises:
      InputError: no set of that name, no template at all, or one without `{}`.
    """
    if isinstance(templates, str) and "{}" in templates:
        templates = [sentence.strip() for sentence in templates.split(";")]
    elif isinstance(templates, str):
        if templates not in TEMPLATES:
            raise InputError(
                f"templates={templates!r}: no such set; choose one of {', '.join(TEMPLATES)}, or "
                "give sentences with {} for the class name."
            )
        templates = TEMPLATES[templates]
    if not templates:
        raise InputError('templates: the list is empty; ["{}"] is the class name alone.')
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r}: has no {{}} to put the class name into.")
    return tuple(templates)


def format_prompts(templates: str | Sequence[str], class_name: str) -> list[str]:
    """Sentences for one class.

    Args:
      templates: see `sentences_of`.
      class_name: put wherever a template has `{}`, as it is.

    Raises:
      InputError: as `sentences_of`.
    """
    return [template.replace("{}", class_name) for template in sentences_of(templates)]
