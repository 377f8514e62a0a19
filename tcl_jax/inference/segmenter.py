"""Segmenting any image with any words."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.data.images import ImageLike, as_rgb
from tcl_jax.data.name_file import number_synonyms
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.words import background_words
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import short_hash
from tcl_jax.inference.engine import ImageTask, MaskEngine
from tcl_jax.inference.label_rule import Probabilities
from tcl_jax.inference.masks import MaskOptions, Synonyms, check_finite
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import Model, load_model, model_from_torch
from tcl_jax.inference.presets import load_preset
from tcl_jax.inference.pretrained import load_pretrained
from tcl_jax.inference.refinement import Refiner
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.inference.texts import (
    Known,
    check_embeddings,
    embed_class_names,
    list_things,
    padded_count,
    text_encoder_of,
)
from tcl_jax.inference.windows import SlidingWindow, resize_pixels, working_size
from tcl_jax.models.layers import compute_dtype, matmul_precision
from tcl_jax.parallel.mesh import data_mesh
from tcl_jax.weights.load import Source

MODES = ("slide", "whole")
_CACHED_TEXTS = 10_000
_OWN_OPTIONS = ("dtype", "batch_size", "tokenizer_file")


class Segmenter:
    """A model on a device, and everything from a photo and words to masks.

    >>> import numpy as np
    >>> from tcl_jax import Segmenter
    >>> segmenter = Segmenter.from_torch(clip="builtin:shapes_clip")
    >>> texts = segmenter.embed_texts(["striped red", "plain blue"], templates="simple")
    >>> texts.shape
    (2, 64)
    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> segmenter.masks(image, texts).shape
    (40, 60, 2)
    >>> result = segmenter.segment(image, ["striped red", "plain blue"])
    >>> result.labels.shape, result.names
    ((40, 60), ('background', 'striped red', 'plain blue'))

    Programs are compiled once per shape of a padded window (multiples of the patch size), per
    padded number of texts (1, 2, 4, 8, then multiples of 8), per grouping of synonyms and, where
    several windows are computed together, per number of them (powers of two), not per image.

    Attributes:
        pixel_statistics: mean and deviation that images are normalised with.

    Args:
        model: parameters and settings; see `from_checkpoint`, `from_pretrained` and
            `from_torch` for the usual ways.
        dtype: "float32", or "bfloat16" for speed on accelerators.
        batch_size: most windows computed together; 1 on a CPU and 8 elsewhere if None.
        tokenizer_file: the tokenizer.json of a CLIP with another vocabulary than OpenAI's, or
            TIPS's tokenizer.model.

    Raises:
        InputError: if the dtype is unknown or the batch size below 1.
    """

    def __init__(
        self,
        model: Model,
        *,
        dtype: str = "float32",
        batch_size: int | None = None,
        tokenizer_file: str | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        self.method, self.settings, self.origin = model.method.name, model.settings, model.origin
        self._method, self._tokenizer_file = model.method_in(compute_dtype(dtype)), tokenizer_file
        self.pixel_statistics = self._method.pixel_statistics
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
        self._weights = jax.device_put(params)
        self._known: Known = {}  # photo after photo is asked for the same words
        mesh = data_mesh(jax.local_devices()[:1])
        self._engine = MaskEngine(self._method, mesh, batch_size)
        refining = self.settings.pamr_dilations, self.settings.pamr_iterations
        self._refine = Refiner(mesh, self.pixel_statistics, *refining)

    @classmethod
    def from_checkpoint(cls, path: Source, **options: Any) -> Segmenter:
        """A model directory, a run's workdir, or one of its checkpoints.

        Args:
            path: what `python -m tcl_jax.convert` or `python -m tcl_jax.export` wrote, the workdir
                of `python -m tcl_jax.main` (its newest checkpoint), or WORKDIR/checkpoints/STEP.
            options: of `Segmenter`.

        Raises:
            InputError: if it is none of these or damaged.
        """
        return cls(load_model(path), **options)

    @classmethod
    def from_torch(cls, clip: Source, tcl: Source | None = None, **options: Any) -> Segmenter:
        """Published weights; PyTorch is not needed.

            Segmenter.from_torch("ViT-B/16", method="naclip")
            Segmenter.from_torch("clip.pt", method="proxyclip", second="dino_deitsmall8.pth")
            Segmenter.from_torch("laion.safetensors", method="clip_dinoiser", head="last.pt")

        Args:
            clip: CLIP's file (.pt, .pth, .safetensors, .npz; OpenAI's, OpenCLIP's or Hugging
                Face's names) or a folder with one, a name such as "ViT-B/16", or
                "builtin:shapes_clip".
            tcl: "official" for the published tcl.pth (downloaded once), a file or folder with its
                names; None: CLIP alone.
            options: method, second, head, activation and prefix, as `model.model_from_torch` takes
                them, and those of `Segmenter`. Without a method it is TCL if that is given, else
                the MaskCLIP baseline.

        Raises:
            InputError: if a file is missing, damaged, or does not fit the other, or the method is
                unknown or needs other files.
        """
        own = {key: options.pop(key) for key in _OWN_OPTIONS if key in options}
        return cls(model_from_torch(clip, tcl, **options), **own)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> Segmenter:
        """A released model by name; neither PyTorch nor TensorFlow is needed.

            Segmenter.from_pretrained("tips:B/14")                          # downloaded once
            Segmenter.from_pretrained("talk2dino:B/14", projection="vitb_mlp_infonce.pth")
            Segmenter.from_pretrained("tips", backbone="vision.npz", text="text.npz")

        Args:
            name: a method and the size of its backbone, see `inference.pretrained.RELEASES`.
            options: files in place of downloads by part (backbone, text, head, projection, clip,
                second, tcl), further arguments of the name's row there, and those of `Segmenter`.

        Raises:
            InputError: if the name or an option is unknown, or a file is missing, damaged, does not
                fit the others or cannot be downloaded.
        """
        own = {key: options.pop(key) for key in _OWN_OPTIONS if key in options}
        return cls(load_pretrained(name, **options), **own)

    def __repr__(self) -> str:
        """What it is made of."""
        return f"Segmenter({self.method}: {self._method.summary}, {self.settings})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that differ where weights, sizes or settings differ."""
        described = [hash_leaves(self._weights), *self._method.describe().values()]
        return short_hash([self.method, *described, self.settings.to_json()])

    # -------------------------------------------------------------------------------------- texts

    def embed_texts(
        self, texts: Sequence[str], templates: str | Sequence[str] | None = None
    ) -> Float32[np.ndarray, "n d"]:
        """Embedding of each text: mean over templates of its features, then normalised.

        Args:
            texts: names of things, such as ["a cat", "grass"].
            templates: name of a set (`inference.templates.TEMPLATES`), or sentences with {} for the
                text; None: the model's own, "custom" for TCL.

        Raises:
            InputError: if the templates are unknown or the model cannot tell the texts apart, see
                `data.words.check_words`.
        """
        return self._embed_names(texts, templates, background=False)

    def _embed_names(
        self, texts: Sequence[str], templates: str | Sequence[str] | None, *, background: bool
    ) -> Float32[np.ndarray, "n d"]:
        if len(self._known) > _CACHED_TEXTS:
            self._known.clear()
        with as_input_error("texts"):
            return embed_class_names(
                text_encoder_of(self._method, self.settings),
                self._method.text_params(self._weights),
                texts,
                self.settings.templates if templates is None else templates,
                tokenizer=self._tokenizer,
                background=background,
                known=self._known,
            )

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._method.text_encoder.tokenizer(self._tokenizer_file)

    # -------------------------------------------------------------------------------------- masks

    def masks(
        self,
        image: ImageLike,
        text_embeddings: Float[Any, "n d"],
        *,
        refine: str | None = None,
        pamr: bool | None = None,
        kp_weight: float | None = None,
        mode: str = "slide",
        short_side: int | None = None,
    ) -> Float32[np.ndarray, "h w n"]:
        """Soft masks in [0, 1] at the image's size; other `scores` give the texts' probabilities.

        Args:
            image: uint8 [h, w, 3], float in [0, 1], a PIL image, or a path.
            text_embeddings: [n, d], normalised or not.
            refine: "pamr" to follow the image's edges, for TCL also "affinity" to average what
                similar patches show (`models.tcl.TCL.masks`), or "none"; None: the model's own,
                "pamr" for TCL.
            pamr: short for "pamr" and "none".
            kp_weight: share of CLIP's own masks; None: the model's own, 0.3 for TCL.
            mode, short_side: see `segment`.

        Raises:
            InputError: if the image cannot be read, or an argument is out of range.
        """
        options = self.settings.options_for(self._method, refine, pamr, kp_weight)
        masks = self._slide(rgb := as_rgb(image), text_embeddings, options, mode, short_side)
        return masks.at(rgb.shape[:2])

    def masks_normalized(
        self,
        x: Any,
        text_embeddings: Float[Any, "n d"],
        *,
        refine: str | None = None,
        pamr: bool | None = None,
        kp_weight: float | None = None,
    ) -> Float32[np.ndarray, "*batch h w n"]:
        """Soft masks of normalised images at their own resolution, without windows.

        Args:
            x: [h, w, 3] or [b, h, w, 3], RGB in [0, 1] normalised with `pixel_statistics`.
            text_embeddings: [n, d], normalised or not.
            refine, pamr, kp_weight: as in `masks`.

        Raises:
            InputError: if x has another shape or is not finite, or an argument is out of range.
        """
        array = np.asarray(x, np.float32)
        if array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
            raise InputError(
                f"x has shape {array.shape}; give [h, w, 3] or [b, h, w, 3], normalised"
            )
        check_finite("x", array)
        images = array if array.ndim == 4 else array[None]
        size = images.shape[1:3]
        whole = SlidingWindow.over(size, max(size), 1, self._method.patch_size)
        options = self.settings.options_for(self._method, refine, pamr, kp_weight)
        masks = [one.at(size) for one in self._run(whole, list(images), text_embeddings, options)]
        return np.stack(masks) if array.ndim == 4 else masks[0]

    def dense_features(self, x: Any) -> Float32[np.ndarray, "gh gw d"]:
        """The method's features of an image in the space of the texts, before normalisation.

        >>> segmenter = Segmenter.from_torch("builtin:shapes_clip", method="clearclip")
        >>> x = np.zeros((64, 96, 3), np.float32)
        >>> segmenter.dense_features(x).shape  # of patches of 8 pixels
        (8, 12, 64)

        Compiled once per shape. There are no windows, and nothing is padded but by the method.

        Args:
            x: [h, w, 3] floats, RGB in [0, 1] normalised with `pixel_statistics`.

        Raises:
            InputError: if it is another array or not finite, or of sides the method does not take.
        """
        x = np.asarray(x)
        if x.ndim != 3 or x.shape[-1] != 3 or not np.issubdtype(x.dtype, np.floating):
            raise InputError(
                f"x is {x.dtype} of shape {x.shape}; give one image, [h, w, 3] floats, normalised"
            )
        check_finite("x", x)
        with as_input_error("x"):
            return np.asarray(self._dense(self._weights, x.astype(np.float32)))

    @functools.cached_property
    def _dense(self) -> Callable[[Any, np.ndarray], jax.Array]:
        def dense(params: Any, x: jax.Array) -> jax.Array:
            with matmul_precision(self._method.dtype):
                return self._method.dense_features(params, x[None])[0]

        return jax.jit(dense)

    # ----------------------------------------------------------------------------------- segments

    def background_score(self, refine: str) -> float:
        """The threshold of `segment` where none is given, for masks refined in that way."""
        return self.settings.background_score(self._method, refine)

    def segment(
        self,
        image: ImageLike,
        texts: Sequence[str | Sequence[str]],
        *,
        background: bool = True,
        threshold: float | None = None,
        mode: str = "slide",
        short_side: int | None = None,
        templates: str | Sequence[str] | None = None,
        refine: str | None = None,
        pamr: bool | None = None,
        kp_weight: float | None = None,
    ) -> Segmentation:
        """Which of the texts every pixel shows.

        Args:
            image: uint8 [h, w, 3], float in [0, 1], a PIL image, or a path; any size up to 100
                megapixels.
            texts: names of things; a list in place of one holds synonyms of a thing, the first of
                which is its name, and any of which shows it.
            background: whether pixels may be none of them; of scores that are not masks, whether
                the protocol's words for the background compete with the texts.
            threshold: score of the background, in [0, 1], or the least probability of another
                text; None: the model's own (for TCL 0.4 with PAMR and 0.5 without).
            mode: "slide" computes overlapping square windows, as published scores do; "whole"
                the image in one pass, which is faster and sees all of it at once.
            short_side: pixels that the image's short side is resized to (224 or 448 for published
                models), with windows in proportion (for TCL as large); None: the model's own.
            templates: see `embed_texts`.
            refine, pamr, kp_weight: see `masks`.

        Raises:
            InputError: if the image cannot be read, or an argument is out of range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold={threshold} must be between 0 and 1")
        things = list_things(texts)
        words, method = [*itertools.chain(*things)], self._method
        cleaning = background and method.finds_background
        options = self.settings.options_for(method, refine, pamr, kp_weight, cleaning=cleaning)
        embeddings = self._embed_names(words, templates, background=background)
        classes = number_synonyms(things) if len(words) > len(things) else None
        if finds := background and options.scores != "masks":
            others = background_words(load_preset(method.protocol).background, things)
            first = self._embed_names(others, templates, background=False)
            embeddings = np.concatenate([first, embeddings])
            classes = number_synonyms([others, *things])
        own = self.background_score(options.refine)
        return Segmentation(
            image=(rgb := as_rgb(image)),
            texts=tuple(thing[0] for thing in things),
            scores=self._slide(rgb, embeddings, options, mode, short_side, classes, finds),
            threshold=float(own if threshold is None else threshold) if background else None,
        )

    def _slide(
        self,
        image: np.ndarray,
        texts: Any,
        options: MaskOptions,
        mode: str,
        short_side: int | None,
        classes: Synonyms | None = None,
        background: bool = False,
    ) -> SoftMasks:
        """Masks of an image of bytes, by windows."""
        if mode not in MODES:
            raise InputError(f"mode={mode!r} is unknown; choose one of {', '.join(MODES)}")
        usual = self.settings.short_side or self.settings.window
        side = usual if short_side is None else short_side
        if side < 1:
            raise InputError(f"short_side={side} must be at least 1 pixel")
        own = self.settings.with_window(max(round(self.settings.window * side / usual), 1))
        size = working_size(image.shape[0], image.shape[1], side, resize=own.resize)
        window = own.window if mode == "slide" and own.window else max(size)
        sliding = SlidingWindow.over(size, window, own.stride, self._method.patch_size)
        pixels = resize_pixels(image, size, own.resize)
        return self._run(sliding, [pixels], texts, options, classes, background)[0]

    def _run(
        self,
        sliding: SlidingWindow,
        images: Sequence[np.ndarray],
        texts: Any,
        options: MaskOptions,
        classes: Synonyms | None = None,
        background: bool = False,
    ) -> list[SoftMasks]:
        """Masks of images of one size; of other scores the first class may be the background."""
        texts = check_embeddings(texts, self._method.embed_dim)
        synonyms = classes if options.scores == "masks" else None
        # Padded, so that other words are no other program.
        padded = np.pad(texts, ((0, padded_count(len(texts)) - len(texts)), (0, 0)))
        windows = len(images) * len(sliding.windows)
        batch_size = min(1 << (windows - 1).bit_length(), self._engine.batch_size)
        tasks = [ImageTask(i, sliding, image) for i, image in enumerate(images)]
        found = {}
        for task, made in self._engine(self._weights, tasks, padded, options, synonyms, batch_size):
            grids = made.grids[..., : len(synonyms or texts)]
            # Without the padding, which a view would keep in memory.
            one = SoftMasks(sliding, np.ascontiguousarray(grids))
            if options.scores != "masks":
                refine = functools.partial(self._refine, task.pixels, one)
                one = Probabilities.of(one, options, classes, background, refine)
            found[task.item] = one
        return [found[i] for i in range(len(images))]
