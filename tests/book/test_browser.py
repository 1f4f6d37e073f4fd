"""The book in Chromium with the network cut, from files, and a page of each kind over http:// too."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chromium import address, expect_accessible, expect_no_overflow, watched, watched_page
from explorer_page import settled
from playwright.sync_api import Browser, Page, Request
from test_book import ROOT, pages

from selattn_lib.explorers.items import unpacked
from selattn_lib.publishing.build import build_book

PROSE = [page for page in pages() if page.startswith("book/")]
CHAPTERS = [page for page in pages() if page.startswith("notebooks/")]
EXPLORED = ["book/intro", *(page for page in CHAPTERS if page < "notebooks/07")]  # those with explorers
EVERY = [*PROSE, "search", *CHAPTERS]
FRONT = {"book/intro": "index"}  # what leads to a page


@dataclass
class Opened:
    """A page of the book, and the scripts that it asked for until all was drawn."""

    name: str
    page: Page
    read: list[str]


@pytest.fixture(scope="module")
def root(book: Path) -> Iterator[str]:
    """Address of the book, ending in a slash."""
    with address(book, "file") as root:
        yield root


@pytest.fixture(scope="module")
def web(book: Path) -> Iterator[str]:
    """The same over http."""
    with address(book, "http") as root:
        yield root


@pytest.fixture(scope="module")
def plain_tab(browser: Browser) -> Iterator[Page]:
    """One without scripts."""
    with browser.new_context(java_script_enabled=False) as context, context.new_page() as page:
        yield page


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest, tab: Page, root: str) -> Iterator[Opened]:
    """A page, opened once for the tests that follow each other on it: the later ones move sliders, then change the
    theme and the page's width. The first page is opened by its front door."""
    tab.set_viewport_size({"width": 1280, "height": 900})
    read: list[Request] = []

    def note(sent: Request) -> None:
        read.append(sent)

    with watched(tab, root) as page:
        page.on("request", note)
        open_page(page, root, request.param)
        page.remove_listener("request", note)
        yield Opened(request.param, page, [sent.url for sent in read if re.search(r"\.js(\?|$)", sent.url)])


def open_page(page: Page, root: str, name: str) -> None:
    """Go there, to the first page by the front door, and wait until every widget and figure is drawn."""
    page.goto(f"{root}{FRONT.get(name, name)}.html", timeout=60_000)
    page.wait_for_url(f"{root}{name}.html")
    for there, drawn in {
        'script[type="application/vnd.jupyter.widget-view+json"]': ".widget-subarea > *",
        ".plotly-figure": ".plotly-figure .main-svg:first-child",
    }.items():
        count = page.locator(there).count()
        page.wait_for_function(
            "([drawn, count]) => document.querySelectorAll(drawn).length >= count",
            arg=[drawn, count],
            timeout=60_000,
        )


@pytest.mark.parametrize("name", ["book/intro", "book/method", CHAPTERS[0], "search"])
def test_a_page_loads_over_http(tab: Page, web: str, name: str) -> None:
    with watched(tab, web) as page:
        open_page(page, web, name)


@pytest.mark.parametrize("opened", ["notebooks/01_head_relevance"], indirect=True)
def test_the_fonts_of_the_widgets_are_where_they_are_looked_for(opened: Opened, book: Path) -> None:
    sheets = "[...document.styleSheets].filter(sheet => !sheet.href)"  # those that the widgets bring
    rules = opened.page.evaluate(f"{sheets}.flatMap(sheet => [...sheet.cssRules]).map(rule => rule.cssText).join()")
    fonts = re.findall(r"/(vendor/@jupyter-widgets/[\w./-]+\.woff2)", rules)
    assert fonts
    assert all((book / "_static" / font).exists() for font in fonts)


def explorer_views(html: str) -> list[dict[str, Any]]:
    """The state of each explorer of a page, in the order of the page."""
    state = json.loads(re.search(r'widget-state\+json">(.*?)</script>', html, re.S)[1])["state"]
    shown = re.findall(r'widget-view\+json">(.*?)</script>', html, re.S)
    boxes = [state[json.loads(text)["model_id"]]["state"] for text in shown]
    boxes = [box for box in boxes if "selattn-explorer" in box.get("_dom_classes", [])]
    views = [state[box["children"][1].removeprefix("IPY_MODEL_")] for box in boxes]
    return [
        {**view["state"], **{buffer["path"][0]: base64.b64decode(buffer["data"]) for buffer in view["buffers"]}}
        for view in views
    ]


@pytest.mark.parametrize("opened", [*CHAPTERS, "book/intro", "book/gallery"], indirect=True)
def test_a_page_is_light_and_reads_each_shared_script_once(opened: Opened, book: Path) -> None:
    named = opened.page.evaluate("[...document.scripts].map((script) => script.src).filter((address) => address)")
    for scripts in (named, opened.read):
        assert len(scripts) == len(set(scripts)) > 5
    text = (book / f"{opened.name}.html").read_text()
    pictures = [book / "_images" / picture for picture in set(re.findall(r"_images/([\w.-]+)", text))]
    assert len(text.encode()) + sum(picture.stat().st_size for picture in pictures) < 4_000_000


@pytest.mark.parametrize("opened", EXPLORED, indirect=True)
def test_the_explorers_of_a_chapter_read_the_librarys_numbers(opened: Opened, book: Path) -> None:
    """What stands below the map of all heads, against the library on the maps that the page holds."""
    page = opened.page
    views = explorer_views((book / f"{opened.name}.html").read_text())
    page.wait_for_function(
        "count => document.querySelectorAll('.selattn-view[data-draw-ms]').length >= count", arg=len(views)
    )
    boxes = page.locator(".selattn-explorer")
    assert len(views) == boxes.count() > 0
    for i, view in enumerate(views):
        size = view["height"], view["width"]
        [maps, *_] = unpacked(view["maps"], view["grids"], [item["shift"] for item in view["items"]], size)
        share = (maps.heatmap(0, "all").values > view["threshold"]).mean()
        said = boxes.nth(i).locator(".selattn-all figcaption").inner_text()
        assert f"{100 * share:.0f} % of the picture" in said
        if view["kind"] == "aggregation":
            assert f" heads for {view['concepts'][view['concept_0']]}, " in boxes.nth(i).inner_text()


@pytest.mark.parametrize("opened", EXPLORED, indirect=True)
def test_a_slider_changes_words_and_pictures(opened: Opened) -> None:
    explorer = opened.page.locator(".widget-subarea").first
    handle = explorer.locator(".noUi-handle").first
    canvas = "el => [...el.querySelectorAll('canvas')].map(c => c.toDataURL()).join()"
    settled(explorer)
    words, pictures = explorer.inner_text(), explorer.evaluate(canvas)
    handle.focus()
    for _ in range(5):
        opened.page.keyboard.press("ArrowLeft")
    settled(explorer)
    assert explorer.inner_text() != words
    assert explorer.evaluate(canvas) != pictures


@pytest.mark.parametrize("opened", ["notebooks/14_planted_heads"], indirect=True)
def test_an_explorer_is_switched_to_another_model_and_keeps_its_settings(opened: Opened) -> None:
    page = opened.page
    explorer = page.locator(".selattn-explorer")
    settled(explorer)
    explorer.get_by_label("Image", exact=True).select_option(label="seed 1")
    explorer.get_by_label("Concept 2", exact=True).select_option(label="Tools")
    settled(explorer)
    natural = explorer.inner_text()
    page.get_by_label("Model", exact=True).select_option(label="emoji-control")
    page.wait_for_function("before => document.querySelector('.selattn-explorer').innerText !== before", arg=natural)
    settled(explorer)
    assert explorer.count() == 1
    assert "seed 1" in explorer.locator(".selattn-picture").inner_text()
    assert explorer.get_by_label("Concept 2", exact=True).locator("option:checked").inner_text() == "Tools"


@pytest.mark.parametrize("opened", ["notebooks/01_head_relevance"], indirect=True)
def test_head_relevance_can_be_sorted(opened: Opened) -> None:
    page = opened.page
    figure = page.locator(".plotly-figure").first
    order = "e => e.querySelector('.plotly-canvas').layout.xaxis.categoryarray.join()"
    before = figure.evaluate(order)
    figure.locator(".updatemenu-header").nth(0).click(force=True)
    page.locator(".updatemenu-dropdown-button").nth(3).click(force=True)
    handle = figure.element_handle()
    page.wait_for_function(f"([figure, before]) => ({order})(figure) !== before", arg=[handle, before])
    after = figure.evaluate(order)
    assert sorted(after.split(",")) == sorted(before.split(","))


@pytest.mark.parametrize("opened", [*PROSE, "search"], indirect=True)
def test_the_formulas_of_a_page_are_set(opened: Opened) -> None:
    count = "selector => document.querySelectorAll(selector).length"
    opened.page.wait_for_function(f"({count})('.math') == ({count})('mjx-container')")
    assert opened.page.locator("mjx-merror").count() == 0


@pytest.mark.parametrize("opened", EVERY, indirect=True)
def test_a_page_is_accessible(opened: Opened) -> None:
    for explorer in opened.page.locator(".selattn-explorer").all():
        settled(explorer)
    expect_accessible(opened.page)


@pytest.mark.parametrize("opened", CHAPTERS, indirect=True)
def test_a_chapter_has_figures_in_both_themes(opened: Opened) -> None:
    page = opened.page
    assert page.locator(".plotly-figure .main-svg").count() > 0
    assert all(page.locator(".plotly-figure").evaluate_all("figures => figures.map(figure => figure.ariaLabel)"))
    colour = "getComputedStyle(document.querySelector('.plotly-figure text')).fill"
    before = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"before => {colour} !== before", arg=before)


@pytest.mark.parametrize(
    "opened", ["book/intro", "book/method", "book/claims", "book/gallery", "notebooks/02_segmentation"], indirect=True
)
def test_a_page_is_as_accessible_in_the_dark(opened: Opened) -> None:
    opened.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    for explorer in opened.page.locator(".selattn-explorer").all():
        settled(explorer)
    expect_accessible(opened.page)


@pytest.mark.parametrize("opened", EVERY, indirect=True)
def test_a_page_and_the_titles_of_its_figures_fit_a_phone(opened: Opened) -> None:
    expect_no_overflow(opened.page)
    opened.page.wait_for_function(
        """() => [...document.querySelectorAll(".plotly-figure :is(.gtitle, .xtitle)")].every((title) => {
            const [text, room] = [title, title.closest(".main-svg")].map((each) => each.getBoundingClientRect());
            return room.width < 390 && text.left >= room.left && text.right <= room.right;
        })"""
    )


@pytest.mark.parametrize("name", EXPLORED)
def test_without_scripts_a_picture_and_its_numbers_stand_there(
    plain_tab: Page, root: str, book: Path, name: str
) -> None:
    plain_tab.goto(f"{root}{name}.html")
    stills = plain_tab.locator("noscript figure")
    views = explorer_views((book / f"{name}.html").read_text())
    assert stills.count() >= 3 * len(views)
    assert stills.first.is_visible()
    assert re.search(r"\d+% of the picture", " ".join(stills.all_inner_texts()))


def test_the_printed_book_has_every_figure_and_a_still_of_every_explorer(browser: Browser, book: Path) -> None:
    index = build_book(ROOT, ROOT / "notebooks", book.parents[1], "singlehtml", fresh=False)
    notebooks = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    context = browser.new_context()
    with watched_page(context, root := f"{index.parent.as_uri()}/") as page:
        open_page(page, root, "index")
        assert page.locator(".plotly-figure").count() == notebooks.count('vnd.plotly.v1+json": {')
        stills = notebooks.count("<noscript>") + 1  # that of the first page
        assert page.get_by_text("White line: edge of the mask.").count() == stills
        assert page.locator('[id="document-notebooks/06_emoji_sd"]').count() == 1
        there = "links => links.map((link) => !!document.getElementById(link.getAttribute('href').slice(1)))"
        found = page.locator("ul.gallery a").evaluate_all(there)
        assert len(found) > 30 and all(found)
        assert page.locator("details.settings:not([open])").count() > 10
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details.settings:not([open])").count() == 0, "nothing can be unfolded on paper"
        assert page.locator(".plotly-figure").evaluate_all("all => all.every(figure => figure.scrollWidth <= 680)")
    context.close()
