"""Scores and pictures of a run on drawn scenes: while it trains, and at its end beside its CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.errors import as_input_error
from tcl_jax.evaluation.report import align
from tcl_jax.evaluation.scenes import (
    check_scenes,
    count_scenes,
    retrieval_at_1,
    scene_masks,
    scores_at,
)
from tcl_jax.evaluation.scores import UNKNOWN
from tcl_jax.evaluation.thresholds import ThresholdSearch
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

BASELINE = "clip"
"""The CLIP's entry of the parameter tree, and its name among the scores."""
MISSED_BY = 0.01
"""mIoU that the config's threshold may cost before it is told."""
PICTURED, SIDE_BY_SIDE = 10, 2
"""Scenes in the picture, and in a row of it."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A method with one of its refinements."""

    method: Method
    engine: MaskEngine
    options: MaskOptions


class ShapesEvaluator:
    """Zero-shot scores on validation scenes, and a picture of the first few.

    Scored is what is trained, refined as the config says, at the background threshold that is best
    for it on these scenes. A run that trains the CLIP itself scores that as MaskCLIP, with
    retrieval.

    Args:
        config: reads `eval`.
        experiment: what is trained.

    Raises:
        InputError: if there are too few scenes, or a batch does not divide over the devices.
    """

    def __init__(self, config: ConfigDict, experiment: Experiment) -> None:
        mesh, self._mesh = data_mesh(), local_mesh()
        check_scenes(config.eval.num_scenes, config.eval.batch_size, mesh)
        self._eval, self._experiment, method = config.eval, experiment, experiment.method
        self._trains_clip = BASELINE in experiment.params
        methods: dict[str, Method] = {}
        if BASELINE in method.parameters:
            maskclip = MaskCLIP.from_description(method.describe())
            methods[BASELINE] = dataclasses.replace(maskclip, dtype=method.dtype)
        if not self._trains_clip:
            methods[method.name] = method
        self._rows: dict[str, _Row] = {}
        for name, one in methods.items():
            # One, so that a run compiles each row once and not at every evaluation.
            engine = MaskEngine(one, self._mesh, config.eval.batch_size // mesh.size)
            for refine in ("none", "pamr"):
                row = name if refine == "none" else f"{name}+{refine}"
                self._rows[row] = _Row(one, engine, MaskOptions(refine, config.eval.kp_weight))
        own = BY_PAMR[config.eval.pamr]
        self._shown = [name for name, row in self._rows.items() if row.options.refine == own]
        side, size = method.resolution, config.eval.num_scenes
        with as_input_error("the task shapes of eval.tasks"):
            self.validation = ShapesSource("validation", num_examples=size, image_size=side)
            self.test = ShapesSource("test", num_examples=size, image_size=side, seed=config.seed)

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent, and the threshold at which, a fraction."""
        everything, name = self._join(params, frozen), self._shown[-1]
        search = self._search(name, everything, self.validation)
        scores = scores_at(search, search.best)
        if self._trains_clip:
            return Evaluation(scores | self._retrieval(everything, self.validation))
        picture = self._picture(everything, self.validation, {name: search.best})
        return Evaluation(scores, {"scenes": picture})

    # ------------------------------------------------------------------------------- the methods

    def _join(self, params: Any, frozen: Any) -> Any:
        return put_locally(self._experiment.join(params, frozen), self._mesh)

    def _texts(self, row: _Row, everything: Any) -> np.ndarray:
        encoder, params = row.method.text_encoder, row.method.text_params(everything)
        return embed_class_names(encoder, params, class_names(), self._eval.templates)

    def _search(self, name: str, everything: Any, scenes: ShapesSource) -> ThresholdSearch:
        row, own = self._rows[name], self._eval.background
        texts = self._texts(row, everything)
        return count_scenes(row.engine, everything, texts, row.options, scenes, own)

    def _retrieval(self, everything: Any, scenes: ShapesSource) -> dict[str, float]:
        clip = self._rows[BASELINE].method
        assert isinstance(clip, MaskCLIP)
        share = retrieval_at_1(clip.clip_model, everything[BASELINE], scenes)
        return {"retrieval_at_1": share}

    def _picture(
        self, everything: Any, source: ShapesSource, thresholds: Mapping[str, float]
    ) -> np.ndarray:
        """Image, truth and what each row finds in the first scenes; uint8 [H, W, 3]."""
        scenes = [source[i] for i in range(PICTURED)]
        labels = {"truth": [scene["label"] for scene in scenes]}
        for name, threshold in thresholds.items():
            row = self._rows[name]
            texts = self._texts(row, everything)
            found = scene_masks(row.engine, everything, texts, row.options, scenes)
            labels[name.upper()] = [masks.labels(masks.size, threshold) for _, masks in found]
        cells = []
        for i, scene in enumerate(scenes):
            pictures = {"image": scene["image"]}
            pictures |= {title: PALETTE[maps[i]] for title, maps in labels.items()}
            cells += [
                (title if i < SIDE_BY_SIDE else "", enlarge(picture, 2))
                for title, picture in pictures.items()
            ]
        names = ("background", *class_names())
        entries = []
        for i in np.unique(list(labels.values())):
            name = f"{names[i]} (unseen)" if names[i] in UNSEEN else names[i]
            red, green, blue = PALETTE[i].tolist()
            entries.append(LegendEntry(name, (red, green, blue), 0, note=""))
        return legend_page(titled_grid(cells, SIDE_BY_SIDE * (1 + len(labels))), entries)

    # ---------------------------------------------------------------------------------- the report

    def report(self, params: Any, frozen: Any, workdir: Path, step: int) -> None:
        """Scores test scenes, which chose nothing; prints and writes results.json.

        What is trained stands beside its CLIP, each with PAMR and without, at the threshold that is
        best for it on validation scenes. With the scores are written a grid of pictures,
        shapes.png, and one scene to try words on, scene.png, unless the CLIP itself is trained.
        """
        everything = self._join(params, frozen)
        chosen = {name: self._search(name, everything, self.validation) for name in self._rows}
        results = {
            name: scores_at(self._search(name, everything, self.test), search.best)
            for name, search in chosen.items()
        }
        if BASELINE in results:
            results[BASELINE] |= self._retrieval(everything, self.test)
        picture = None
        if not self._trains_clip:
            best = {name: chosen[name].best for name in self._shown}
            picture = self._picture(everything, self.test, best)
        if jax.process_index() != 0:
            return
        rounded = {
            method: {name: round(score, 2) for name, score in scores.items()}
            for method, scores in results.items()
        }
        write_json(workdir / "results.json", rounded)
        columns = list(next(iter(results.values())))
        heads = [c if c == "threshold" else f"{c} %" for c in columns]
        rows = [
            (method, *(f"{scores[c]:.2f}" if c in scores else UNKNOWN for c in columns))
            for method, scores in rounded.items()
        ]
        print("\n".join(align([("", *heads), *rows])))
        print(f"results: {workdir / 'results.json'}")
        search = chosen[self._shown[-1]]
        if (missed := search.loss(search.own)) > MISSED_BY:
            print(
                f"at eval.background={search.own:g}, which `segment` and the page take, mIoU is "
                f"{100 * missed:.1f} lower: give them --threshold={search.best:g}"
            )
        if picture is not None:
            save_png(workdir / "shapes.png", picture)
            scenes = (self.test[i] for i in range(len(self.test)))
            several = next((s for s in scenes if len(s["class_ids"]) == 3), self.test[0])
            save_png(workdir / "scene.png", several["image"])
            print(f"picture: {workdir / 'shapes.png'}")
