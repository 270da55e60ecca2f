"""The page in a real Chromium: nothing is fetched, nothing fails, and what people touch works.

Needs the Python package playwright (it is in the extra `test`) and a Chromium of the system (Debian: apt-get install
chromium); no browser is downloaded.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_runs import detected, finetuned, pictured, pretrained

from boxless.evaluation.matching import match
from boxless.report.build import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'boxless[test]'")
BROWSER = os.environ.get("BOXLESS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no Chromium: apt-get install chromium, or set BOXLESS_CHROMIUM", allow_module_level=True)

SECONDS = 120
"""A machine that tests on all cores is slow to draw."""
CLASSES = ("cat", "dog", "cow")
LOSSES = [4 * 0.9**n + 0.1 * (n % 2) for n in range(80)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page of two fine-tunings with detections and pictures and of a pretraining; what was found by the second."""
    folder = tmp_path_factory.mktemp("report")
    images = pictured(folder / "images", 5)
    runs, found = [], None
    for seed in range(2):
        run = finetuned(folder / f"run{seed}", dict.fromkeys(CLASSES, 0.2 + seed / 10), seed, loss=LOSSES)
        found = detected(run, images, CLASSES, seed)
        runs.append(run)
    pictured(runs[0] / "figures", 1)[0].rename(runs[0] / "figures" / "curves.png")
    runs.append(pretrained(folder / "soco", LOSSES))
    return write_report([str(run) for run in runs], folder / "report.html"), found


@pytest.fixture
def page(browser: Any, report: Any) -> Iterator[Any]:
    """The page, opened from its file; fails where it says anything on the console or asks for anything."""
    size = {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(1000 * SECONDS)
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url))
    opened.goto(f"file://{report[0]}")
    yield opened
    assert {text for text in complaints if not text.startswith("data:")} == {f"file://{report[0]}"}
    context.close()


def counts(page: Any) -> dict[str, int]:
    """What the gallery says that it shows."""
    text = page.locator("#gallery-count").inner_text()
    numbers = re.findall(r"(\d+) (correct|wrong class|extra|missing)", text)
    return {kind: int(number) for number, kind in numbers}


def expected(found: Any, score: float) -> dict[str, int]:
    data, detections = found
    numbers: dict[str, int] = {}
    for image, each in zip(data.images, detections, strict=True):
        matched = match(image, each, score)
        for kind in [*matched.outcomes, *["missing"] * len(matched.missing)]:
            if kind != "ignored":
                numbers[kind] = numbers.get(kind, 0) + 1
    return numbers


def test_filters_show_what_the_matching_says(page: Any, report: Any) -> None:
    page.select_option("select[name=run]", label="run1")
    for percent in (10, 40, 80):
        page.locator("input[name=score]").fill(str(percent))
        assert counts(page) == expected(report[1], percent / 100)
    page.locator("input[name=score]").fill("40")
    shown = counts(page)
    for kind in ("correct", "extra", "missing"):
        page.get_by_role("checkbox", name=kind).uncheck()
    assert counts(page) == {"wrong class": shown["wrong class"]}
    page.get_by_role("checkbox", name="missing").check()
    page.select_option("select[name=class]", label="cow")
    labels = page.locator("#gallery img").evaluate_all("images => images.map((image) => image.alt)")
    assert labels and all("cow" in text and "extra" not in text for text in labels)


def test_the_keyboard_steps_through_the_images(page: Any) -> None:
    first = page.locator("#gallery button").first
    first.focus()
    page.keyboard.press("Enter")
    title = page.locator("#viewer-title")
    assert title.inner_text() == "0.jpg, 1 of 5"
    for key, said in (("ArrowRight", "1.jpg, 2 of 5"), ("ArrowLeft", "0.jpg, 1 of 5"), ("ArrowLeft", "4.jpg, 5 of 5")):
        page.keyboard.press(key)
        assert title.inner_text() == said
    assert "4.jpg with detections" in page.locator("#viewer-found img").get_attribute("alt")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").evaluate("dialog => dialog.open")
    assert page.evaluate("document.activeElement.textContent").startswith("4.jpg")


def test_curves_zoom_and_tell_values(page: Any) -> None:
    chart = page.locator(".group", has_text="Pretraining").locator(".chart", has_text="loss").first
    plot, readout, back = chart.locator(".plot"), chart.locator(".readout"), chart.locator(".reset")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 52, box["y"] + 60)
    assert readout.inner_text() == f"step 9 {LOSSES[0]:.4g}"
    assert back.is_hidden()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 60)
    page.mouse.up()
    ticks = [float(text) for text in chart.locator("text[text-anchor=middle]").all_text_contents()]
    assert back.is_visible() and min(ticks) > 300 and max(ticks) < 650
    page.mouse.dblclick(box["x"] + 100, box["y"] + 60)
    assert back.is_hidden()
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() == f"step 19 {LOSSES[1]:.4g}"
    page.keyboard.press("+")
    assert back.is_visible()
    page.keyboard.press("0")
    assert back.is_hidden()


def test_both_themes_can_be_read(page: Any) -> None:
    """Text against what lies behind it: 4.5 to 1, as WCAG 2.2 asks; curves 3 to 1."""
    for theme in ("light", "dark"):
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        pairs = [("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("link", "card")]
        pairs += [(name, f"{name}-back") for name in ("good", "note", "warn", "bad")]
        curves = [(f"s{number}", "card") for number in range(8)]
        for pair in pairs + curves:
            ink, paper = (colour(page, name) for name in pair)
            bright, dark = max(ink, paper), min(ink, paper)
            assert (bright + 0.05) / (dark + 0.05) >= (3 if pair in curves else 4.5), (theme, pair)
        page.get_by_role("button", name="Switch between light and dark").click()
    page.get_by_role("button", name="Switch between light and dark").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"  # remembered


def colour(page: Any, name: str) -> float:
    """A colour's relative luminance."""
    text = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    values = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('.chart').length") > 0


def test_everything_has_a_name(page: Any) -> None:
    assert page.locator("#gallery img[alt=''], .pictures img[alt='']").count() == 0
    unnamed = """[...document.querySelectorAll('button, select, input, [tabindex="0"]')].filter((each) =>
        !(each.getAttribute('aria-label') || each.textContent.trim() || each.labels?.length)).length"""
    assert page.evaluate(unnamed) == 0
    page.locator(".enlarge").first.click()
    assert page.locator("#enlarged").evaluate("dialog => dialog.open")
    page.keyboard.press("Escape")


def test_a_run_that_lasts_refreshes_the_page(browser: Any, tmp_path: Path) -> None:
    from threading import Thread

    from boxless.report.serve import make_server

    run = pretrained(tmp_path / "run", LOSSES)
    (run / "summary.json").rename(tmp_path / "kept.json")
    (run / "progress.json").write_text(json.dumps({"step": 800, "total": 1000, "status": "healthy"}))
    with make_server([str(run)], 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        opened = browser.new_page()
        opened.set_default_timeout(1000 * SECONDS)
        opened.goto(f"http://127.0.0.1:{server.server_port}/")
        assert "not finished" in opened.locator(".verdict").inner_text()
        (tmp_path / "kept.json").rename(run / "summary.json")
        playwright.expect(opened.locator(".verdict")).to_contain_text("images still differ", timeout=1000 * SECONDS)
        opened.close()
        server.shutdown()
