"""Held-out pairs while a run trains: retrieval, naming, and a threshold without labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8
from ml_collections import ConfigDict

from tcl_jax.data.name_file import read_names
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.evaluation.benchmark_task import protocol_of
from tcl_jax.evaluation.held_out import (
    named_in,
    naming,
    read_held_out,
    retrieval,
    threshold_for_share,
)
from tcl_jax.evaluation.report import align
from tcl_jax.evaluation.results import PAIRS_FILE
from tcl_jax.evaluation.thresholds import MADE_WITH
from tcl_jax.files import write_json
from tcl_jax.inference.masks import MaskOptions, grid_masks
from tcl_jax.inference.texts import embed_class_names, embed_tokens
from tcl_jax.models.clip import CLIP, encode_image
from tcl_jax.models.method import Method
from tcl_jax.models.tcl import TCL
from tcl_jax.ops.images import normalize
from tcl_jax.ops.losses import image_text_similarity
from tcl_jax.ops.pair_statistics import pair_statistics
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, local_mesh, put_locally, replicated
from tcl_jax.parallel.processes import raise_on_all_processes, sum_over_processes
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation
from tcl_jax.training.objectives import CLIPObjective, TCLObjective

BINS = 1000
"""Of the histogram of mask values, of which the threshold is read."""
CLIP_NAME = "clip"
"""Of a CLIP among the rules, and what the names of its scores begin with beside TCL's."""

Rule: TypeAlias = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(parameters, images, texts) -> similarity of every image with every text."""


def clip_similarity(
    model: CLIP, params: Any, images: UInt8[Array, "b h w 3"], texts: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Cosines of CLIP's embeddings, which its own loss compares."""
    pixels = normalize(images, model.pixel_statistics)
    return image_text_similarity(encode_image(model, params["clip"], pixels).embedding, texts)


def region_similarity(
    model: TCL, params: Any, images: UInt8[Array, "b h w 3"], texts: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Cosines of a text and the region v_ij that it grounds, which `tclf` compares (TCL eq. 3)."""
    pixels = model.dense_features(params, normalize(images, model.pixel_statistics))
    w, b = params["sim2mask"]["w"], params["sim2mask"]["b"]
    return pair_statistics(pixels, texts, w, b).similarity


def mask_histogram(
    method: Method,
    options: MaskOptions,
    params: Any,
    images: UInt8[Array, "b h w 3"],
    texts: Float[Array, "b d"],
    real: Int[Array, " b"],
) -> Int[Array, " bins"]:
    """Values of each image's mask of its own text, counted in `BINS` equal bins of [0, 1].

    Args:
        method, options, params: as in `grid_masks`.
        images, texts: rows.
        real: 1 where a row counts, else 0.
    """

    def mask(pixels: jax.Array, text: jax.Array) -> jax.Array:
        return grid_masks(method, params, pixels[None], text[None], options)[0, ..., 0]

    masks = jax.vmap(mask)(normalize(images, method.pixel_statistics), texts)
    bins = jnp.clip((masks * BINS).astype(jnp.int32), 0, BINS - 1)
    weights = jnp.broadcast_to(real[:, None, None], bins.shape)
    return jnp.zeros(BINS, jnp.int32).at[bins.ravel()].add(weights.ravel())


class PairsEvaluator:
    """Scores of what a run compares, images and their captions, on pairs that are held out.

    A CLIP is scored by the cosines of its embeddings, TCL by those of texts and the regions that
    they ground, and beside it, once, the frozen CLIP by its own.

    Args:
        config: reads `eval`, and of `data` how shards are read.
        experiment: what is trained.

    Raises:
        InputError: pairs or names cannot be read, or what is trained compares no images with texts.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment) -> None:
        objective, method = experiment.objective, experiment.method
        self._experiment, self._templates = experiment, config.eval.templates
        self._mesh = local_mesh()
        everywhere, self._split = replicated(self._mesh), batch_sharded(self._mesh)
        rules: dict[str, Rule] = {}
        self._area_prior: float | None = None
        if isinstance(objective, TCLObjective):
            rules[method.name] = partial(region_similarity, objective.model)
            rules[CLIP_NAME] = partial(clip_similarity, objective.model.clip_model)
            self._area_prior = objective.weights.area_prior
            protocol = protocol_of(config, experiment)
            self._made_with = {name: getattr(protocol, name) for name in ("method", *MADE_WITH)}
            options = MaskOptions(protocol.refine, protocol.kp_weight)
            self._histogram = jax.jit(
                partial(mask_histogram, method, options),
                in_shardings=(everywhere, *3 * [self._split]),
                out_shardings=everywhere,
            )
        elif isinstance(objective, CLIPObjective):
            rules[CLIP_NAME] = partial(clip_similarity, objective.model)
        else:
            raise InputError(
                f"the task 'pairs' has no rule for objective={config.objective!r}, which does not "
                "compare whole images with texts; leave eval.shards=(), and judge it by benchmarks"
            )
        # Once, so that a run compiles each rule once and not at every evaluation.
        self._rules = {
            name: jax.jit(
                rule,
                in_shardings=(everywhere, self._split, everywhere),
                out_shardings=self._split,
            )
            for name, rule in rules.items()
        }
        self._rows = max(config.eval.batch_size // data_mesh().size, 1) * self._mesh.size
        self._pairs = read_held_out(config, method.resolution)
        self._classes, self._named = self._read_names(config.eval.names)
        initial = experiment.join(experiment.params, experiment.frozen)
        self._texts = raise_on_all_processes(lambda: self._embed_texts(initial))
        self._scores: dict[str, dict[str, float]] = {}

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent; every process calls it."""
        everything = put_locally(self._experiment.join(params, frozen), self._mesh)
        if self._experiment.learns_texts:
            self._texts = self._embed_texts(everything)
        learned = [name for name in self._rules if name == self._name or name not in self._scores]
        self._scores |= {name: self._score(self._rules[name], everything) for name in learned}
        scores = {
            score if name == self._name else f"{name}_{score}": value
            for name, several in self._scores.items()
            for score, value in several.items()
        }
        return Evaluation(scores)

    @property
    def _name(self) -> str:
        """Of what is trained, among the rules."""
        return next(iter(self._rules))

    # --------------------------------------------------------------------------------- the scores

    def _read_names(self, file: str) -> tuple[tuple[tuple[str, ...], ...], np.ndarray]:
        """Synonyms of every class of `eval.names`, and whether each pair's captions have one."""
        what = f"eval.names={file!r}"
        classes = raise_on_all_processes(lambda: read_names(file, what)).classes if file else ()
        named = named_in(self._pairs.captions, classes)
        if file and not named.any():
            raise InputError(f"{what}: no caption of eval.shards has one of these names as words")
        return classes, named

    def _embed_texts(self, everything: Any) -> Float32[np.ndarray, "n d"]:
        """Captions, then all names, and zeros up to a number that divides over the devices."""
        method = self._experiment.method
        encoder, params = method.text_encoder, method.text_params(everything)
        tokens = encoder.tokenizer()(self._pairs.texts)
        parts = [embed_tokens(encoder, params, tokens, mesh=self._mesh)]
        if self._classes:
            with as_input_error("eval.names"):
                names = itertools.chain(*self._classes)
                parts.append(embed_class_names(encoder, params, names, self._templates))
        texts = np.concatenate(parts)
        return np.pad(texts, ((0, -len(texts) % self._mesh.size), (0, 0)))

    def _score(self, rule: Rule, everything: Any) -> dict[str, float]:
        texts = jax.device_put(self._texts, replicated(self._mesh))
        running: list[jax.Array] = []
        for _, images in self._batches():
            running.append(rule(everything, images, texts))
            if len(running) > 1:  # no more than two at a time take memory
                running[-2].block_until_ready()
        captions = len(self._pairs.texts)
        rows = [np.zeros((0, len(self._texts)), np.float32), *map(np.asarray, running)]
        similarity = np.concatenate(rows)[: len(self._pairs.mine)]
        scores = retrieval(similarity[:, :captions], self._pairs)
        if self._classes:
            owner = np.repeat(np.arange(len(self._classes)), [*map(len, self._classes)])
            of_names = similarity[:, captions : captions + len(owner)]
            scores["naming_at_1"] = naming(of_names, owner, self._named, self._pairs.mine)
        return scores

    def _batches(self) -> Iterator[tuple[np.ndarray, jax.Array]]:
        """Numbers of this process's pairs, and their images on its devices, black ones behind."""
        for start in range(0, len(self._pairs.mine), self._rows):
            images = self._pairs.images[start : start + self._rows]
            padded = np.pad(images, ((0, self._rows - len(images)), *3 * [(0, 0)]))
            yield self._pairs.mine[start : start + self._rows], jax.device_put(padded, self._split)

    def _propose_threshold(self, everything: Any) -> float | None:
        """The threshold at which masks of captions have the area that training expects."""
        if self._area_prior is None:
            return None
        place = {text: u for u, text in enumerate(self._pairs.texts)}
        own = np.array([place[text] for text in self._pairs.chosen])
        counts = np.zeros(BINS, np.int64)
        for mine, images in self._batches():
            real = np.zeros(self._rows, np.int32)
            real[: len(mine)] = 1
            texts = np.zeros((self._rows, self._texts.shape[1]), np.float32)
            texts[: len(mine)] = self._texts[own[mine]]
            rows = jax.device_put((texts, real), self._split)
            counts += np.asarray(self._histogram(everything, images, *rows))
        return threshold_for_share(sum_over_processes(counts), self._area_prior)

    # --------------------------------------------------------------------------------- the report

    def report(self, params: Any, frozen: Any, workdir: Path, step: int) -> None:
        """Prints the scores of the last evaluation with a threshold; writes them to pairs.json."""
        if not self._scores:  # continued after its end
            self(params, frozen)
        everything = put_locally(self._experiment.join(params, frozen), self._mesh)
        threshold = self._propose_threshold(everything)
        if jax.process_index() != 0:
            return
        pairs, images_named = self._pairs, int(np.count_nonzero(self._named.any(axis=1)))
        found: dict[str, Any] = {
            "step": step,
            "pairs": len(pairs.captions),
            "left_out": pairs.left_out,
            "texts": len(pairs.texts),
            "images_named": images_named,
            "scores": {
                name: {score: round(value, 2) for score, value in several.items()}
                for name, several in self._scores.items()
            },
        }
        if threshold is not None:
            made = {"area_prior": self._area_prior, "made_with": self._made_with}
            found |= {"threshold": round(threshold, 3), **made}
        write_json(workdir / PAIRS_FILE, found)
        columns = list(self._scores[self._name])
        rows = [
            (name, *(f"{several[c]:.2f}" for c in columns))
            for name, several in found["scores"].items()
        ]
        print("\n".join(align([("%", *columns), *rows])))
        counted = f"; {images_named} images whose captions have a name" if self._classes else ""
        print(f"{len(pairs.captions)} held-out pairs{counted}: {workdir / PAIRS_FILE}")
        if threshold is not None:
            print(
                f"threshold without labels: {threshold:.3f}, above which masks of their own "
                f"captions cover {self._area_prior:.0%} of these images (loss.area_prior); "
                f"--threshold=best:{workdir} takes it"
            )
