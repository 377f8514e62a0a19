"""The page in a real browser: Chromium without a window."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tcl_jax.demo.answers import BASELINE, Answer, Answers, Limits, Question
from tcl_jax.demo.server import serving
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
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.address)
        # Gradio fetches the code of each kind of control on its own.
        controls = ("words textarea", "threshold input", "opacity input", "background input")
        for part in ("photo input", "examples button", "stage .hint", "pamr input", *controls):
            page.wait_for_selector(f"#{part}", state="attached")
        return page


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    from tcl_jax.demo.page import build_page

    answers = Answers(random_tcl(), limits=Limits(max_megabytes=1.0, max_megapixels=0.15))
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


@pytest.fixture(autouse=True)
def nothing_is_asked_of_other_hosts(site: Site) -> Iterator[None]:
    """In every test."""
    site.requests.clear()
    yield
    foreign = [u for u in site.requests if not re.match(rf"{site.address}/|data:|blob:", u)]
    assert len(site.requests) > 5 and foreign == []
    assert site.errors == []


def put(page: Any, photo: Path, words: str) -> None:
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#stage canvas[aria-label*='without masks']")
    page.fill("#words textarea", words)


def shares(page: Any, panel: int = 0) -> dict[str, str]:
    """The legend: share by name, as it is shown."""
    page.wait_for_selector(f".panel >> nth={panel} >> .share:not(:empty)")
    legend = page.locator(".panel").nth(panel).locator("li:visible")
    lines = [text.split("\n") for text in legend.all_inner_texts()]
    # A name that is being drawn again has no share yet.
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[1]}


def expected(
    answers: Answers,
    photo: Path,
    words: str,
    threshold: float | None,
    method: str = "tcl",
    *,
    pamr: bool = False,
) -> dict[str, str]:
    """The same, of the package."""
    question = answers.question(photo, words, pamr=pamr, baseline=True)
    result = answers.segmentation(question, method, threshold)
    return {name: f"{100 * share:.1f} %" for name, share in result.fractions.items()}


def wait_for_shares(page: Any, wanted: dict[str, str], panel: int = 0) -> None:
    for _ in range(60):
        if shares(page, panel) == wanted:
            return
        page.wait_for_timeout(50)
    assert shares(page, panel) == wanted


def wait_for_names(page: Any, wanted: set[str]) -> None:
    for _ in range(60):
        if set(shares(page)) == wanted:
            return
        page.wait_for_timeout(50)
    assert set(shares(page)) == wanted


def wait_for_example(page: Any) -> None:
    """Its words come into the page before its masks."""
    shares(page)
    wait_for_names(page, {*page.input_value("#words textarea").split("\n"), "background"})


class Held:
    """Answers that wait until `go`; `begun` when one is asked for, `made` when one is there."""

    def __init__(self) -> None:
        self.begun, self.go, self.made = threading.Event(), threading.Event(), threading.Event()


@contextlib.contextmanager
def held_back(answers: Answers) -> Iterator[Held]:
    held, answer = Held(), answers.answer

    def late(question: Question) -> Answer:
        held.begun.set()
        assert held.go.wait(60)
        made = answer(question)
        held.made.set()
        return made

    with mock.patch.object(answers, "answer", late):
        try:
            yield held
        finally:
            held.go.set()


def pixels(page: Any) -> np.ndarray:
    """What the stage shows, [h, w, 3]."""
    made = page.evaluate(
        "() => { const c = document.querySelector('#stage canvas');"
        "return [c.height, c.width, Array.from("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; }"
    )
    return np.array(made[2], np.uint8).reshape(made[0], made[1], 4)[..., :3]


def test_upload_type_segment_and_move_the_sliders(site: Site, tmp_path: Path) -> None:
    photo, words = write_scene(tmp_path / "scene.png", 5), "\n".join(WORDS)
    page = site.open()
    put(page, photo, words)
    assert page.is_disabled("#download")
    runs = site.answers.model_runs
    page.click("#segment")
    wait_for_shares(page, expected(site.answers, photo, words, 0.3))
    assert site.answers.model_runs == runs + 1
    assert set(shares(page)) == {*WORDS, "background"}
    assert sum(float(share.rstrip(" %")) > 1 for share in shares(page).values()) >= 3

    # From here on everything is drawn from what the page has.
    asked = len(site.requests)
    for threshold in (0.1, 0.55, 0.31):
        page.fill("#threshold input[type=number]", str(threshold))
        page.keyboard.press("Tab")
        wait_for_shares(page, expected(site.answers, photo, words, threshold))
    page.locator("#threshold input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_shares(page, expected(site.answers, photo, words, 0.32))
    page.uncheck("#background input")
    wait_for_shares(page, expected(site.answers, photo, words, None))
    page.wait_for_timeout(100)
    question = site.answers.question(photo, words, pamr=False, baseline=False)
    result = site.answers.segmentation(question, "tcl", None)
    # The photo travels as a JPEG.
    assert np.abs(pixels(page).astype(int) - result.overlay(0.6)).mean() < 4
    page.fill("#opacity input[type=number]", "1")
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)
    np.testing.assert_array_equal(pixels(page), result.overlay(1.0))
    assert site.answers.model_runs == runs + 1
    assert [url for url in site.requests[asked:] if "queue/join" in url] == []

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    with page.expect_download() as coming:
        page.click("#download button, button#download")
    coming.value.save_as(tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert "scene_labels.png" in archive.namelist() and len(archive.namelist()) == 5
    assert coming.value.suggested_filename == "scene_masks.zip"
    page.context.close()


def test_controls_that_are_moved_while_an_answer_is_made(site: Site, tmp_path: Path) -> None:
    photo, words = write_scene(tmp_path / "scene.png", 5), "\n".join(WORDS)
    page = site.open()
    put(page, photo, words)
    page.fill("#threshold input[type=number]", "0.1")
    page.keyboard.press("Tab")
    with held_back(site.answers) as held:
        page.click("#segment")
        assert held.begun.wait(60)
        page.fill("#threshold input[type=number]", "0.55")
        page.keyboard.press("Tab")
        page.fill("#opacity input[type=number]", "1")
        page.keyboard.press("Tab")
    wait_for_shares(page, expected(site.answers, photo, words, 0.55))
    question = site.answers.question(photo, words, pamr=False, baseline=False)
    marked = site.answers.segmentation(question, "tcl", 0.55)
    tinted = marked.labels > 0
    assert tinted.any()
    np.testing.assert_array_equal(pixels(page)[tinted], marked.overlay(1.0)[tinted])
    with held_back(site.answers) as held:
        page.check("#baseline input")
        assert held.begun.wait(60)
        page.uncheck("#background input")
    page.wait_for_selector(".panel >> nth=1")
    for panel, method in enumerate(("tcl", BASELINE)):
        wait_for_shares(page, expected(site.answers, photo, words, None, method), panel)
    page.context.close()


def test_an_answer_about_the_photo_before_is_dropped(site: Site, tmp_path: Path) -> None:
    first, second = (write_scene(tmp_path / f"scene{i}.png", i) for i in (5, 6))
    words = "\n".join(WORDS)
    page = site.open()
    put(page, first, words)
    with held_back(site.answers) as held:
        page.click("#segment")
        assert held.begun.wait(60)
        page.click("#photo [aria-label=Clear]")
        page.wait_for_selector("#photo input[type=file]", state="attached")
        put(page, second, words)
    assert held.made.wait(60)
    page.wait_for_timeout(1000)
    assert page.get_attribute("#stage canvas", "aria-label") == "The photo, without masks"
    assert page.is_disabled("#download")
    page.click("#segment")
    wait_for_shares(page, expected(site.answers, second, words, 0.3))
    with page.expect_download() as coming:
        page.click("#download button, button#download")
    assert coming.value.suggested_filename == "scene6_masks.zip"
    page.context.close()


def test_the_example_that_was_chosen_last_is_shown(site: Site) -> None:
    page = site.open()
    with held_back(site.answers) as held:
        page.click("#examples button >> nth=0")
        assert held.begun.wait(60)
        before = page.input_value("#words textarea")
        page.click("#examples button >> nth=1")
        page.wait_for_function(
            "before => document.querySelector('#words textarea').value !== before", arg=before
        )
    wait_for_example(page)
    page.context.close()


def test_reading_a_point_by_mouse_and_keyboard(site: Site, tmp_path: Path) -> None:
    photo, words = write_scene(tmp_path / "scene.png", 5), "\n".join(WORDS)
    page = site.open()
    put(page, photo, words)
    page.click("#segment")
    shares(page)
    canvas, reading = page.locator("#stage canvas"), page.locator("#stage .reading")
    question = site.answers.question(photo, words, pamr=False, baseline=False)
    result = site.answers.segmentation(question, "tcl", 0.3)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def said(x: int, y: int) -> str:
        score, name = result.masks[y, x].max(), result.names[result.labels[y, x]]
        best = result.texts[int(result.masks[y, x].argmax())]
        sure = re.escape(f"{name}\n{best} has " if name == "background" else f"{name}\n")
        return f"{sure}({int(100 * score)}|{int(100 * score) + 1}) %"

    for x, y in ((10, 20), (48, 48), (80, 60)):
        at = ((n + 0.5) / 96 * box[side] for n, side in ((x, "width"), (y, "height")))
        page.mouse.move(*(start + d for start, d in zip((box["x"], box["y"]), at, strict=True)))
        assert re.fullmatch(said(x, y), reading.inner_text())
    page.mouse.move(1, 1)
    assert not reading.is_visible()
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    assert reading.is_visible() and re.fullmatch(said(46, 48), reading.inner_text())
    page.keyboard.press("Escape")
    assert not reading.is_visible()
    # A name of the legend stands out when it is chosen.
    before = pixels(page)
    page.locator(".chip").first.click()
    page.wait_for_timeout(200)
    assert page.locator(".chip").first.get_attribute("aria-pressed") == "true"
    assert np.abs(pixels(page).astype(int) - before).max() > 20
    page.context.close()


def test_bad_uploads_are_told_in_the_page(site: Site, tmp_path: Path) -> None:
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
    assert not page.locator(".message").is_visible()
    page.click("#segment")
    page.wait_for_selector(".message >> text=at least one word")
    page.fill("#words textarea", "<img src=x onerror=alert(1)>\nbackground")
    page.click("#segment")
    page.wait_for_selector(".message >> text=what pixels are called")
    page.fill("#words textarea", "<img src=x onerror=alert(1)>")
    page.click("#segment")
    wait_for_names(page, {"<img src=x onerror=alert(1)>", "background"})
    assert not page.locator(".message").is_visible()
    page.context.close()


def test_two_users_at_once(site: Site, tmp_path: Path) -> None:
    texts = ("plain red\nplain green", "dotted purple\nchecked orange\nstriped yellow")
    photos = [write_scene(tmp_path / f"user{i}.png", 4 + i) for i in range(2)]
    pages = [site.open() for _ in photos]
    for page, photo, text in zip(pages, photos, texts, strict=True):
        put(page, photo, text)
    for page in pages:
        page.click("#segment")
    for page, photo, text in zip(pages, photos, texts, strict=True):
        wait_for_names(page, {*text.split("\n"), "background"})
        wait_for_shares(page, expected(site.answers, photo, text, 0.3))
    # What one of them does is nothing to the other.
    pages[0].check("#baseline input")
    pages[0].wait_for_selector(".panel >> nth=1")
    pages[0].fill("#baseline-threshold input[type=number]", "0.45")
    pages[0].keyboard.press("Tab")
    wait_for_shares(pages[0], expected(site.answers, photos[0], texts[0], 0.45, BASELINE), 1)
    assert shares(pages[0]) == expected(site.answers, photos[0], texts[0], 0.3)
    assert pages[1].locator(".panel").count() == 1
    assert shares(pages[1]) == expected(site.answers, photos[1], texts[1], 0.3)
    for page in pages:
        page.context.close()


def test_examples_outlive_the_cleaning(site: Site) -> None:
    from gradio.route_utils import delete_files_created_by_app

    for _ in range(2):
        page = site.open()  # a new one, on which no example is shown yet
        page.click("#examples button >> nth=0")
        wait_for_example(page)
        delete_files_created_by_app(site.blocks[0], age=None)
    # What is on the page is only a copy, and that is gone.
    page.fill("#words textarea", "something else")
    page.click("#segment")
    page.wait_for_selector(".message >> text=upload it again")
    page.context.close()


def test_a_switch_of_the_masks_asks_again(site: Site, tmp_path: Path) -> None:
    photo, words = write_scene(tmp_path / "scene.png", 5), "\n".join(WORDS)
    page = site.open()
    put(page, photo, words)
    page.check("#pamr input")
    page.uncheck("#pamr input")
    page.click("#segment")
    wait_for_shares(page, expected(site.answers, photo, words, 0.3))
    runs = site.answers.model_runs
    page.check("#pamr input")
    wait_for_shares(page, expected(site.answers, photo, words, 0.3, pamr=True))
    assert site.answers.model_runs == runs + 1
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(site: Site, scheme: str) -> None:
    page = site.open(PHONE, color_scheme=scheme, has_touch=True, is_mobile=True)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.click("#examples button >> nth=2")
    wait_for_example(page)
    page.check("#baseline input")
    page.wait_for_selector(".panel >> nth=1")
    shares(page, 1)
    boxes = [canvas.bounding_box() for canvas in page.locator("#stage canvas").all()]
    assert len(boxes) == 2 and all(box["width"] > 280 for box in boxes)
    assert page.evaluate(fits)
    assert page.locator(".frame").nth(0).bounding_box()["width"] <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(n) for n in re.findall(r"\d+", background)[:3]])
    assert light > 200 if scheme == "light" else light < 60
    page.context.close()


def test_every_control_has_a_name(site: Site) -> None:
    page = site.open()
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('input, textarea, button, img, canvas')]"
        ".filter((e) => e.checkVisibility() && !(e.ariaLabel || e.alt || e.title"
        " || e.innerText?.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []
    for label in ("Words, one per line", "Background", "Refine edges (PAMR)"):
        named = f"e => e.labels?.[0]?.innerText.includes({label!r})"
        assert page.evaluate(f"[...document.querySelectorAll('input, textarea')].some({named})")
    page.context.close()
