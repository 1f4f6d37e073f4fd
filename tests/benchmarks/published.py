"""The numbers of the book's page on the published head relevance vectors, which are not part of the book.

python tests/benchmarks/published.py FOLDER     # that of their two .npy files; writes what the page includes
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import selattn_lib as sa
from selattn_lib import evaluation
from selattn_lib.emoji.control import planted_heads
from selattn_lib.models.heads import head_table

OUT = Path(__file__).parents[2] / "book/published_numbers.md"
CONCEPT, OTHER, K = "Animals", "Electronics", 30


def heads_of_layers(relevance: sa.HeadRelevance) -> pd.DataFrame:
    """(layer, concept) how many heads of each layer are among the `K` most relevant: to `CONCEPT`, `OTHER`, both."""
    names = relevance.scores["head"].values.tolist()
    table = head_table(names)[["block", "layer"]]
    for concept in (CONCEPT, OTHER):
        table[concept] = np.isin(np.arange(len(names)), relevance.top(concept, K))
    table["both"] = table[CONCEPT] & table[OTHER]
    return table.groupby(["block", "layer"], sort=False).sum()


def in_last_layers(table: pd.DataFrame, layers: int = 3) -> pd.Series:
    return table.loc["up"].tail(layers).sum()


def winners(relevance: sa.HeadRelevance) -> pd.Series:
    """Of each concept, the heads whose strongest relevance is for it; only those that any head has."""
    scores = relevance.scores.transpose("concept", "head")
    return pd.Series(scores["concept"].values[scores.values.argmax(0)]).value_counts()


def is_tied(relevance: sa.HeadRelevance, concept: str) -> bool:
    """Whether the last head that is selected is as relevant as the first that is not."""
    order = np.sort(relevance.scores.sel(concept=concept).values)[::-1]
    return bool(order[K - 1] == order[K])


def lines(relevance: sa.HeadRelevance) -> Iterator[str]:
    """The page's table and the sentences about it, in Markdown."""
    table, heads = heads_of_layers(relevance), relevance.scores.sizes["head"]
    yield f"| Block and layer | *{CONCEPT}* | *{OTHER}* | both |"
    yield "| --- | --- | --- | --- |"
    for place, row in table.iterrows():
        yield f"| {place[0]} {place[1]} | {row[CONCEPT]} | {row[OTHER]} | {row['both']} |"
    last, down, both = in_last_layers(table), table.loc["down"].sum(), table["both"].sum()
    there = "all" if last["both"] == both else last["both"]
    won = winners(relevance)
    most = ", ".join(f"*{name}*" for name in sorted(won.index[won == won.max()]))
    tied = " and ".join(f"*{concept}*" for concept in (CONCEPT, OTHER) if is_tied(relevance, concept))
    yield ""
    yield f"""Of the {K} heads for *{CONCEPT}*, {last[CONCEPT]} are in the last three layers of the up blocks, and
{down[CONCEPT]} in the down blocks.
Of the {K} heads for *{OTHER}*, {last[OTHER]} are in the former and {down[OTHER]} in the latter."""
    yield f"""The two concepts share {both} of their {K} heads, {there} of them in the last three layers.
Two sets of {K} drawn from {heads} at random would share {K**2 / heads:.1f}."""
    yield f"""Of the {relevance.scores.sizes["concept"]} concepts, {len(won)} rank first for at least one head:
{most} have {won.max()} each, *{CONCEPT}* has {won.get(CONCEPT, 0)} and *{OTHER}* has {won.get(OTHER, 0)}."""
    known = relevance.scores["concept"].values
    objects = sa.HeadRelevance(relevance.scores.sel(concept=[name for name in planted_heads() if name in known]))
    share, shared = evaluation.mean_interval(sa.maps.concentration(objects, K)), sa.maps.overlap(objects, K)
    yield f"""The first {K} heads of a concept of objects hold a share of {share} of its votes, mean over
{objects.scores.sizes["concept"]} concepts; two of them have a share of {shared:.3f} of these heads in common."""
    yield f"Heads inside and outside the selection of {K} are tied for {tied or 'neither of the two'}."


def text(relevance: sa.HeadRelevance) -> str:
    return (
        "\n".join(line if line.startswith("|") or not line else f"{line}\n" for line in lines(relevance)).strip() + "\n"
    )


if __name__ == "__main__":
    OUT.write_text(text(sa.load_hrv(sys.argv[1])), encoding="utf-8")
    print(f"The numbers are in {OUT}")
