"""The page: what is on it, and what happens when something is touched.

The browser draws masks (stage.js), so threshold, opacity, background and the reading at a point
need no server; the model runs for a new photo, new words, and the switches that change soft masks.
"""

from __future__ import annotations

import base64
import html
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tcl_jax.demo.answers import BASELINE, TITLES, Answer, Answers, Question
from tcl_jax.demo.examples import Example
from tcl_jax.demo.shown import mask_content, photo_content, word_colors
from tcl_jax.errors import InputError
from tcl_jax.files import IMAGE_SUFFIXES

OPACITY = 0.6
_HERE = Path(__file__).parent
_STAGE_JS = (_HERE / "stage.js").read_text(encoding="utf-8")
CSS = (_HERE / "page.css").read_text(encoding="utf-8")
_THUMBNAIL = 200
# Seconds between two looks at uploads and files to take away, and the age at which they go.
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
_SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "sans-serif")


def theme() -> gr.themes.Base:
    """Fonts of the system, since a page must not call for others; few lines and much space."""
    fonts = [gr.themes.Font(name) for name in _SYSTEM_FONTS]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_md,
        font=fonts,
        font_mono=mono,
    ).set(
        body_background_fill="#ffffff",
        body_background_fill_dark="#0f1218",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        input_placeholder_color="*neutral_500",
        slider_color="*primary_600",
    )


def build_page(answers: Answers, examples: Sequence[Example], folder: str) -> gr.Blocks:
    """The page, to be launched by `server.serving`.

    Args:
        answers: what it asks.
        examples: pictures to click.
        folder: for files to take away; in GRADIO_TEMP_DIR, so that they go with time.
    """
    start = answers.settings.pamr
    own_threshold = answers.threshold(answers.method, start)
    other_threshold = _baseline_threshold(answers, start)
    with gr.Blocks(
        title="TCL: segment what you can name",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=_CLEANING,
    ) as page:
        question = gr.State(None)
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
                    thresholds=_by_method(answers, own_threshold, other_threshold),
                    opacity=OPACITY,
                    background=True,
                )
                with gr.Row():
                    threshold = gr.Slider(
                        0, 1, own_threshold, step=0.01, label="Threshold",
                        elem_id="threshold", min_width=280,
                    )  # fmt: skip
                    opacity = gr.Slider(
                        0, 1, OPACITY, step=0.05, label="Opacity",
                        elem_id="opacity", min_width=280,
                    )  # fmt: skip
                    beside = gr.Slider(
                        0, 1, other_threshold, step=0.01, label="Threshold of MaskCLIP",
                        elem_id="baseline-threshold", min_width=280, visible=False,
                    )  # fmt: skip
                with gr.Row(elem_classes="switches"):
                    background = gr.Checkbox(
                        True, label="Background", elem_id="background", min_width=150
                    )
                    pamr = gr.Checkbox(
                        start, label="Refine edges (PAMR)", elem_id="pamr", min_width=150
                    )
                    baseline = gr.Checkbox(
                        False, label="MaskCLIP beside", elem_id="baseline", min_width=150,
                        visible=answers.has_baseline,
                    )  # fmt: skip
                download = gr.Button("Download masks", elem_id="download", interactive=False)
                file = gr.DownloadButton("File", elem_id="file", visible="hidden")

        controls = [threshold, beside, opacity, background]
        inputs = [photo, words, pamr, baseline]
        outputs = [stage, question, message, download]
        heard: dict[str, Any] = {"api_visibility": "private"}
        model: dict[str, Any] = {
            **heard, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "full",
            "show_progress_on": stage,
        }  # fmt: skip

        ask = _ask(answers)
        baseline.change(
            lambda shown: gr.update(visible=shown), [baseline], [beside], **heard, queue=False
        )
        asked = [
            segment.click(ask, inputs, outputs, **model),
            words.submit(ask, inputs, outputs, **model),
            pamr.change(_again(ask), [question, *inputs], outputs, **model),
            baseline.change(_again(ask), [question, *inputs], outputs, **model),
            # An example that is clicked while another one is answered has its turn, too.
            strip.choose(
                _choose(examples), None, [photo, words], **heard, queue=False,
                show_progress="hidden",
            ).then(ask, inputs, outputs, **model, trigger_mode="always_last"),
        ]  # fmt: skip
        other_photo = [photo.upload, photo.clear]
        # Before the photo is shown, or an answer about the one before could still replace it.
        gr.on(other_photo, None, api_visibility="private", cancels=asked)
        gr.on(
            other_photo, _look(answers), [photo], outputs, **heard, show_progress="hidden",
            trigger_mode="always_last",
        )  # fmt: skip

        tell = "(value) => { window.tclStage.set({%s}); }"
        for control, change in (
            (threshold, f"threshold: {{{answers.method}: value}}"),
            (beside, f"threshold: {{{BASELINE}: value}}"),
            (opacity, "opacity: value"),
            (background, "background: value"),
        ):
            control.change(None, [control], None, js=tell % change, api_visibility="private")
        download.click(
            _pack(answers, folder), [question, *controls], [file, message], **heard
        ).success(
            None, [file], None, api_visibility="private",
            js="(file) => { if (file) window.tclDownload(file); }",
        )  # fmt: skip
    return page


# ------------------------------------------------------------------------------------------ answers

_Update = tuple[Any, Any, Any, Any]


def _look(answers: Answers) -> Callable[[str | None], _Update]:
    """Shows a photo that was just uploaded, without masks."""

    def look(path: str | None) -> _Update:
        shown, problem = None, ""
        if path is not None:
            try:
                shown = photo_content(answers.picture(path))
            except Exception as error:
                problem = _explain(error)
        return shown, None, problem, gr.update(interactive=False)

    return look


def _ask(answers: Answers) -> Callable[..., _Update]:
    """Segments; the stage stays as it is where that cannot be done."""

    def ask(path: str | None, words: str, pamr: bool, baseline: bool) -> _Update:
        try:
            question = answers.question(path, words, pamr=pamr, baseline=baseline)
            shown = _content(answers.answer(question))
        except Exception as error:
            return gr.skip(), gr.skip(), _explain(error), gr.skip()
        return shown, question, "", gr.update(interactive=True)

    return ask


def _again(ask: Callable[..., _Update]) -> Callable[..., _Update]:
    """Segments once more, if that was done before."""

    def again(question: Question | None, *inputs: Any) -> _Update:
        if question is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return ask(*inputs)

    return again


def _content(answer: Answer) -> dict[str, Any]:
    """What stage.js draws."""
    content = photo_content(answer.picture)
    shape = answer.picture.shape[0], answer.picture.shape[1]
    names = answer.question.words
    return {
        **content,
        "names": list(names),
        "colors": word_colors(len(names)),
        "panels": [
            {"method": method, "title": TITLES.get(method, method), "masks": mask_content(m, shape)}
            for method, m in answer.masks.items()
        ],
    }


def _pack(answers: Answers, folder: str) -> Callable[..., tuple[str | None, str]]:
    """Makes the file to take away."""

    def pack(
        question: Question | None,
        threshold: int | float,
        beside: int | float,
        opacity: int | float,
        background: bool,
    ) -> tuple[str | None, str]:
        try:
            if question is None:
                raise InputError("There is nothing to download yet; segment a photo first.")
            thresholds = _by_method(answers, threshold, beside)
            path = answers.pack(question, folder, thresholds if background else None, opacity)
        except Exception as error:
            return None, _explain(error)
        return os.fspath(path), ""

    return pack


def _explain(error: Exception) -> str:
    """What the page says, as HTML; what nobody expected is logged with its trace."""
    if isinstance(error, InputError):
        text = str(error)
    else:
        logging.getLogger(__name__).exception("the page could not answer")
        text = "Something went wrong on the server. Try again, or look at its log."
    return f'<div class="message" role="alert">{html.escape(text)}</div>'


# ----------------------------------------------------------------------------------------- examples


def _choose(examples: Sequence[Example]) -> Callable[[gr.EventData], tuple[str, str]]:
    """Fills in what belongs to the picture that was clicked."""

    def choose(event: gr.EventData) -> tuple[str, str]:
        example = examples[int(event.number) % len(examples)]
        return os.fspath(example.path), example.words

    return choose


def _strip(examples: Sequence[Example]) -> str:
    """Buttons with small pictures."""
    buttons = []
    for number, example in enumerate(examples):
        buffer = io.BytesIO()
        with Image.open(example.path) as image:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            image.convert("RGB").save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        title = html.escape(example.title, quote=True)
        buttons.append(
            f'<button type="button" data-number="{number}" title="{title}">'
            f'<img alt="Example: {title}" src="data:image/jpeg;base64,{data}"></button>'
        )
    return (
        f'<p class="strip-title">Or try one of these</p><div class="strip">{"".join(buttons)}</div>'
    )


def _by_method(answers: Answers, own: int | float, beside: int | float) -> dict[str, int | float]:
    """Thresholds by method; of a model whose own method is MaskCLIP only the first is used."""
    return {BASELINE: beside, answers.method: own}


def _baseline_threshold(answers: Answers, pamr: bool) -> float:
    return answers.threshold(BASELINE, pamr) if answers.has_baseline else 0.5
