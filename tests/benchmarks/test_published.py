"""The numbers of the page on published vectors: counted right on vectors made up here, and what the page includes."""

import re

import numpy as np
import pytest
import xarray as xr

import selattn_lib as sa
from benchmarks import published
from selattn_lib.evaluation import SD14_SHARED, SD14_VOTES, mean_interval

CONCEPTS = ["Animals", "Electronics", "Color"]


def relevance_of(best: dict[str, list[int]]) -> sa.HeadRelevance:
    """Vectors of 128 heads in which each concept's heads are those given, in this order."""
    layers = [*[("down", n) for n in range(6)], ("mid", 0), *[("up", n) for n in range(9)]]
    names = [f"{block}, layer: {layer}, head: {head}" for block, layer in layers for head in range(8)]
    counts = np.random.default_rng(0).permuted(np.tile(np.arange(1, 129), (3, 1)), axis=1)
    for concept, heads in best.items():
        counts[CONCEPTS.index(concept), heads] = 1000 - np.arange(len(heads))
    coords = {"concept": CONCEPTS, "head": names}
    return sa.HeadRelevance.from_counts(xr.DataArray(counts, coords, ("concept", "head")))


@pytest.fixture(scope="module")
def relevance() -> sa.HeadRelevance:
    # the last three layers are heads 104 to 127, the down blocks 0 to 47
    return relevance_of({"Animals": [*range(100, 120), *range(10)], "Electronics": [*range(110, 120), *range(20, 40)]})


def test_heads_are_counted_by_layer(relevance: sa.HeadRelevance) -> None:
    table = published.heads_of_layers(relevance)
    assert table.sum().tolist() == [30, 30, 10]
    assert table.loc[("up", 6)].tolist() == [8, 2, 2] and table.loc[("down", 0)].tolist() == [8, 0, 0]
    assert published.in_last_layers(table).tolist() == [16, 10, 10]
    said = published.text(relevance)
    assert (
        "| up 6 | 8 | 2 | 2 |" in said
        and "16 are in the last three layers of the up blocks, and\n10 in the down" in said
    )
    assert "share 10 of their 30 heads, all of them" in said and "would share 7.0" in said
    assert published.winners(relevance).sum() == 128


def test_the_votes_in_the_first_heads_are_those_that_a_chapter_compares_with(relevance: sa.HeadRelevance) -> None:
    objects = sa.HeadRelevance(relevance.scores.sel(concept=["Animals", "Electronics"]))  # a color is no object
    said = published.text(relevance).replace("\n", " ")
    assert f"hold a share of {mean_interval(sa.maps.concentration(objects, 30))} of its votes" in said
    assert "mean over 2 concepts; two of them have a share of 0.333 of these" in said
    page = published.OUT.read_text(encoding="utf-8").replace("\n", " ")
    assert f"hold a share of {SD14_VOTES} of its votes, mean over 16 concepts" in page
    assert f"have a share of {SD14_SHARED:.3f} of these heads in common" in page


def test_a_choice_that_cuts_through_equal_heads_is_said_to(relevance: sa.HeadRelevance) -> None:
    assert "for neither of the two" in published.text(relevance)
    level = relevance.scores.copy()
    level.loc["Animals"] = 1.0
    assert published.is_tied(sa.HeadRelevance(level), "Animals")


def test_the_page_s_sentences_agree_with_its_table() -> None:
    """The vectors are not there to count again, but the sums are."""
    said = published.OUT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (down|mid|up) (\d) \| (\d+) \| (\d+) \| (\d+) \|$", said, re.MULTILINE)
    counts = {(block, int(layer)): np.array(numbers, int) for block, layer, *numbers in rows}
    assert len(counts) == 16 and sum(counts.values()).tolist()[:2] == [30, 30]
    last = sum(counts["up", layer] for layer in (6, 7, 8))
    down = sum(counts["down", layer] for layer in range(6))
    assert f"*Animals*, {last[0]} are in" in said and f"and\n{down[0]} in the down blocks" in said
    assert f"*Electronics*, {last[1]} are in the former and {down[1]} in the latter." in said
    both = sum(counts.values())[2]
    assert f"share {both} of their 30 heads, {'all' if last[2] == both else last[2]} of them" in said
