"""Scores and pictures of a run on drawn scenes: while it trains, and at its end beside its CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.errors import as_input_error
from tcl_jax.evaluation.report import align
from tcl_jax.evaluation.scenes import (
    best_classes,
    check_scenes,
    patch_cosines,
    retrieval_at_1,
    segment_scenes,
    with_background,
)
from tcl_jax.evaluation.scores import UNKNOWN
from tcl_jax.files import write_json
from tcl_jax.inference.engine import MaskEngine
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.texts import embed_class_names
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.method import BY_PAMR, Method
from tcl_jax.parallel.mesh import data_mesh, local_mesh, put_locally
from tcl_jax.pictures.grid import titled_grid
from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.overlays import enlarge, save_png
from tcl_jax.shapes.source import PALETTE, UNSEEN, ShapesSource, class_names
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation

THRESHOLDS = np.round(np.arange(0.0, 0.8, 0.02), 2)
"""Cosines tried as the baseline's background threshold."""
BASELINE = "clip"
"""The CLIP's entry of the parameter tree, and its name among the scores."""
PICTURED, SIDE_BY_SIDE = 10, 2
"""Scenes in the picture, and in a row of it."""


class ShapesEvaluator:
    """Zero-shot scores on validation scenes, and a picture of the first few.

    The method that is trained is scored at the config's background threshold. Beside it stands the
    CLIP of its parameter tree, if it has one, as MaskCLIP; a run that trains the CLIP itself scores
    that alone, with retrieval.

    Args:
        config: reads `eval`.
        experiment: what is trained.

    Raises:
        InputError: if there are too few scenes, or a batch does not divide over the devices.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment) -> None:
        mesh, self._mesh = data_mesh(), local_mesh()
        check_scenes(config.eval.num_scenes, config.eval.batch_size, mesh)
        self._eval, self._experiment = config.eval, experiment
        self._thresholds = {experiment.method.name: float(config.eval.background)}
        self._options = MaskOptions(BY_PAMR[config.eval.pamr], config.eval.kp_weight)
        # Once, so that a run compiles each method once and not at every evaluation.
        batch_size, method = config.eval.batch_size // mesh.size, experiment.method
        self._methods: dict[str, Method] = {}
        self._engines: dict[str, MaskEngine] = {}
        self._trains_clip = BASELINE in experiment.params
        if BASELINE in method.parameters:
            maskclip = MaskCLIP.from_description(method.describe())
            self._clip = dataclasses.replace(maskclip, dtype=method.dtype)
            self._methods[BASELINE] = self._clip
            engine = MaskEngine(self._clip, self._mesh, batch_size, patch_cosines)
            self._engines[BASELINE] = engine
        if not self._trains_clip:
            self._methods[method.name] = method
            self._engines[method.name] = MaskEngine(method, self._mesh, batch_size)
        side, size = method.resolution, config.eval.num_scenes
        with as_input_error("the task shapes of eval.tasks"):
            self.validation = ShapesSource("validation", num_examples=size, image_size=side)
            self.test = ShapesSource("test", num_examples=size, image_size=side, seed=config.seed)

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent."""
        everything = self._join(params, frozen)
        if self._trains_clip:
            return Evaluation(self._clip_scores(everything, self.validation)[0])
        if BASELINE in self._methods and BASELINE not in self._thresholds:
            _, self._thresholds[BASELINE] = self._clip_scores(everything, self.validation)
        picture = self._picture(everything, self.validation, self._thresholds)
        return Evaluation(self._own_scores(everything, self.validation), {"scenes": picture})

    # ------------------------------------------------------------------------------- the methods

    def _join(self, params: Any, frozen: Any) -> Any:
        return put_locally(self._experiment.join(params, frozen), self._mesh)

    def _texts(self, name: str, everything: Any) -> np.ndarray:
        method = self._methods[name]
        encoder, params = method.text_encoder, method.text_params(everything)
        return embed_class_names(encoder, params, class_names(), self._eval.templates)

    def _own_scores(self, everything: Any, scenes: ShapesSource) -> dict[str, float]:
        """The trained method at the config's background threshold."""
        name = self._experiment.method.name
        return self._segment(name, everything, scenes, [self._eval.background])[0]

    def _clip_scores(self, everything: Any, scenes: ShapesSource) -> tuple[dict[str, float], float]:
        """MaskCLIP at the threshold that is best for it on these scenes, and retrieval."""
        results = self._segment(BASELINE, everything, scenes, list(THRESHOLDS))
        best = max(range(len(results)), key=lambda i: results[i]["miou"])
        retrieval = retrieval_at_1(self._clip.clip_model, everything[BASELINE], scenes)
        return {**results[best], "retrieval_at_1": retrieval}, float(THRESHOLDS[best])

    def _segment(
        self, name: str, everything: Any, scenes: ShapesSource, thresholds: Sequence[float]
    ) -> list[dict[str, float]]:
        texts, engine = self._texts(name, everything), self._engines[name]
        return segment_scenes(engine, everything, texts, self._options, scenes, thresholds)

    def _picture(
        self, everything: Any, source: ShapesSource, thresholds: Mapping[str, float]
    ) -> np.ndarray:
        """Image, truth and what each method finds in the first scenes; uint8 [H, W, 3]."""
        scenes = [source[i] for i in range(PICTURED)]
        labels = {"truth": [scene["label"] for scene in scenes]}
        for name, engine in self._engines.items():
            texts = self._texts(name, everything)
            labels[name.upper()] = [
                with_background(classes, values, thresholds[name])
                for _, classes, values in best_classes(
                    engine, everything, texts, self._options, scenes
                )
            ]
        cells = []
        for i, scene in enumerate(scenes):
            row = {"image": scene["image"]}
            row |= {title: PALETTE[found[i]] for title, found in labels.items()}
            cells += [
                (title if i < SIDE_BY_SIDE else "", enlarge(picture, 2))
                for title, picture in row.items()
            ]
        names = ("background", *class_names())
        entries = []
        for i in np.unique(list(labels.values())):
            name = f"{names[i]} (unseen)" if names[i] in UNSEEN else names[i]
            red, green, blue = PALETTE[i].tolist()
            entries.append(LegendEntry(name, (red, green, blue), 0, note=""))
        return legend_page(titled_grid(cells, SIDE_BY_SIDE * (1 + len(labels))), entries)

    # ---------------------------------------------------------------------------------- the report

    def report(self, params: Any, frozen: Any, workdir: Path) -> None:
        """Scores test scenes, which chose nothing; prints and writes results.json.

        The method's scores stand beside its CLIP's. With them are written a grid of pictures,
        shapes.png, and one scene to try words on, scene.png, unless the CLIP itself is trained.
        """
        everything, thresholds = self._join(params, frozen), dict(self._thresholds)
        results: dict[str, dict[str, float]] = {}
        picture = None
        if BASELINE in self._methods:
            results[BASELINE], thresholds[BASELINE] = self._clip_scores(everything, self.test)
        if not self._trains_clip:
            results[self._experiment.method.name] = self._own_scores(everything, self.test)
            picture = self._picture(everything, self.test, thresholds)
        if jax.process_index() != 0:
            return
        rounded = {
            method: {name: round(score, 2) for name, score in scores.items()}
            for method, scores in results.items()
        }
        write_json(workdir / "results.json", rounded)
        columns = list(next(iter(results.values())))
        rows = [
            (method, *(f"{scores[c]:.2f}" if c in scores else UNKNOWN for c in columns))
            for method, scores in rounded.items()
        ]
        print("\n".join(align([("%", *columns), *rows])))
        print(f"results: {workdir / 'results.json'}")
        if picture is not None:
            save_png(workdir / "shapes.png", picture)
            scenes = (self.test[i] for i in range(len(self.test)))
            several = next((s for s in scenes if len(s["class_ids"]) == 3), self.test[0])
            save_png(workdir / "scene.png", several["image"])
            print(f"picture: {workdir / 'shapes.png'}")
