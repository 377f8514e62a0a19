"""Scores and pictures of a run on drawn scenes: while it trains, and at its end beside its CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.evaluation.report import UNKNOWN, align
from tcl_jax.evaluation.scenes import (
    best_classes,
    check_scenes,
    retrieval_at_1,
    scene_engine,
    segment_scenes,
    with_background,
)
from tcl_jax.files import write_json
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.texts import embed_class_names
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.parallel.mesh import data_mesh, local_mesh, put_locally
from tcl_jax.pictures.grid import titled_grid
from tcl_jax.pictures.legend import LegendEntry, legend_page
from tcl_jax.pictures.overlays import enlarge, save_png
from tcl_jax.shapes.source import PALETTE, UNSEEN, ShapesSource, class_names
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation
from tcl_jax.weights.clip import clip_state_dict
from tcl_jax.weights.readers import write_safetensors

THRESHOLDS = np.round(np.arange(0.0, 0.8, 0.02), 2)
"""Cosines tried as the baseline's background threshold."""
PICTURED, SIDE_BY_SIDE = 10, 2
"""Scenes in the picture, and in a row of it."""


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
        self._threshold: float | None = None
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

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent."""
        everything = self._join(params, frozen)
        if self._experiment.trains_clip:
            return Evaluation(self._clip_scores(everything, self.validation)[0])
        if self._threshold is None:
            _, self._threshold = self._clip_scores(everything, self.validation)
        picture = self._picture(everything, self.validation, self._threshold)
        return Evaluation(self._tcl_scores(everything, self.validation), {"scenes": picture})

    # ------------------------------------------------------------------------------- the methods

    def _join(self, params: Any, frozen: Any) -> Any:
        return put_locally(self._experiment.join(params, frozen), self._mesh)

    def _texts(self, everything: Any) -> np.ndarray:
        clip, templates = self._experiment.clip, self._eval.templates
        return embed_class_names(clip, everything["clip"], class_names(), templates)

    def _tcl_scores(self, everything: Any, scenes: ShapesSource) -> dict[str, float]:
        """TCL at the config's background threshold."""
        return self._segment("tcl", everything, scenes, [self._eval.background])[0]

    def _clip_scores(self, everything: Any, scenes: ShapesSource) -> tuple[dict[str, float], float]:
        """MaskCLIP at the threshold that is best for it on these scenes, and retrieval."""
        results = self._segment("clip", everything, scenes, list(THRESHOLDS))
        best = max(range(len(results)), key=lambda i: results[i]["miou"])
        retrieval = retrieval_at_1(self._experiment.clip, everything["clip"], scenes)
        return {**results[best], "retrieval_at_1": retrieval}, float(THRESHOLDS[best])

    def _segment(
        self, method: str, everything: Any, scenes: ShapesSource, thresholds: Sequence[float]
    ) -> list[dict[str, float]]:
        texts, engine = self._texts(everything), self._methods[method]
        return segment_scenes(engine, everything, texts, self._options, scenes, thresholds)

    def _picture(
        self, everything: Any, source: ShapesSource, maskclip_threshold: float
    ) -> np.ndarray:
        """Image, truth, MaskCLIP and TCL of the first scenes, with a legend; uint8 [H, W, 3]."""
        scenes, texts = [source[i] for i in range(PICTURED)], self._texts(everything)
        labels = {"truth": [scene["label"] for scene in scenes]}
        for method, threshold in (("clip", maskclip_threshold), ("tcl", self._eval.background)):
            engine = self._methods[method]
            labels[method.upper()] = [
                with_background(classes, values, threshold)
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

        TCL's scores stand beside its CLIP's. With them are written a grid of pictures, shapes.png,
        and one scene to try words on, scene.png. A trained CLIP is written as clip.safetensors with
        OpenAI's tensor names.
        """
        everything, clip = self._join(params, frozen), self._experiment.clip
        baseline, threshold = self._clip_scores(everything, self.test)
        results, picture = {"clip": baseline}, None
        if not self._experiment.trains_clip:
            results["tcl"] = self._tcl_scores(everything, self.test)
            picture = self._picture(everything, self.test, threshold)
        if jax.process_index() != 0:
            return
        rounded = {
            method: {name: round(score, 2) for name, score in scores.items()}
            for method, scores in results.items()
        }
        write_json(workdir / "results.json", rounded)
        columns = list(results["clip"])
        rows = [
            (method, *(f"{scores[c]:.2f}" if c in scores else UNKNOWN for c in columns))
            for method, scores in rounded.items()
        ]
        print("\n".join(align([("%", *columns), *rows])))
        print(f"results: {workdir / 'results.json'}")
        if picture is None:
            tensors = clip_state_dict(params, clip.config, np.float16)
            metadata = {"activation": clip.config.activation}
            write_safetensors(workdir / "clip.safetensors", tensors, metadata)
        else:
            save_png(workdir / "shapes.png", picture)
            scenes = (self.test[i] for i in range(len(self.test)))
            several = next((s for s in scenes if len(s["class_ids"]) == 3), self.test[0])
            save_png(workdir / "scene.png", several["image"])
            print(f"picture: {workdir / 'shapes.png'}")
