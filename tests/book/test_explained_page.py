"""The page of `selattn explain`, opened as a file in Chromium with the network cut."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import address, expect_no_overflow, watched_page
from explorer_page import settled
from playwright.sync_api import Browser, Page
from synthetic import names_of, rankings, synthetic

from selattn_lib import cli
from selattn_lib.evaluation.scores import iou
from selattn_lib.explorers.aggregation import AggregationExplorer
from selattn_lib.explorers.diagnosis import DiagnosisExplorer
from selattn_lib.explorers.heads import HeadExplorer
from selattn_lib.maps.head_maps import HeadMaps

LAYERS = [("down", 16), ("mid", 4), ("up", 16)]
PIXELS = "canvas => canvas.toDataURL()"


def opened(browser: Browser, folder: Path, scheme: str = "light") -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    with address(folder, "file") as root, context, watched_page(context, root) as page:
        page.goto(f"{root}index.html")
        page.locator(".selattn-view[data-draw-ms]").wait_for()
        settled(page.locator("body"))
        yield page


def test_a_double_click_shows_the_picture_and_the_slider_changes_the_map(browser: Browser, tmp_path: Path) -> None:
    command = ["explain", "a cat and a dog on the beach", "--words", "cat", "dog", "--concept", "Animals"]
    assert cli.main([*command, "--heads", "20", "--steps", "2", "--out", str(tmp_path)]) == 0
    page_file = tmp_path / "index.html"
    assert page_file.stat().st_size < 400_000
    alone = tmp_path / "alone"  # nothing beside it is needed
    alone.mkdir()
    page_file.rename(alone / "index.html")
    for page in opened(browser, alone):
        assert page.get_by_role("heading").inner_text() == "a cat and a dog on the beach"
        chosen, all_heads = page.locator(".selattn-chosen canvas"), page.locator(".selattn-all canvas")
        before, kept = chosen.evaluate(PIXELS), all_heads.evaluate(PIXELS)
        slider = page.get_by_label("Heads k")
        assert slider.input_value() == "20"
        slider.press("ArrowRight")
        settled(page.locator("body"))
        assert page.locator(".selattn-chosen .selattn-title").inner_text() == "Top 21 heads for Animals"
        assert chosen.evaluate(PIXELS) != before and all_heads.evaluate(PIXELS) == kept
        page.get_by_label("Word").select_option("dog")
        settled(page.locator("body"))
        assert all_heads.evaluate(PIXELS) != kept
        expect_no_overflow(page)


def explorers() -> dict[str, AggregationExplorer | HeadExplorer | DiagnosisExplorer]:
    maps = synthetic(LAYERS, 64, ["mouse", "bat"], 2)
    one = HeadMaps(maps.dataset.rename(truth_round="truth").drop_vars("truth_square"))
    settings = {"heads": names_of(LAYERS), "k": 5}
    return {
        "aggregation": AggregationExplorer(one, rankings(24), **settings),
        "heads": HeadExplorer(maps, rankings(24), **settings),
        "diagnosis": DiagnosisExplorer(maps, rankings(24), concepts=["Animals", "Electronics"], **settings),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["aggregation", "heads", "diagnosis"])
def test_every_explorer_can_be_saved_as_it_is_set(browser: Browser, tmp_path: Path, kind: str, scheme: str) -> None:
    explorer = explorers()[kind]
    explorer.word, explorer.image, explorer.k, explorer.threshold = "bat", 1, 3, 0.3
    explorer.save(tmp_path / "index.html", "<b>&", ["</script><script>window.ran = 1</script>"])
    first = next(iter(explorer.heat.values())) if kind == "diagnosis" else explorer.heat
    [(name, truth), *_] = explorer.item.truths.items()
    number = f"{iou(np.asarray(first) > 0.3, truth):.3f}"
    for page in opened(browser, tmp_path, scheme):
        said = page.locator(".selattn-chosen figcaption").first.inner_text()
        assert said.startswith(f"IoU {number}," if kind == "aggregation" else f"IoU with {name} {number},")
        assert page.get_by_role("heading").inner_text() == "<b>&" and page.evaluate("window.ran") is None
        assert page.get_by_label("Word").evaluate("menu => menu.selectedOptions[0].text") == "bat"
        expect_no_overflow(page)
