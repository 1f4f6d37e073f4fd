"""The built book: complete, and free of anything that would need a network."""

import hashlib
import importlib
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import plotly.offline
import pytest
import yaml
from bs4 import BeautifulSoup
from docutils import nodes

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "selattn_lib"
VENDOR = ROOT / "book" / "_static" / "vendor"


def pages() -> list[str]:
    """The pages of the table of contents, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


@pytest.mark.parametrize("page", pages())
def test_every_page_is_there_and_asks_for_nothing_outside(book: Path, page: str) -> None:
    html = (book / f"{page}.html").read_text()
    for attribute in re.findall(r"<(?:script|img|iframe)\b[^>]*?\bsrc=\"([^\"]+)\"", html):
        assert not re.match(r"(https?:)?//", attribute), attribute
    for attribute in re.findall(r"<link\b[^>]*?\bhref=\"([^\"]+)\"", html):
        assert not re.match(r"(https?:)?//", attribute), attribute


def test_the_way_in_asks_for_no_icon_and_leads_to_a_page(book: Path) -> None:
    html = (book / "index.html").read_text()
    assert 'rel="icon" href="data:,"' in html, "a browser would ask for favicon.ico"
    assert (book / re.search(r"url=([^\"]+)", html)[1]).exists()


def test_plotly_is_loaded_where_a_figure_is_and_nowhere_else(book: Path) -> None:
    for page in pages():
        html = (book / f"{page}.html").read_text()
        assert ('class="plotly-figure"' in html) == ("plotly-cartesian.min.js" in html), page


def test_vendored_files_are_what_the_manifest_says() -> None:
    manifest = json.loads((VENDOR / "vendor.json").read_text())
    known = {name: digest for package in manifest for name, digest in package["sha256"].items()}
    for name, digest in known.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
    for package in manifest:
        assert (VENDOR / package["licence_text"]).read_text().strip()
    listed = set(known) | {"vendor.json"} | {package["licence_text"] for package in manifest}
    assert {p.relative_to(VENDOR).as_posix() for p in VENDOR.rglob("*") if p.is_file()} == listed


def test_plotly_of_the_page_is_the_one_plotly_py_was_made_for() -> None:
    manifest = json.loads((VENDOR / "vendor.json").read_text())
    version = next(package["version"] for package in manifest if "plotly" in package["npm"])
    assert version == plotly.offline.get_plotlyjs_version()


def test_the_reference_shows_every_public_name(book: Path) -> None:
    """Those of the stub, and what the folders of the library take up in their `__init__`."""
    html = (book / "book" / "api.html").read_text()
    shown = {name.rsplit(".", 1)[-1] for name in re.findall(r'<dt[^>]* id="(selattn_lib\.[\w.]+)"', html)}
    public = set(re.findall(r"^from \.\S+ import \w+ as (\w+)$", (LIBRARY / "__init__.pyi").read_text(), re.MULTILINE))
    assert len(public) > 30
    for folder in (path.parent.name for path in LIBRARY.glob("*/__init__.py")):
        module = importlib.import_module(f"selattn_lib.{folder}")
        public |= {name for name in getattr(module, "__all__", ()) if not isinstance(getattr(module, name), ModuleType)}
    assert public - shown == set(), "add these to book/api.md"


def test_the_first_page_shows_the_numbers_of_the_chapters(book: Path) -> None:
    """Where one was not found, Sphinx shows what was asked for instead."""
    html = re.sub("<.*?>", "", (book / "book" / "intro.html").read_text())
    shown = html[html.index("The paper: yes") : html.index("White line")]
    assert "measured}" not in shown and len(re.findall(r"\d\.\d{3} \[", shown)) >= 4


def test_the_first_page_has_three_doors_and_leads_to_the_papers_figures(book: Path) -> None:
    html = (book / "book" / "intro.html").read_text()
    doors = re.search(r'<div class="doors.*?</div>', html, re.DOTALL)
    assert doors and re.findall(r'href="([^"]+)"', doors[0]) == [
        "../notebooks/00_quick_tour.html",
        "#explore",
        "rerun.html",
    ]
    assert 'id="explore"' in html and "04_mouse_diagnosis.html#figure-4-1" in html


def test_contents_have_whole_titles_and_the_sidebar_short_ones(book: Path) -> None:
    first, page = (
        BeautifulSoup((book / name).read_text(), "html.parser")
        for name in ("book/intro.html", "notebooks/02_segmentation.html")
    )
    of_chapter = 'a[href$="notebooks/02_segmentation.html"]'
    whole, short = (first.select_one(f"{place} {of_chapter}") for place in (".toctree-wrapper", "nav.bd-links"))
    assert whole and short and page.h1 and page.h1.get_text().startswith(whole.get_text(strip=True))
    assert (
        whole.get_text(strip=True).startswith("On emoji-sd, ")
        and short.get_text(strip=True) == "All heads or the top 30"
    )


def test_the_gallery_leads_to_every_figure(book: Path) -> None:
    captions = {
        (path.stem, number.replace(".", "-"))
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for number in re.findall(r'"\*Figure (\d+\.\d+)\. ', path.read_text(encoding="utf-8"))
    }
    html = (book / "book" / "gallery.html").read_text()
    links = re.findall(r'href="\.\./notebooks/(\w+)\.html#figure-(\d+-\d+)"><img src="data:image', html)
    assert set(links) == captions and len(links) == len(captions) > 30
    for name in {name for name, _ in links}:
        chapter = (book / "notebooks" / f"{name}.html").read_text()
        places = [
            re.search(rf'<div class="cell[^>]* id="figure-{number}"', chapter) for stem, number in links if stem == name
        ]
        assert all(places), name


def test_every_claim_stands_with_its_verdict_chapter_and_command(book: Path) -> None:
    html = (book / "book" / "claims.html").read_text()
    claims = re.findall(r'<div class="claim.*?</div>', html, re.DOTALL)
    assert len(claims) == (ROOT / "book" / "claims.md").read_text().count("```{claim}") > 10
    for claim in claims:
        name = re.search(r'href="\.\./notebooks/(\w+)\.html"', claim)
        text = re.sub("<.*?>", "", claim)
        assert name and f"selattn run notebooks/{name[1]}.ipynb --out" in text
        assert re.search(r"\d\.\d+ \[.*?\]", text) and ("Clear: " in text or "No clear difference: " in text)


@pytest.mark.parametrize("page", pages())
def test_a_link_that_is_shared_has_title_description_and_picture(book: Path, page: str) -> None:
    html = (book / f"{page}.html").read_text()
    card = dict(re.findall(r'<meta (?:property|name)="((?:og|twitter):[\w:]+|description)" content="([^"]*)">', html))
    assert {"og:title", "og:description", "og:image", "og:type", "twitter:card", "description"} <= set(card)
    assert len(card["og:description"]) > 40 and (book / page).parent.joinpath(card["og:image"]).resolve().exists()


def test_a_published_book_names_its_address_in_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    monkeypatch.setenv("BOOK_URL", "https://example.org/book")
    social = importlib.import_module("social")
    document = nodes.section("", nodes.paragraph("", "A sentence that is long enough to be a description of a page."))
    app = SimpleNamespace(config=SimpleNamespace(html_title="Book", project=""))
    context = {"title": "A &amp; <em>B</em>", "metatags": ""}
    social.add_card(app, "book/a", "page.html", context, document)
    assert 'content="https://example.org/book/_static/figure_one.png"' in context["metatags"]
    assert 'property="og:url" content="https://example.org/book/book/a.html"' in context["metatags"]
    assert 'content="A &amp; B"' in context["metatags"]


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("notebooks/")])
def test_a_table_of_a_chapter_has_a_caption_named_columns_and_whole_intervals(book: Path, page: str) -> None:
    soup = BeautifulSoup((book / f"{page}.html").read_text(), "html.parser")
    for table in soup.select("table.dataframe"):
        assert re.match(r"Table \d+\.\d+\. ", table.caption.get_text())
        assert len(table.thead("tr")) == 1 and all(cell.get_text(strip=True) for cell in table.thead(["th", "td"]))
        broken = [cell.get_text() for cell in table("td") if re.search(r"\d \[|, [-+\d]", cell.get_text())]
        assert broken == [], "no-break spaces keep a number and its interval on one line"


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("notebooks/") and "00_" not in page])
def test_a_chapter_begins_and_ends_with_its_answer(book: Path, page: str) -> None:
    html = (book / f"{page}.html").read_text()
    settings, answer = html.index('<details class="settings">'), "<strong>Answer.</strong>"
    assert html.count(answer) == 2 and html.index(answer) < settings < html.rindex(answer)
