"""The page: what is on it, and what happens when something is touched.

The browser draws masks (stage.js), so threshold, opacity, background and the reading at a point
need no server; the model runs for a new photo, new words, and the switches that change soft masks.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tcl_jax.data.images import read_image
from tcl_jax.demo.answers import BASELINE, Answers, Question
from tcl_jax.demo.examples import Example
from tcl_jax.demo.shown import jpeg_url, mask_content, photo_content
from tcl_jax.errors import InputError
from tcl_jax.files import IMAGE_SUFFIXES
from tcl_jax.models.methods import METHODS
from tcl_jax.pictures.overlays import shrink
from tcl_jax.pictures.palette import class_palette

OPACITY = 0.6
_HERE = Path(__file__).parent
_STAGE_JS = (_HERE / "stage.js").read_text(encoding="utf-8")
CSS = (_HERE / "page.css").read_text(encoding="utf-8")
_THUMBNAIL = 200
# Seconds between two looks at uploads and files to download, and the age at which they go.
_CLEANING = (600, 6 * 3600)
_STRIP_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-number]");
  if (button) trigger("choose", { number: Number(button.dataset.number) });
});
"""
HEAD = """
<script>
window.tclDownload = (file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name;
  link.click();
};
</script>
"""


def theme() -> gr.themes.Base:
    """Fonts of the system, since a page must not call for others."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Roboto", "Helvetica", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        # Base's greys are too faint to read.
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
    )


def build_page(answers: Answers, examples: Sequence[Example], folder: str) -> gr.Blocks:
    """The page, to be launched by `server.serving`.

    Args:
        examples: pictures to click.
        folder: for files to download; in GRADIO_TEMP_DIR, so that they go with time.
    """
    refined = answers.settings.refine == "pamr"
    thresholds = answers.thresholds(refined)
    with gr.Blocks(
        title=f"{METHODS[answers.method].title}: segment what you can name",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=_CLEANING,
    ) as page:
        # --------------------------------------------------------------------------- what is on it
        asked = gr.State(None)
        gr.HTML(
            "<h1>Segment what you can name</h1><p>Drop a photo, type words, see where they are."
            "</p>",
            elem_classes="headline",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                photo = gr.File(
                    label="Photo",
                    file_types=["image", *sorted(IMAGE_SUFFIXES)],
                    height=150,
                    elem_id="photo",
                )
                strip = gr.HTML(_strip(examples), js_on_load=_STRIP_JS, elem_id="examples")
                words = gr.Textbox(
                    label="Words, one per line",
                    placeholder="a cat\ngrass\nsky",
                    lines=5,
                    max_lines=12,
                    max_length=20_000,
                    elem_id="words",
                )
                segment = gr.Button("Segment", variant="primary", size="lg", elem_id="segment")
                message = gr.HTML("", elem_id="message", elem_classes="says")
            with gr.Column(scale=7, min_width=320):
                stage = gr.HTML(
                    None,
                    html_template='<div class="stage"></div>',
                    js_on_load=_STAGE_JS,
                    elem_id="stage",
                    apply_default_css=False,
                    thresholds=thresholds,
                    opacity=OPACITY,
                    background=True,
                )
                with gr.Row():
                    threshold = gr.Slider(
                        0, 1, thresholds[answers.method], step=0.01, label="Threshold",
                        elem_id="threshold", min_width=280,
                    )  # fmt: skip
                    opacity = gr.Slider(
                        0, 1, OPACITY, step=0.05, label="Opacity",
                        elem_id="opacity", min_width=280,
                    )  # fmt: skip
                    beside = gr.Slider(
                        0, 1, thresholds.get(BASELINE), step=0.01, label="Threshold of MaskCLIP",
                        elem_id="baseline-threshold", min_width=280, visible=False,
                    )  # fmt: skip
                with gr.Row(elem_classes="switches"):
                    background = gr.Checkbox(
                        True, label="Background", elem_id="background", min_width=150
                    )
                    pamr = gr.Checkbox(
                        refined, label="Refine edges (PAMR)", elem_id="pamr", min_width=150
                    )
                    baseline = gr.Checkbox(
                        False, label="MaskCLIP beside", elem_id="baseline", min_width=150,
                        visible=answers.has_baseline,
                    )  # fmt: skip
                download = gr.Button("Download masks", elem_id="download", interactive=False)
                file = gr.DownloadButton("File", elem_id="file", visible="hidden")

        # ------------------------------------------------------- answers; parts left out stay as is

        def look(path: str | None) -> dict[Any, Any]:
            """Shows a photo that was just uploaded, without masks."""
            shown, problem = None, ""
            try:
                if path is not None:
                    shown = photo_content(answers.picture(path))
            except Exception as error:
                problem = explain(error)
            no_download = gr.update(interactive=False)
            return {stage: shown, asked: None, message: problem, download: no_download}

        def ask(path: str | None, text: str, pamr: bool, baseline: bool) -> dict[Any, Any]:
            try:
                question = answers.question(path, text, pamr=pamr, baseline=baseline)
                shown = _content(answers, question)
            except Exception as error:
                return {message: explain(error)}
            ready = gr.update(interactive=True)
            return {stage: shown, asked: question, message: "", download: ready}

        def ask_again(before: Question | None, *inputs: Any) -> dict[Any, Any]:
            return gr.skip() if before is None else ask(*inputs)

        def follow(pamr: bool, *scores: float) -> list[float | None]:
            """A threshold that nobody moved becomes that of the other position of the box."""
            before, after = (answers.thresholds(x) for x in (not pamr, pamr))
            return [
                after[name] if name in after and abs(x - before[name]) < 1e-6 else x
                for name, x in zip((answers.method, BASELINE), scores, strict=True)
            ]

        def choose(event: gr.EventData) -> tuple[str, str]:
            path, text = examples[int(event.number) % len(examples)]
            return os.fspath(path), text

        def pack(
            question: Question | None, own: float, other: float, opacity: float, background: bool
        ) -> dict[Any, Any]:
            scores = {BASELINE: other, answers.method: own} if background else None
            try:
                if question is None:
                    raise InputError("There is nothing to download yet; segment a photo first.")
                packed = answers.pack(question, folder, scores, opacity)
            except Exception as error:
                return {file: None, message: explain(error)}
            return {file: os.fspath(packed), message: ""}

        # ------------------------------------------------------------------------- what is touched
        inputs = [photo, words, pamr, baseline]
        outputs = [stage, asked, message, download]
        heard: dict[str, Any] = {"api_visibility": "private"}
        model: dict[str, Any] = {
            **heard, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "full",
            "show_progress_on": stage,
        }  # fmt: skip
        baseline.change(
            lambda shown: gr.update(visible=shown), [baseline], [beside], **heard, queue=False
        )
        sliders = [threshold, beside]
        pamr.change(follow, [pamr, *sliders], sliders, **heard, queue=False, show_progress="hidden")
        asking = [
            segment.click(ask, inputs, outputs, **model),
            words.submit(ask, inputs, outputs, **model),
            pamr.change(ask_again, [asked, *inputs], outputs, **model),
            baseline.change(ask_again, [asked, *inputs], outputs, **model),
            # An example that is clicked while another one is answered has its turn, too.
            strip.choose(
                choose, None, [photo, words], **heard, queue=False, show_progress="hidden"
            ).then(ask, inputs, outputs, **model, trigger_mode="always_last"),
        ]
        other_photo = [photo.upload, photo.clear]
        # Before the photo is shown, or an answer about the one before could still replace it.
        gr.on(other_photo, None, **heard, cancels=asking)
        gr.on(
            other_photo, look, [photo], outputs, **heard, show_progress="hidden",
            trigger_mode="always_last",
        )  # fmt: skip
        for control, change in (
            (threshold, f'threshold: {{"{answers.method}": value}}'),
            (beside, f'threshold: {{"{BASELINE}": value}}'),
            (opacity, "opacity: value"),
            (background, "background: value"),
        ):
            control.change(
                None, [control], None, **heard,
                js=f"(value) => {{ window.tclStage.set({{{change}}}); }}",
            )  # fmt: skip
        controls = [asked, threshold, beside, opacity, background]
        download.click(pack, controls, [file, message], **heard).success(
            None, [file], None, **heard, js="(file) => { if (file) window.tclDownload(file); }"
        )
    return page


def _content(answers: Answers, question: Question) -> dict[str, Any]:
    """What stage.js draws."""
    picture, masks = answers.answer(question)
    shape = picture.shape[0], picture.shape[1]
    colors = class_palette(len(question.words), False).tolist()
    panels = [
        {"method": method, "title": METHODS[method].title, "masks": mask_content(soft, shape)}
        for method, soft in masks.items()
    ]
    return {
        **photo_content(picture),
        "names": list(question.words),
        "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in colors],
        "panels": panels,
    }


def explain(error: Exception) -> str:
    """What the page says, as HTML; what nobody expected is logged with its trace."""
    if isinstance(error, InputError):
        text = str(error)
    else:
        logging.getLogger(__name__).exception("the page could not answer")
        text = "Something went wrong on the server. Try again, or look at its log."
    return f'<div class="message" role="alert">{html.escape(text)}</div>'


def _strip(examples: Sequence[Example]) -> str:
    """Buttons with small pictures."""
    buttons = []
    for number, example in enumerate(examples):
        url = jpeg_url(shrink(read_image(example.path), _THUMBNAIL), 85)
        title = html.escape(example.words.replace("\n", " and "), quote=True)
        buttons.append(
            f'<button type="button" data-number="{number}" title="{title}">'
            f'<img alt="Example: {title}" src="{url}"></button>'
        )
    return (
        f'<p class="strip-title">Or try one of these</p><div class="strip">{"".join(buttons)}</div>'
    )
