"""The page in a real browser: Chromium without a window. Every check waits for what it asserts."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tcl_jax.demo.answers import BASELINE, Answers, Question
from tcl_jax.demo.server import serving
from tcl_jax.inference.segmentation import Segmentation
from tests.demo.made_model import WORDS, random_tcl, write_scene

pytest.importorskip("gradio", reason="gradio is not installed (pip install .[demo])")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get: chromium)"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TEXT = "\n".join(WORDS)
PATIENCE = 60  # seconds


class Site:
    """A page that is served, a browser, and what its pages asked for and got wrong."""

    def __init__(self, browser: Any, answers: Answers, address: str, blocks: list[Any]) -> None:
        self.browser, self.answers, self.address = browser, answers, address
        self.blocks = blocks
        self.requests: list[str] = []
        self.errors: list[str] = []

    def open(self, viewport: dict[str, int] = DESKTOP, **options: Any) -> Any:
        """A user's own page."""
        page = self.browser.new_context(viewport=viewport, **options).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.address)
        # Gradio fetches the code of each kind of control on its own.
        controls = ("words textarea", "threshold input", "opacity input", "background input")
        for part in ("photo input", "examples button", "stage .hint", "pamr input", *controls):
            page.wait_for_selector(f"#{part}", state="attached")
        return page


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    from tcl_jax.demo.page import build_page

    answers = Answers(random_tcl(), max_bytes=1_000_000, max_pixels=150_000)
    blocks: list[Any] = []

    def build(*arguments: Any) -> Any:
        blocks.append(build_page(*arguments))
        return blocks[0]

    with (
        mock.patch("tcl_jax.demo.page.build_page", build),
        serving(answers, "127.0.0.1", port) as address,
        api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        yield Site(browser, answers, address, blocks)
        browser.close()


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Whose pages ask nothing of other hosts."""
    shared_site.requests.clear()
    yield shared_site
    for context in shared_site.browser.contexts:
        context.close()
    foreign = [
        u for u in shared_site.requests if not re.match(rf"{shared_site.address}/|data:|blob:", u)
    ]
    assert len(shared_site.requests) > 5 and foreign == []
    assert shared_site.errors == []


def wait_for(page: Any, look: Callable[[], Any], wanted: Any = True) -> None:
    """Until look() gives what is wanted."""
    end = time.monotonic() + PATIENCE
    while (seen := look()) != wanted and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert seen == wanted


def put(page: Any, photo: Path, words: str) -> None:
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#stage canvas[aria-label*='without masks']")
    page.fill("#words textarea", words)


def move(page: Any, slider: str, value: float) -> None:
    page.fill(f"#{slider} input[type=number]", str(value))
    page.keyboard.press("Tab")


def shares(page: Any, panel: int = 0) -> dict[str, str]:
    """The legend: share by name, as it is shown."""
    legend = page.locator(".panel").nth(panel).locator("li:visible")
    lines = [text.split("\n") for text in legend.all_inner_texts()]
    # A name that is being drawn again has no share yet.
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[1]}


@functools.cache
def reference() -> Answers:
    return Answers(random_tcl())


def segmented(
    photo: Path, words: str, threshold: float | None, method: str = "tcl", *, pamr: bool = False
) -> Segmentation:
    """What the package makes of it."""
    question = reference().question(photo, words, pamr=pamr, baseline=True)
    return reference().segmentation(question, method, threshold)


def wait_for_masks(page: Any, result: Segmentation, panel: int = 0) -> None:
    """Until the legend has the shares of a result."""
    wanted = {name: f"{100 * share:.1f} %" for name, share in result.fractions.items()}
    wait_for(page, lambda: shares(page, panel), wanted)


def wait_for_words(page: Any) -> None:
    """Until the legend has the words that are typed, as far as they were asked."""

    def same() -> bool:
        typed = page.input_value("#words textarea").split("\n")
        return set(shares(page)) == {*typed, "background"}

    wait_for(page, same)


@contextlib.contextmanager
def held_back(answers: Answers) -> Iterator[threading.Event]:
    """Answers wait until the end of the body; the event is set when one is asked for."""
    begun, go, made, answer = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
        answers.answer,
    )

    def late(question: Question) -> Any:
        begun.set()
        assert go.wait(PATIENCE)
        result = answer(question)
        made.set()
        return result

    with mock.patch.object(answers, "answer", late):
        try:
            yield begun
        finally:
            go.set()
        assert made.wait(PATIENCE)


def pixels(page: Any) -> np.ndarray:
    """What the stage shows, [h, w, 3]."""
    made = page.evaluate(
        "() => { const c = document.querySelector('#stage canvas');"
        "return [c.height, c.width, Array.from("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; }"
    )
    return np.array(made[2], np.uint8).reshape(made[0], made[1], 4)[..., :3]


def downloaded(page: Any, folder: Path) -> dict[str, Any]:
    """Name of the zip file, and the thresholds in it by file."""
    with page.expect_download() as coming:
        page.click("button#download")
    coming.value.save_as(folder / "masks.zip")
    with zipfile.ZipFile(folder / "masks.zip") as archive:
        records = [name for name in archive.namelist() if name.endswith(".json")]
        thresholds = {name: json.loads(archive.read(name))["threshold"] for name in records}
    return {"name": coming.value.suggested_filename, "thresholds": thresholds}


def test_upload_type_segment_and_move_the_sliders(site: Site, tmp_path: Path) -> None:
    photo = write_scene(tmp_path / "scene.png", 5)
    result = functools.partial(segmented, photo, TEXT)
    page = site.open()
    put(page, photo, TEXT)
    assert page.is_disabled("#download")
    runs = site.answers.model_runs
    page.click("#segment")
    wait_for_masks(page, result(0.3))
    page.check("#pamr input")
    wait_for_masks(page, result(0.4, pamr=True))  # 0.3 is of masks without
    page.uncheck("#pamr input")
    wait_for_masks(page, result(0.3))
    assert sum(share > 0.01 for share in result(0.3).fractions.values()) >= 3

    # From here on everything is drawn from what the page has.
    asked = len(site.requests)
    for threshold in (0.1, 0.55, 0.31):
        move(page, "threshold", threshold)
        wait_for_masks(page, result(threshold))
    page.locator("#threshold input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_masks(page, result(0.32))
    page.uncheck("#background input")
    wait_for_masks(page, result(None))
    # The photo travels as a JPEG.
    assert np.abs(pixels(page).astype(int) - result(None).overlay(0.6)).mean() < 4
    move(page, "opacity", 1)
    wait_for(page, lambda: np.array_equal(pixels(page), result(None).overlay(1.0)))
    assert site.answers.model_runs == runs + 2
    assert [url for url in site.requests[asked:] if "queue/join" in url] == []

    assert downloaded(page, tmp_path) == {
        "name": "scene_masks.zip", "thresholds": {"scene.json": None},
    }  # fmt: skip
    page.check("#background input")
    page.check("#pamr input")
    wait_for_masks(page, result(0.32, pamr=True))
    assert site.answers.model_runs == runs + 2
    page.uncheck("#pamr input")
    wait_for_masks(page, result(0.32))  # which move what is below them
    page.check("#baseline input")
    page.wait_for_selector(".panel >> nth=1")
    move(page, "baseline-threshold", 0.45)
    wait_for_masks(page, result(0.45, BASELINE), 1)
    wait_for_masks(page, result(0.32))
    thresholds = {"scene_tcl.json": 0.32, "scene_maskclip.json": 0.45}
    assert downloaded(page, tmp_path)["thresholds"] == thresholds


def test_an_answer_about_the_photo_before_is_dropped(site: Site, tmp_path: Path) -> None:
    first, second = (write_scene(tmp_path / f"scene{i}.png", i) for i in (5, 6))
    page = site.open()
    with held_back(site.answers) as begun:
        put(page, first, TEXT)
        page.click("#segment")
        assert begun.wait(PATIENCE)
        page.click("#photo [aria-label=Clear]")
        page.wait_for_selector("#photo input[type=file]", state="attached")
        put(page, second, TEXT)
    page.wait_for_timeout(1000)
    assert page.get_attribute("#stage canvas", "aria-label") == "The photo, without masks"
    assert page.is_disabled("#download")
    page.click("#segment")
    wait_for_masks(page, segmented(second, TEXT, 0.3))
    assert downloaded(page, tmp_path)["name"] == "scene6_masks.zip"


def test_examples(site: Site) -> None:
    from gradio.route_utils import delete_files_created_by_app

    page = site.open()
    with held_back(site.answers) as begun:
        page.click("#examples button >> nth=0")
        assert begun.wait(PATIENCE)
        before = page.input_value("#words textarea")
        page.click("#examples button >> nth=1")
        wait_for(page, lambda: page.input_value("#words textarea") != before)
    wait_for_words(page)
    # They outlive the cleaning; their copies on a page do not.
    delete_files_created_by_app(site.blocks[0], age=None)
    page.fill("#words textarea", "something else")
    page.click("#segment")
    page.wait_for_selector(".message >> text=upload it again")
    page = site.open()
    page.click("#examples button >> nth=1")
    wait_for_words(page)


def test_reading_a_point_by_mouse_and_keyboard(site: Site, tmp_path: Path) -> None:
    photo = write_scene(tmp_path / "scene.png", 5)
    page, result = site.open(), segmented(photo, TEXT, 0.3)
    put(page, photo, TEXT)
    page.click("#segment")
    wait_for_masks(page, result)
    canvas, reading = page.locator("#stage canvas"), page.locator("#stage .reading")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def wait_for_reading(x: int, y: int) -> None:
        score, name = result.masks[y, x].max(), result.names[result.labels[y, x]]
        best = result.texts[int(result.masks[y, x].argmax())]
        start = re.escape(f"{name}\n{best} has " if name == "background" else f"{name}\n")
        said = f"{start}({int(100 * score)}|{int(100 * score) + 1}) %"
        wait_for(page, lambda: bool(re.fullmatch(said, reading.inner_text())))

    for x, y in ((10, 20), (48, 48), (80, 60)):
        page.mouse.move(
            box["x"] + (x + 0.5) / 96 * box["width"], box["y"] + (y + 0.5) / 96 * box["height"]
        )
        wait_for_reading(x, y)
    page.mouse.move(1, 1)
    wait_for(page, reading.is_visible, False)
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    wait_for_reading(46, 48)
    page.keyboard.press("Escape")
    wait_for(page, reading.is_visible, False)
    # A name of the legend stands out when it is chosen.
    before = pixels(page).astype(int)
    page.locator(".chip").first.click()
    wait_for(page, lambda: bool(np.abs(pixels(page) - before).max() > 20))


def test_what_cannot_be_answered_is_told_in_the_page(site: Site, tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("no picture at all")
    (tmp_path / "notes.txt").write_text("no picture at all")
    (tmp_path / "heavy.png").write_bytes(bytes(1_200_000))
    write_scene(tmp_path / "wide.png", 2, size=400)
    page = site.open()
    page.click("#segment")
    page.wait_for_selector(".message >> text=Choose a photo first")
    for name, where, text in (
        ("fake.png", ".message", "cannot be used"),
        ("wide.png", ".message", "400 x 400 pixels, and the limit is 150000"),
        ("notes.txt", "[data-testid=toast-body]", "Invalid file type"),
        ("heavy.png", "[data-testid=toast-body]", "exceed the maximum allowed size"),
    ):
        page.set_input_files("#photo input[type=file]", tmp_path / name)
        page.wait_for_selector(f"{where} >> text={text}")
        assert page.locator("#stage canvas").count() == 0
        if page.locator("#photo input[type=file]").count() == 0:
            page.click("#photo [aria-label=Clear]")
            page.wait_for_selector("#photo input[type=file]", state="attached")
    # A name of which neither the browser nor Python knows that it is an image.
    put(page, write_scene(tmp_path / "good.png", 3).rename(tmp_path / "good.MPO"), "")
    for words, text in (
        ("", "at least one word"),
        ("<img src=x onerror=alert(1)>\nbackground", "is the name of"),
        ("<img src=x>" * 30, "<img src=x>"),  # as text
    ):
        page.fill("#words textarea", words)
        page.click("#segment")
        page.wait_for_selector(f".message >> text={text}")
    page.fill("#words textarea", "<img src=x onerror=alert(1)>")
    with mock.patch.object(site.answers, "answer", side_effect=RuntimeError("/secret/path")):
        page.click("#segment")
        page.wait_for_selector(".message >> text=Something went wrong on the server")
    assert "secret" not in page.inner_text("body")
    page.click("#segment")
    wait_for_words(page)
    wait_for(page, page.locator(".message").is_visible, False)


def test_on_a_phone_in_the_dark(site: Site) -> None:
    page = site.open(PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.click("#examples button >> nth=2")
    wait_for_words(page)
    page.check("#baseline input")
    page.wait_for_selector(".panel >> nth=1 >> .share:not(:empty)")
    boxes = [canvas.bounding_box() for canvas in page.locator("#stage canvas").all()]
    assert len(boxes) == 2 and all(280 < box["width"] <= 390 for box in boxes)
    assert page.evaluate(fits)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert np.mean([int(n) for n in re.findall(r"\d+", background)[:3]]) < 60
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('input, textarea, button, img, canvas')]"
        ".filter((e) => e.checkVisibility() && !(e.ariaLabel || e.alt || e.title"
        " || e.innerText?.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []
