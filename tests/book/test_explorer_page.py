"""The explorers on a page without a kernel, in Chromium with the network cut: what they print, lit and do."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import address, expect_no_overflow, watched, watched_page
from explorer_page import settled, write_page
from playwright.sync_api import Browser, Locator, Page
from synthetic import names_of, rankings, synthetic

from selattn_lib.evaluation.scores import attention_ratio, iou, ious
from selattn_lib.explorers.aggregation import AggregationExplorer
from selattn_lib.explorers.diagnosis import DiagnosisExplorer
from selattn_lib.explorers.heads import HeadExplorer
from selattn_lib.explorers.view import METHODS
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.maps.head_sets import first_heads

LAYERS = [("down", 16), ("down", 8), ("mid", 4), ("up", 8), ("up", 16)]
SD14 = [("down", 64), ("down", 64), ("down", 32), ("down", 32), ("down", 16), ("down", 16), ("mid", 8)]
SD14 += [("up", side) for side in (16, 16, 16, 32, 32, 32, 64, 64, 64)]
MEANINGS = {"mouse": ["Animals", "Electronics"], "bat": ["Plants", "Electronics"]}
H = 40


@pytest.fixture(scope="module")
def explorers() -> dict[str, object]:
    maps = synthetic(LAYERS, 128, ["mouse", "bat"], 2)
    one = HeadMaps(maps.dataset.rename(truth_round="truth").drop_vars("truth_square"))
    orders, names = rankings(H), names_of(LAYERS)
    return {
        "aggregation": AggregationExplorer(one, orders, heads=names, k=12),
        "heads": HeadExplorer(maps, orders, heads=names, k=12),
        "diagnosis": DiagnosisExplorer(maps, orders, heads=names, k=12, concepts=MEANINGS),
    }


@pytest.fixture(scope="module")
def folder(explorers, tmp_path_factory) -> Path:
    return write_page(tmp_path_factory.mktemp("explorers"), list(explorers.values())).parent


@pytest.fixture(scope="module")
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """One page for all tests, since its start costs more than they do: each sets what it depends on."""
    with address(folder, "file") as root, browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        with watched_page(context, root) as page:
            page.goto(root + "index.html")
            wait_for_views(page, 3)
            yield page


def wait_for_views(page: Page, count: int) -> None:
    drawn = "count => document.querySelectorAll('.selattn-view[data-draw-ms]').length >= count"
    page.wait_for_function(drawn, arg=count, timeout=60_000)
    page.wait_for_selector(".noUi-handle[aria-label]", state="attached")


def box_of(page: Page, explorers: dict, kind: str) -> Locator:
    return page.locator(".selattn-explorer").nth(list(explorers).index(kind))


def slide(box: Locator, label: str, value: float, low: float, step: float) -> None:
    """Move a slider by the keyboard, from its low end: a page is five steps."""
    handle = box.locator(f'.noUi-handle[aria-label="{label}"]')
    pages, steps = divmod(round((value - low) / step), 5)
    for key in ["Home", *["PageUp"] * pages, *["ArrowRight"] * steps]:
        handle.press(key)


def choose(box: Locator, label: str, option: str) -> None:
    box.get_by_label(label, exact=True).select_option(label=option)


def lit(box: Locator) -> list[int]:
    """Positions of the heads lit on the grid, in its order."""
    script = "els => els.map(e => e.style.fillOpacity)"
    opacities = box.locator(".selattn-grid rect").evaluate_all(script)
    return [i for i, opacity in enumerate(opacities) if float(opacity) == 1]


def test_aggregation_reads_the_librarys_numbers(page: Page, explorers: dict) -> None:
    explorer, box = explorers["aggregation"], box_of(page, explorers, "aggregation")
    for word, image, concept, k, threshold in [
        ("mouse", 0, "Animals", 12, 0.4),
        ("mouse", 1, "Electronics", 3, 0.3),
        ("bat", 1, "Plants", 40, 0.5),
        ("bat", 0, "Animals", 1, 0.12),
    ]:
        explorer.word, explorer.image, explorer.concept = word, image, concept
        explorer.k, explorer.threshold = k, threshold
        for label, option in {"Word": word, "Image": f"picture {image + 1}", "Concept": concept}.items():
            choose(box, label, option)
        slide(box, "Heads k", k, 1, 1)
        slide(box, "Threshold", threshold, 0.05, 0.01)
        for method in METHODS:
            explorer.method = method
            choose(box, "Method", method)
            settled(box)
            expected = f"IoU {explorer.iou:.3f}, {explorer.mask.values.mean():.0%}".replace("%", " %")
            assert box.locator(".selattn-chosen figcaption").inner_text() == f"{expected} of the picture"
            all_heads = iou((explorer.heat_of("all") > threshold).values, explorer.item.truths["truth"])
            assert box.locator(".selattn-all figcaption").inner_text().startswith(f"IoU {all_heads:.3f},")
            gain = float(f"{explorer.iou:.3f}") - float(f"{all_heads:.3f}")
            said = re.search(r"difference (.)([\d.]+)", box.locator(".selattn-status").inner_text())
            assert float(said[2]) * (-1 if said[1] == "−" else 1) == pytest.approx(gain, abs=0.0011)
            assert lit(box) == sorted(explorer.heads)


def test_the_curve_over_k_and_its_marker(page: Page, explorers: dict) -> None:
    explorer, box = explorers["aggregation"], box_of(page, explorers, "aggregation")
    explorer.word, explorer.image, explorer.concept, explorer.method, explorer.threshold = (
        "mouse", 0, "Animals", "top k", 0.4,
    )  # fmt: skip
    for label, option in {"Word": "mouse", "Image": "picture 1", "Concept": "Animals", "Method": "top k"}.items():
        choose(box, label, option)
    slide(box, "Threshold", 0.4, 0.05, 0.01)
    settled(box)
    box.page.wait_for_function("[...document.querySelectorAll('.selattn-curve path')].every(p => p.getAttribute('d'))")
    paths = box.locator(".selattn-curve path").evaluate_all("els => els.map(e => e.getAttribute('d'))")
    item, order, every_k = explorer.item, explorer.rankings["Animals"], range(1, H + 1)
    maps = item.maps.with_pictures([item.picture], truth=item.truths["truth"][None])
    orders = (order, order[::-1], explorer.view.consensus[0], explorer.view.random_order)
    for path, heads in zip(paths, orders, strict=True):
        drawn = [(218 - float(y)) / 210 for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
        np.testing.assert_allclose(drawn, ious(maps, first_heads(heads, every_k), [0.4])[0, :, 0], atol=0.002)
    curve = box.locator(".selattn-curve")
    size = curve.bounding_box()
    curve.click(position={"x": size["width"] * (40 + 410 * 24 / 39) / 460, "y": size["height"] / 2})
    settled(box)
    assert box.locator(".widget-readout").first.inner_text() == "25"
    explorer.k = 25
    assert f"IoU {explorer.iou:.3f}" in box.locator(".selattn-chosen figcaption").inner_text()
    dot = box.locator(".selattn-dot")
    assert (218 - float(dot.get_attribute("cy"))) / 210 == pytest.approx(explorer.iou, abs=1e-3)


def pressed(box: Locator) -> list[int]:
    return [i for i, state in enumerate(tiles(box, "aria-pressed")) if state == "true"]


def tiles(box: Locator, attribute: str) -> list[str]:
    return box.locator(".selattn-tile").evaluate_all("(els, name) => els.map(e => e.getAttribute(name))", attribute)


def test_heads_are_picked_by_clicks_layers_resolutions_and_keys(page: Page, explorers: dict) -> None:
    explorer, box = explorers["heads"], box_of(page, explorers, "heads")

    def expect(heads: list[int]) -> None:
        settled(box)
        explorer.heads = heads
        assert pressed(box) == sorted(heads)
        numbers = [f"IoU with {n} {iou(explorer.mask.values, m):.3f}" for n, m in explorer.item.truths.items()]
        assert box.locator(".selattn-chosen figcaption").inner_text().startswith(", ".join(numbers))

    ranked = explorer.rankings["Animals"][:12].tolist()
    choose(box, "Rank by", "Animals")
    slide(box, "Heads k", 12, 1, 1)
    box.get_by_role("button", name="Top 12", exact=True).click()
    expect(ranked)
    tile = box.locator(".selattn-tile")
    tile.nth(ranked[0]).click()
    tile.nth(ranked[1]).click()
    free = next(head for head in range(H) if head not in ranked)
    tile.nth(free).click()
    expect([*ranked[2:], free])
    box.get_by_role("button", name="mid 0", exact=True).click()
    expect(list(range(16, 24)))
    box.get_by_role("button", name="8 × 8", exact=True).click()
    expect([*range(8, 16), *range(24, 32)])
    box.get_by_role("button", name="None", exact=True).click()
    expect([])
    tile.nth(9).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect([18])
    box.get_by_role("button", name="All", exact=True).click()
    expect(list(range(H)))
    slide(box, "Heads k", 3, 1, 1)
    expect(ranked[:3])


def test_a_head_says_what_it_sees_and_what_it_is_relevant_to(page: Page, explorers: dict) -> None:
    explorer, box = explorers["heads"], box_of(page, explorers, "heads")
    box.locator(".selattn-tile").nth(21).hover()
    settled(box)
    own = box.locator(".selattn-own")
    assert own.locator(".selattn-title").inner_text() == "mid 0, head 5"
    explorer.heads = [21]
    truths, heat = explorer.item.truths, explorer.heat.values
    ratios = {name: attention_ratio(heat, mask) for name, mask in truths.items()}
    text = own.locator("figcaption").inner_text()
    assert text.startswith("4 × 4, ")
    assert all(f"{ratio:.2f} × as strong on {name}" in text for name, ratio in ratios.items())
    ranks = sorted((int(np.flatnonzero(order == 21)[0]) + 1, name) for name, order in explorer.rankings.items())
    listed = own.locator("li").all_inner_texts()
    assert listed == [f"{name} rank {rank} of {H}" for rank, name in ranks]


def test_which_heads_see_a_meaning(page: Page, explorers: dict) -> None:
    """Ranked by attention, the first heads are named in words."""
    explorer, box = explorers["heads"], box_of(page, explorers, "heads")
    explorer.k, explorer.ranking, explorer.view.picked = 12, "attention on square", None
    slide(box, "Heads k", 12, 1, 1)
    choose(box, "Rank by", "attention on square")
    settled(box)
    first = [f"{LAYERS_OF[head // 8]}, head {head % 8}" for head in explorer.order[:5]]
    said = box.locator(".selattn-status").inner_text()
    assert f"Heads with most attention on square: {'; '.join(first)} … The first is " in said
    [ratio, last] = (attention_ratio(explorer.heat_of([head]).values, explorer.item.truths["square"])
                     for head in explorer.order[[0, 11]])  # fmt: skip
    assert f"The first is {ratio:.2f} × as strong there as elsewhere, the last of the 12 first {last:.2f} ×." in said
    assert pressed(box) == sorted(explorer.heads)


LAYERS_OF = ["down 0", "down 1", "mid 0", "up 0", "up 1"]


def test_diagnosis_compares_concepts(page: Page, explorers: dict) -> None:
    explorer, box = explorers["diagnosis"], box_of(page, explorers, "diagnosis")
    for word, other in (("mouse", None), ("bat", None), ("bat", "Animals")):
        choose(box, "Word", word)
        settled(box)
        concepts = [other or MEANINGS[word][0], MEANINGS[word][1]]
        if other:
            choose(box, "Concept 1", other)
            settled(box)
        explorer.word = word
        a, b = (explorer.heat_of(explorer.rankings[concept][:12]).values > 0.4 for concept in concepts)
        shared = len(set(explorer.rankings[concepts[0]][:12]) & set(explorer.rankings[concepts[1]][:12]))
        status = box.locator(".selattn-status").inner_text()
        expected = f"{' and '.join(concepts)}: {shared} heads shared, their masks overlap with IoU {iou(a, b):.3f}"
        assert status.startswith(f"“{word}”") and status.endswith(expected)
        for mask, caption in zip((a, b), box.locator(".selattn-chosen figcaption").all_inner_texts(), strict=True):
            numbers = [f"IoU with {name} {iou(mask, truth):.3f}" for name, truth in explorer.item.truths.items()]
            assert caption.startswith(", ".join(numbers))
        parts = {f"only {concepts[0]}": a & ~b, f"only {concepts[1]}": b & ~a, "both": a & b}
        said = box.locator(".selattn-overlap figcaption").inner_text()
        for name, mask in parts.items():
            assert abs(float(re.search(rf"{name} (\d+) %", said)[1]) - 100 * mask.mean()) <= 0.51
        assert len(lit(box)) == 24 - shared


def test_everything_has_a_name_and_takes_the_keyboard(page: Page, explorers: dict) -> None:
    nameless = """() => [...document.querySelectorAll(".selattn-explorer *")]
        .filter((e) => e.matches("canvas, svg, button, select, .noUi-handle"))
        .filter((e) => !e.closest("[aria-hidden=true]"))
        .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || (e.matches("button") && e.textContent)))
        .map((e) => e.outerHTML.slice(0, 200))"""
    page.wait_for_timeout(600)
    assert page.evaluate(nameless) == []
    assert page.locator(".noUi-handle").evaluate_all("els => els.every(e => e.tabIndex === 0)")
    for kind in explorers:  # one stop of the tab key for all tiles, from which arrows lead on
        stops = box_of(page, explorers, kind).locator(".selattn-tile[tabindex='0']").count()
        assert stops == (kind == "heads")


@pytest.fixture
def phone(page: Page) -> Iterator[Page]:
    expect_no_overflow(page)
    yield page
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("document.documentElement.dataset.theme = 'light'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_in_both_themes(phone: Page, explorers: dict, theme: str) -> None:
    page = phone
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    expect_no_overflow(page)
    colours = "e => [getComputedStyle(e).color, getComputedStyle(document.documentElement).backgroundColor]"
    ink, paper = page.locator(".selattn-status").first.evaluate(colours)
    luminance = [np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in (ink, paper)]
    assert abs(luminance[0] - luminance[1]) > 120
    for box in page.locator(".selattn-panel").all():
        assert box.bounding_box()["x"] + box.bounding_box()["width"] <= 390


@pytest.mark.parametrize("kind", ["aggregation", "heads", "diagnosis"])
def test_a_slider_step_with_maps_as_large_as_sd14s(
    tab: Page, tmp_path: Path, record_property: Callable[[str, object], None], kind: str
) -> None:
    """The numbers are those of every pixel, though fewer are drawn. How long a step takes to draw is printed: 16 ms is
    what is wanted of a quiet machine."""
    maps = synthetic(SD14, 512, ["mouse"], 1)
    explorers = {"aggregation": AggregationExplorer, "heads": HeadExplorer, "diagnosis": DiagnosisExplorer}
    concepts = {"concepts": MEANINGS} if kind == "diagnosis" else {}
    explorer = explorers[kind](maps, rankings(128), heads=names_of(SD14), k=30, **concepts)
    write_page(tmp_path, [explorer])
    assert len(explorer.view.maps) == 2 * 215_552
    with address(tmp_path, "file") as root, watched(tab, root) as page:
        page.goto(root + "index.html")
        wait_for_views(page, 1)
        times = []
        for label in ("Heads k", "Threshold"):
            for key in [*["ArrowLeft"] * 5, "PageDown"]:  # ten steps
                page.locator(f'.noUi-handle[aria-label="{label}"]').press(key)
                settled(page.locator("body"))
                times.append(float(page.locator(".selattn-view").get_attribute("data-draw-ms")))
        heat = explorer.heat_of(explorer.rankings["Animals"][:20]).values
        said = page.locator(".selattn-chosen figcaption").first.inner_text()
    expected = [f"IoU with {name} {iou(heat > 0.3, truth):.3f}" for name, truth in explorer.item.truths.items()]
    assert said.startswith(", ".join(expected))
    record_property("milliseconds of each step", sorted(times))
    print("milliseconds of each step:", sorted(times))
