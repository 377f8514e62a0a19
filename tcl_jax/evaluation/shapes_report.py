"""The shapes run judged and shown: while it trains, and once at the end against its CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.convert.clip import clip_state_dict
from tcl_jax.convert.readers import write_safetensors
from tcl_jax.data.shapes import PALETTE, UNSEEN, ShapesSource, class_names
from tcl_jax.evaluation.shapes import (
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
from tcl_jax.models.tcl import TCL
from tcl_jax.parallel.mesh import data_mesh, local_mesh, put_locally
from tcl_jax.pictures.overlays import comparison_grid, save_png
from tcl_jax.training.build import Task
from tcl_jax.training.loop import Evaluation

THRESHOLDS = np.round(np.arange(0.0, 0.8, 0.02), 2)
"""Cosines tried as the baseline's background threshold."""
PICTURED = 10
"""Scenes in the picture grid."""


class ShapesEvaluator:
    """Zero-shot scores on validation scenes, and a picture of the first few.

    Args:
        config: reads `eval`.
        task: what is trained.

    Raises:
        InputError: if there are too few scenes, or a batch does not divide over the devices.
    """

    def __init__(self, config: ConfigDict, task: Task) -> None:
        mesh, self._mesh = data_mesh(), local_mesh()
        check_scenes(config.eval.num_scenes, config.eval.batch_size, mesh)
        self._eval, self._task = config.eval, task
        self._baseline: SceneScores | None = None
        self._options = MaskOptions(pamr=config.eval.pamr, kp_weight=config.eval.kp_weight)
        # Once, so that a run compiles each method once and not at every evaluation.
        batch_size = config.eval.batch_size // mesh.size
        self._methods = {"clip": scene_engine(task.clip, self._mesh, batch_size)}
        if isinstance(task.network, TCL):
            self._methods["tcl"] = scene_engine(task.network, self._mesh, batch_size)
        side = task.clip.config.resolution
        size = config.eval.num_scenes
        self.validation = ShapesSource("validation", num_examples=size, image_size=side)
        self.test = ShapesSource("test", num_examples=size, image_size=side, seed=config.seed)
        self.singles = ShapesSource(
            "test", num_examples=size, image_size=side, seed=config.seed + 1, max_objects=1
        )

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent."""
        if "tcl" in self._methods:
            scores = self.judge_tcl(params, frozen, self.validation)
            if self._baseline is None:
                self._baseline = self.judge_baseline(params, frozen, self.validation)
            return Evaluation(
                {"miou": 100 * scores.miou, "miou_unseen": 100 * scores.miou_unseen},
                {"scenes": self.picture(params, frozen, self.validation, self._baseline.threshold)},
            )
        return Evaluation(self.judge_clip(params, self.validation, self.singles))

    # ------------------------------------------------------------------------------- the methods

    def judge_tcl(self, params: Any, frozen: Any, source: ShapesSource) -> SceneScores:
        """TCL at the config's background threshold."""
        return self._segment("tcl", params, frozen, source, [self._eval.background])[0]

    def judge_baseline(self, params: Any, frozen: Any, source: ShapesSource) -> SceneScores:
        """MaskCLIP at the background threshold that is best for it on these very scenes."""
        results = self._segment("clip", params, frozen, source, list(THRESHOLDS))
        return max(results, key=lambda result: result.miou)

    def judge_clip(
        self, params: Any, scenes: ShapesSource, singles: ShapesSource
    ) -> dict[str, float]:
        """Retrieval, classification and MaskCLIP segmentation of a CLIP, in per cent."""
        baseline = self.judge_baseline(params, {}, scenes)
        return {
            "miou": 100 * baseline.miou,
            "miou_unseen": 100 * baseline.miou_unseen,
            "retrieval_at_1": 100 * retrieval_at_1(self._task.clip, params, scenes),
            "zero_shot_accuracy": 100
            * zero_shot_accuracy(self._task.clip, params, singles, self._eval.templates),
        }

    def _parameters(self, params: Any, frozen: Any) -> dict[str, Any]:
        everything, clip = put_locally(self._task.join(params, frozen), self._mesh)
        return {"clip": clip, "tcl": everything}

    def _segment(
        self, method: str, params: Any, frozen: Any, source: ShapesSource, thresholds: list[float]
    ) -> list[SceneScores]:
        of_methods = self._parameters(params, frozen)
        texts = embed_shape_names(self._task.clip, of_methods["clip"], self._eval.templates)
        return segment_scenes(
            self._methods[method],
            of_methods[method],
            texts,
            self._options,
            source,
            thresholds,
        )

    def picture(
        self, params: Any, frozen: Any, source: ShapesSource, threshold: float
    ) -> np.ndarray:
        """Image, truth, MaskCLIP and TCL of the first scenes, with a legend; uint8 [H, W, 3].

        Args:
            params, frozen: learned and frozen parameters.
            source: scenes with label maps.
            threshold: the baseline's, for the background.
        """
        scenes = [source[i] for i in range(PICTURED)]
        texts = embed_shape_names(self._task.clip, frozen, self._eval.templates)
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
        """Judges on test scenes, which chose nothing; prints and writes results.json and pictures.

        Beside the grid of pictures, shapes.png, one scene is written as scene.png, to try words on.

        A trained CLIP is written beside them, as clip.safetensors with OpenAI's tensor names.
        """
        if "tcl" in self._methods:
            baseline = self.judge_baseline(params, frozen, self.test)
            learned = self.judge_tcl(params, frozen, self.test)
            results = {
                "clip": {
                    "miou": round(100 * baseline.miou, 2),
                    "miou_unseen": round(100 * baseline.miou_unseen, 2),
                    "retrieval_at_1": round(
                        100 * retrieval_at_1(self._task.clip, frozen, self.test), 2
                    ),
                },
                "tcl": {
                    "miou": round(100 * learned.miou, 2),
                    "miou_unseen": round(100 * learned.miou_unseen, 2),
                },
            }
            picture = self.picture(params, frozen, self.test, baseline.threshold)
        else:
            scores = self.judge_clip(params, self.test, self.singles)
            results = {"clip": {name: round(value, 2) for name, value in scores.items()}}
            picture = None
        if jax.process_index() != 0:
            return
        if picture is not None:
            save_png(workdir / "shapes.png", picture)
            scenes = (self.test[i] for i in range(len(self.test)))
            several = next((s for s in scenes if len(s["class_ids"]) == 3), self.test[0])
            save_png(workdir / "scene.png", several["image"])
        else:
            tensors = clip_state_dict(params, self._task.clip.config, np.float16)
            metadata = {"activation": self._task.clip.config.activation}
            write_safetensors(workdir / "clip.safetensors", tensors, metadata)
        write_json(workdir / "results.json", results)
        print(table(results))
        print(f"results: {workdir / 'results.json'}")
        if picture is not None:
            print(f"picture: {workdir / 'shapes.png'}")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Results as aligned text, one method a row, per cent."""
    columns = list(dict.fromkeys(name for row in results.values() for name in row))
    lines = ["".join([f"{'%':<8}", *(f"{column:>20}" for column in columns)])]
    for method, row in results.items():
        cells = (f"{row[c]:>20.2f}" if c in row else f"{'':>20}" for c in columns)
        lines.append("".join([f"{method:<8}", *cells]))
    return "\n".join(lines)
