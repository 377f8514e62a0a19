"""Scores and pictures of a run on drawn scenes: while it trains, and at its end beside its CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.evaluation.scenes import (
    SceneScores,
    best_classes,
    check_scenes,
    embed_shape_names,
    retrieval_at_1,
    scene_engine,
    segment_scenes,
    with_background,
    zero_shot_accuracy,
)
from tcl_jax.files import write_json
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.parallel.mesh import data_mesh, local_mesh, put_locally
from tcl_jax.pictures.grid import comparison_grid
from tcl_jax.pictures.overlays import save_png
from tcl_jax.shapes.source import PALETTE, UNSEEN, ShapesSource, class_names
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation
from tcl_jax.weights.clip import clip_state_dict
from tcl_jax.weights.readers import write_safetensors

THRESHOLDS = np.round(np.arange(0.0, 0.8, 0.02), 2)
"""Cosines tried as the baseline's background threshold."""
PICTURED = 10
"""Scenes in the picture grid."""


class ShapesEvaluator:
    """Zero-shot scores on validation scenes, and a picture of the first few.

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
        self._baseline: SceneScores | None = None
        self._options = MaskOptions(pamr=config.eval.pamr, kp_weight=config.eval.kp_weight)
        # Once, so that a run compiles each method once and not at every evaluation.
        batch_size = config.eval.batch_size // mesh.size
        maskclip = MaskCLIP(experiment.clip.config, experiment.clip.dtype)
        self._methods = {"clip": scene_engine(maskclip, self._mesh, batch_size)}
        if not experiment.trains_clip:
            self._methods["tcl"] = scene_engine(experiment.method, self._mesh, batch_size)
        side = experiment.clip.config.resolution
        size = config.eval.num_scenes
        self.validation = ShapesSource("validation", num_examples=size, image_size=side)
        self.test = ShapesSource("test", num_examples=size, image_size=side, seed=config.seed)
        self.singles = ShapesSource(
            "test", num_examples=size, image_size=side, seed=config.seed + 1, max_objects=1
        )

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent."""
        if "tcl" not in self._methods:
            return Evaluation(self._clip_scores(params, self.validation))
        scores = self._tcl_scores(params, frozen, self.validation)
        if self._baseline is None:
            self._baseline = self._maskclip_scores(params, frozen, self.validation)
        picture = self._picture(params, frozen, self.validation, self._baseline.threshold)
        return Evaluation(scores.percent, {"scenes": picture})

    # ------------------------------------------------------------------------------- the methods

    def _tcl_scores(self, params: Any, frozen: Any, source: ShapesSource) -> SceneScores:
        """TCL at the config's background threshold."""
        return self._segment("tcl", params, frozen, source, [self._eval.background])[0]

    def _maskclip_scores(self, params: Any, frozen: Any, source: ShapesSource) -> SceneScores:
        """MaskCLIP at the background threshold that is best for it on these very scenes."""
        results = self._segment("clip", params, frozen, source, list(THRESHOLDS))
        return max(results, key=lambda result: result.percent["miou"])

    def _clip_scores(self, params: Any, scenes: ShapesSource) -> dict[str, float]:
        """Retrieval, classification and MaskCLIP segmentation of a CLIP."""
        clip, templates = self._experiment.clip, self._eval.templates
        return {
            **self._maskclip_scores(params, {}, scenes).percent,
            "retrieval_at_1": retrieval_at_1(clip, params, scenes),
            "zero_shot_accuracy": zero_shot_accuracy(clip, params, self.singles, templates),
        }

    def _parameters(self, params: Any, frozen: Any) -> dict[str, Any]:
        everything = put_locally(self._experiment.join(params, frozen), self._mesh)
        return {"clip": {"clip": everything["clip"]}, "tcl": everything}

    def _segment(
        self, method: str, params: Any, frozen: Any, source: ShapesSource, thresholds: list[float]
    ) -> list[SceneScores]:
        of_methods = self._parameters(params, frozen)
        texts = embed_shape_names(
            self._experiment.clip, of_methods["clip"]["clip"], self._eval.templates
        )
        return segment_scenes(
            self._methods[method],
            of_methods[method],
            texts,
            self._options,
            source,
            thresholds,
        )

    def _picture(
        self, params: Any, frozen: Any, source: ShapesSource, threshold: float
    ) -> np.ndarray:
        """Image, truth, MaskCLIP and TCL of the first scenes, with a legend; uint8 [H, W, 3].

        Args:
            params, frozen: learned and frozen parameters.
            source: scenes with label maps.
            threshold: the baseline's, for the background.
        """
        scenes = [source[i] for i in range(PICTURED)]
        texts = embed_shape_names(self._experiment.clip, frozen, self._eval.templates)
        thresholds = {"clip": threshold, "tcl": self._eval.background}
        shown = {"truth": [scene["label"] for scene in scenes]}
        of_methods = self._parameters(params, frozen)
        for method, engine in self._methods.items():
            found = best_classes(engine, of_methods[method], texts, self._options, scenes)
            shown[method.upper()] = [
                with_background(classes, values, thresholds[method]) for _, classes, values in found
            ]
        columns = {"image": [scene["image"] for scene in scenes]}
        columns |= {title: [PALETTE[label] for label in found] for title, found in shown.items()}
        names = ("background", *class_names())
        unseen = {name: f"{name} (unseen)" for name in UNSEEN}
        return comparison_grid(
            {title: tuple(pictures) for title, pictures in columns.items()},
            {
                unseen.get(names[i], names[i]): PALETTE[i].tolist()
                for i in np.unique(list(shown.values()))
            },
        )

    # ---------------------------------------------------------------------------------- the report

    def report(self, params: Any, frozen: Any, workdir: Path) -> None:
        """Scores test scenes, which chose nothing; prints and writes results.json and pictures.

        Beside the grid of pictures, shapes.png, one scene is written as scene.png, to try words on.

        A trained CLIP is written beside them, as clip.safetensors with OpenAI's tensor names.
        """
        picture = None
        if "tcl" in self._methods:
            baseline = self._maskclip_scores(params, frozen, self.test)
            retrieval = retrieval_at_1(self._experiment.clip, frozen, self.test)
            results = {
                "clip": {**baseline.percent, "retrieval_at_1": retrieval},
                "tcl": self._tcl_scores(params, frozen, self.test).percent,
            }
            picture = self._picture(params, frozen, self.test, baseline.threshold)
        else:
            results = {"clip": self._clip_scores(params, self.test)}
        if jax.process_index() != 0:
            return
        results = {
            method: {name: round(score, 2) for name, score in scores.items()}
            for method, scores in results.items()
        }
        write_json(workdir / "results.json", results)
        print(table(results))
        print(f"results: {workdir / 'results.json'}")
        if picture is not None:
            save_png(workdir / "shapes.png", picture)
            scenes = (self.test[i] for i in range(len(self.test)))
            several = next((s for s in scenes if len(s["class_ids"]) == 3), self.test[0])
            save_png(workdir / "scene.png", several["image"])
            print(f"picture: {workdir / 'shapes.png'}")
        else:
            tensors = clip_state_dict(params, self._experiment.clip.config, np.float16)
            metadata = {"activation": self._experiment.clip.config.activation}
            write_safetensors(workdir / "clip.safetensors", tensors, metadata)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Results as aligned text, one method a row, per cent."""
    columns = list(dict.fromkeys(name for row in results.values() for name in row))
    lines = ["".join([f"{'%':<8}", *(f"{column:>20}" for column in columns)])]
    for method, row in results.items():
        cells = (f"{row[c]:>20.2f}" if c in row else f"{'':>20}" for c in columns)
        lines.append("".join([f"{method:<8}", *cells]))
    return "\n".join(lines)
