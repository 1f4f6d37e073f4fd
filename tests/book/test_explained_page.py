"""The page of `selattn explain`, opened as a file in Chromium with the network cut."""

import base64
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import address, expect_no_overflow, watched
from explorer_page import settled
from PIL import Image
from playwright.sync_api import Locator, Page
from synthetic import names_of, rankings, synthetic

from selattn_lib import cli
from selattn_lib.evaluation.scores import iou
from selattn_lib.explorers.aggregation import AggregationExplorer
from selattn_lib.explorers.diagnosis import DiagnosisExplorer
from selattn_lib.explorers.heads import HeadExplorer
from selattn_lib.maps.head_maps import HeadMaps

LAYERS = [("down", 16), ("mid", 4), ("up", 16)]
PIXELS = "canvas => canvas.toDataURL()"


def opened(tab: Page, folder: Path, scheme: str = "light", link: str = "") -> Iterator[Page]:
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    with address(folder, "file") as root, watched(tab, root) as page:
        page.goto(f"{root}index.html{link}")
        page.locator(".selattn-view[data-draw-ms]").wait_for()
        settled(page.locator("body"))
        yield page


def test_a_double_click_shows_the_picture_and_the_slider_changes_the_map(tab: Page, tmp_path: Path) -> None:
    command = ["explain", "a cat and a dog on the beach", "--words", "cat", "dog", "--concept", "Animals"]
    assert cli.main([*command, "--heads", "20", "--steps", "2", "--out", str(tmp_path)]) == 0
    page_file = tmp_path / "index.html"
    assert page_file.stat().st_size < 400_000
    alone = tmp_path / "alone"  # nothing beside it is needed
    alone.mkdir()
    page_file.rename(alone / "index.html")
    for page in opened(tab, alone):
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
def test_every_explorer_can_be_saved_as_it_is_set(tab: Page, tmp_path: Path, kind: str, scheme: str) -> None:
    explorer = explorers()[kind]
    explorer.word, explorer.image, explorer.k, explorer.threshold = "bat", 1, 3, 0.3
    explorer.save(tmp_path / "index.html", "<b>&", ["</script><script>window.ran = 1</script>"])
    first = next(iter(explorer.heat.values())) if kind == "diagnosis" else explorer.heat
    [(name, truth), *_] = explorer.item.truths.items()
    number = f"{iou(np.asarray(first) > 0.3, truth):.3f}"
    for page in opened(tab, tmp_path, scheme):
        said = page.locator(".selattn-chosen figcaption").first.inner_text()
        assert said.startswith(f"IoU {number}," if kind == "aggregation" else f"IoU with {name} {number},")
        assert page.get_by_role("heading").inner_text() == "<b>&" and page.evaluate("window.ran") is None
        assert page.get_by_label("Word").evaluate("menu => menu.selectedOptions[0].text") == "bat"
        expect_no_overflow(page)


def pixels(canvas: Locator) -> np.ndarray:
    content = base64.b64decode(canvas.evaluate(PIXELS).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


@pytest.mark.parametrize("kind", ["aggregation", "heads", "diagnosis"])
def test_a_link_carries_the_settings(tab: Page, tmp_path: Path, kind: str) -> None:
    explorers()[kind].save(tmp_path / "index.html")
    for page in opened(tab, tmp_path):
        page.get_by_label("Word").select_option("bat")
        page.get_by_label("Threshold").press("ArrowRight")
        menu = page.get_by_label({"aggregation": "Method", "heads": "Rank by", "diagnosis": "Concept 2"}[kind])
        menu.select_option({"aggregation": "bottom k", "heads": "attention on square", "diagnosis": "Plants"}[kind])
        page.get_by_label("Heads k").press("ArrowRight")
        settled(page.locator("body"))
        if kind == "heads":
            page.locator(".selattn-tile").nth(7).click()
            settled(page.locator("body"))
        page.get_by_role("button", name="Copy link").click()
        page.wait_for_url("**/index.html#*")
        link, said = "#" + page.url.partition("#")[2], page.locator(".selattn-status").inner_text()
        before = pixels(page.locator(".selattn-chosen canvas").first)
    assert link.replace("#", "").replace("-", "").replace("_", "").isalnum(), "no page's script trips over it"
    for page in opened(tab, tmp_path, link=link):
        assert page.locator(".selattn-status").inner_text() == said and "0.41" in said
        assert np.abs(pixels(page.locator(".selattn-chosen canvas").first) - before).max() <= 2
    for page in opened(tab, tmp_path, link=link.partition("-w")[0] + "-w9-k999-t3-mx-p1_5000_<"):
        assert "0.40" in page.locator(".selattn-status").inner_text(), "what is not possible is left as it was"


def saved(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


@pytest.mark.parametrize("kind", ["aggregation", "heads", "diagnosis"])
def test_pictures_and_numbers_can_be_saved(tab: Page, tmp_path: Path, kind: str) -> None:
    explorer = explorers()[kind]
    explorer.save(tmp_path / "index.html")
    for page in opened(tab, tmp_path):
        page.evaluate("void (function go() { requestAnimationFrame(go) })()")  # where no frame is due, PNG waits 6 s
        table = list(csv.DictReader(io.StringIO(saved(page, "Save CSV").decode("utf-8-sig"))))
        sheet = Image.open(io.BytesIO(saved(page, "Save PNG")))
    assert sheet.height > 320 and sheet.width == 16 + {"aggregation": 3, "heads": 4, "diagnosis": 6}[kind] * 336
    heads = explorer.heads["Animals"] if kind == "diagnosis" else explorer.heads
    heat = explorer.heat["Animals"] if kind == "diagnosis" else explorer.heat
    assert {int(number) for number in table[0]["heads"].split()} == set(heads.tolist()) and table[-1]["heads"] == "all"
    assert (table[0]["word"], table[0]["threshold"]) == ("mouse", "0.40")
    assert float(table[0]["share"]) == pytest.approx(float((heat > 0.4).mean()), abs=1e-4)
    for name, truth in explorer.item.truths.items():
        assert float(table[0][f"IoU with {name}"]) == pytest.approx(iou((heat > 0.4).values, truth), abs=1e-4)


def test_the_heads_in_the_order_of_the_ranking_and_picks_to_go_back_to(tab: Page, tmp_path: Path) -> None:
    explorer = explorers()["heads"]
    explorer.save(tmp_path / "index.html")
    order = explorer.rankings[explorer.ranking]
    names = [f"{block} 0, head {head}" for block in ("down", "mid", "up") for head in range(8)]
    for page in opened(tab, tmp_path):
        title = page.locator(".selattn-own .selattn-title")
        for button, rank in (("next", 1), ("next", 2), ("before", 1), ("first", 0), ("before", 0)):
            label = {"next": "The head after it", "before": "The head before it", "first": "The first head"}[button]
            page.get_by_role("button", name=label).click()
            settled(page.locator("body"))
            assert title.inner_text() == names[order[rank]]
            assert page.locator(".selattn-tools output").inner_text() == f"rank {rank + 1}: {names[order[rank]]}"
        page.get_by_role("button", name="mid 0", exact=True).click()
        page.get_by_label("Heads k").press("ArrowRight")
        settled(page.locator("body"))
        assert "The ranking took the place of the 8 that you picked." in page.locator(".selattn-status").inner_text()
        page.get_by_role("button", name="Back to my 8").click()
        settled(page.locator("body"))
        pressed = page.locator(".selattn-tile").evaluate_all("all => all.map(each => each.ariaPressed)")
        assert [number for number, state in enumerate(pressed) if state == "true"] == list(range(8, 16))
        page.get_by_label("Rank by").select_option("attention on round")
        settled(page.locator("body"))
        said = page.locator(".selattn-status").inner_text()
        assert "This ranking knows the true outline, as no method does." in said and "× as strong there" in said


def test_on_a_phone_the_map_stands_beside_the_heads(tab: Page, tmp_path: Path) -> None:
    explorers()["heads"].save(tmp_path / "index.html")
    for page in opened(tab, tmp_path):
        expect_no_overflow(page)
        grid, average = (page.locator(f".selattn-{name}").bounding_box() for name in ("tiles", "chosen"))
        assert grid["x"] + grid["width"] <= average["x"] and average["y"] < grid["y"] + grid["height"]
        assert page.locator(".selattn-column").all_inner_texts() == [str(number) for number in range(8)]
