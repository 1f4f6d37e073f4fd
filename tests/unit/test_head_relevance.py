"""Head relevance: rankings, files, and nothing unpickled."""

import os

import numpy as np
import pytest
import xarray as xr

from selattn_lib.maps.relevance import HeadRelevance, concentration, concept_similarity, load_hrv, relevance_orders
from selattn_lib.models.families import cross_attention_heads


@pytest.fixture
def counts():
    values = [[[3, 1, 0, 4], [0, 0, 0, 0]], [[3, 1, 0, 2], [0, 0, 0, 0]]]
    coords = {"concept": ["Animals", "Things"], "head": [f"mid, layer: 0, head: {h}" for h in range(4)]}
    return xr.DataArray(values, dims=("image", "concept", "head"), coords=coords)


def test_scores_have_rows_of_norm_h(counts):
    hrv = HeadRelevance.from_counts(counts)
    np.testing.assert_allclose(hrv.scores.sel(concept="Animals"), np.array([6, 2, 0, 6]) * 4 / 14)
    assert (hrv.scores.sel(concept="Things") == 0).all()
    assert hrv.counts.sel(concept="Animals").values.tolist() == [6, 2, 0, 6]


def test_ranking_breaks_ties_by_the_lower_head(counts):
    hrv = HeadRelevance.from_counts(counts)
    assert hrv.ranking("Animals").tolist() == [0, 3, 1, 2]
    assert hrv.ranking("Things").tolist() == [0, 1, 2, 3]
    assert hrv.top("Animals", 2).tolist() == [0, 3]
    assert hrv.bottom("Animals", 4).tolist() == hrv.top("Animals", 4).tolist()


def test_ties_among_many_heads():
    names = [f"down, layer: 0, head: {h}" for h in range(128)]
    coords = {"concept": ["Animals"], "head": names}
    counts = xr.DataArray(np.arange(128)[None] // 64, dims=("concept", "head"), coords=coords)
    assert HeadRelevance.from_counts(counts).ranking("Animals").tolist() == [*range(64, 128), *range(64)]


def test_a_tie_at_the_edge_is_said(counts):
    hrv = HeadRelevance.from_counts(counts)  # Animals: 6, 2, 0, 6; Things: none
    with pytest.warns(UserWarning, match="^Animals, top 1: 1 of 2 heads with equally many votes is taken, the lower"):
        assert hrv.top("Animals", 1).tolist() == [0]
    with pytest.warns(UserWarning, match="^Animals, bottom 3: 1 of 2 .* the higher number first; k = 2 or 4 avoids"):
        assert hrv.bottom("Animals", 3).tolist() == [3, 1, 2]
    with pytest.warns(UserWarning, match="^Things, top 2: 2 of 4 heads with no votes are taken, .*k = 4 avoids this$"):
        hrv.top("Things", 2)
    assert [hrv.tie("Animals", k) != "" for k in (1, 2, 3, 4)] == [True, False, False, False]
    assert [hrv.tie("Animals", k, "bottom") != "" for k in (1, 2, 3, 4)] == [False, False, True, False]


def test_the_embedded_models_ties():
    hrv = load_hrv("emoji-sd")
    ties = [k for k in (10, 20, 30, 40) if hrv.tie("Animals", k)]
    assert (ties, [k for k in (10, 20, 30, 40) if hrv.tie("Animals", k, "bottom")]) == ([40], [10, 20])


def test_rankings_of_resampled_images(counts):
    hrv = HeadRelevance.from_counts(counts)
    orders = hrv.orders("Animals", draws=200)
    assert orders.dims == ("ranking", "head") and orders[0].values.tolist() == hrv.ranking("Animals").tolist()
    # of two images, the first alone (a quarter of the draws), the second alone, and both
    votes = counts.sel(concept="Animals").values
    ways = [np.argsort(-v, kind="stable").tolist() for v in (2 * votes[0], 2 * votes[1], votes.sum(axis=0))]
    assert {tuple(order) for order in orders.values.tolist()} == {tuple(way) for way in ways}
    np.testing.assert_allclose((orders[1:] == ways[0]).all("head").mean(), 0.25, atol=0.1)
    tops = hrv.top_sets("Animals", 1)
    assert tops.dims == ("ranking", "head") and tops[0].values.tolist() == [1, 0, 0, 0]
    assert (tops.sum("head") == 1).all() and (hrv.bottom_sets("Animals", 1)[0] == [0, 0, 1, 0]).all()
    assert hrv.noise.endswith("counted on 2 images")


def test_without_votes_of_single_images_there_is_one_ranking(counts, tmp_path):
    HeadRelevance.from_counts(counts.sum("image")).save(tmp_path / "hrv.npz")
    loaded = HeadRelevance.load(tmp_path / "hrv.npz")
    assert loaded.votes is None and loaded.orders("Animals").values.tolist() == [[0, 3, 1, 2]]
    assert "leave out the noise of the ranking" in loaded.noise


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_out_of_range(counts, k):
    for select in (HeadRelevance.from_counts(counts).top, HeadRelevance.from_counts(counts).bottom):
        with pytest.raises(ValueError, match=f"k={k} heads of 4 .*must be 1 to 4"):
            select("Animals", k)


def test_unknown_concept_lists_the_known(counts):
    with pytest.raises(ValueError, match="'Plants' is not known; these are: Animals, Things"):
        HeadRelevance.from_counts(counts).top("Plants", 1)


def test_save_and_load(counts, tmp_path):
    hrv = HeadRelevance.from_counts(counts)
    hrv.save(tmp_path / "hrv.npz")
    for loaded in (HeadRelevance.load(tmp_path / "hrv.npz"), load_hrv(str(tmp_path / "hrv.npz"))):
        xr.testing.assert_equal(loaded.scores, hrv.scores)
        xr.testing.assert_equal(loaded.counts, hrv.counts)
        xr.testing.assert_equal(loaded.votes, hrv.votes)
    HeadRelevance(hrv.scores).save(tmp_path / "scores.npz")
    assert HeadRelevance.load(tmp_path / "scores.npz").counts is None


def write_published(folder, scores, names):
    np.save(folder / "hrv.npy", scores)
    np.save(folder / "head_names.npy", names)


def test_published_folder(tmp_path):
    names = np.array(["down, layer: 0, head: 0", "mid, layer: 0, head: 0", "up, layer: 8, head: 7"])
    scores = np.array([[1, 2, 0], [3, 0, 0]], dtype=np.float32)
    write_published(tmp_path, scores, names)
    hrv = HeadRelevance.load(tmp_path, concepts=["Animals", "Things"])
    assert hrv.counts is None
    assert hrv.top("Animals", 2).tolist() == [1, 0]
    assert hrv.scores["head"].values.tolist() == names.tolist()
    with pytest.raises(ValueError, match=r"shape \(2, 3\); 34 concepts x 3 heads"):
        HeadRelevance.load(tmp_path)  # without concepts: the HRV paper's
    write_published(tmp_path, scores, names[:2])
    with pytest.raises(ValueError, match=r"shape \(2, 3\); 2 concepts x 2 heads"):
        HeadRelevance.load(tmp_path, concepts=["Animals", "Things"])


def test_published_folder_of_the_papers_size(tmp_path, tiny_pipe):
    scores = np.random.default_rng(0).random((34, 128)).astype(np.float32)
    scores *= 128 / scores.sum(axis=1, keepdims=True)
    write_published(tmp_path, scores, np.array(cross_attention_heads(tiny_pipe).names))
    hrv = HeadRelevance.load(tmp_path)
    assert hrv.top("Animals", 1)[0] == scores[0].argmax()


def test_published_heads_are_put_in_order(tmp_path, tiny_pipe):
    names = np.array(cross_attention_heads(tiny_pipe).names)
    scores = np.random.default_rng(0).random((34, 128))
    scores *= 128 / scores.sum(axis=1, keepdims=True)
    mixed = np.random.default_rng(1).permutation(128)
    write_published(tmp_path, scores[:, mixed], names[mixed])
    hrv = HeadRelevance.load(tmp_path)
    assert hrv.scores["head"].values.tolist() == names.tolist()
    np.testing.assert_array_equal(hrv.scores, scores)


def test_a_whole_folder_of_results_is_searched_for_the_two_files_that_belong_together(tmp_path):
    names = np.array(["down, layer: 0, head: 0", "mid, layer: 0, head: 0", "up, layer: 8, head: 7"])
    write_published(tmp_path, np.array([[1, 2, 0], [0, 0, 0]], dtype=np.float32), names)
    np.save(tmp_path / "counts.npy", np.array([[10, 20, 0], [0, 0, 0]], dtype=np.float32))
    np.save(tmp_path / "first_image.npy", np.ones((2, 5, 3), np.float32))
    np.save(tmp_path / "concepts.npy", np.array(["Animals", "Things"]))
    assert HeadRelevance.load(tmp_path, concepts=["Animals", "Things"]).top("Animals", 1).tolist() == [1]
    np.save(tmp_path / "other_hrv.npy", np.array([[3, 0, 0], [0, 0, 3]], dtype=np.float32))
    with pytest.raises(
        ValueError, match=r"4 .npy files of floats and 2 of strings, \['concepts.npy', 'counts.npy', .*own"
    ):
        HeadRelevance.load(tmp_path, concepts=["Animals", "Things"])


@pytest.mark.parametrize(
    "names, scores, message",
    [
        (["down, layer: 0, head: 0", "side, layer: 0, head: 1"], [[1, 1]], "side, layer: 0, head: 1"),
        (["down, layer: 0, head: 0", "down, layer: 0, head: 0"], [[1, 1]], "each once"),
        (["down, layer: 0, head: 0", "down, layer: 0, head: 1"], [[0.5, 0.5]], "Animals has an L1 norm of 1; 2 was"),
        (["down, layer: 0, head: 0", "down, layer: 0, head: 1"], [[3, -1]], "negative or no numbers"),
        (["down, layer: 0, head: 0", "down, layer: 0, head: 1"], [[2, np.nan]], "negative or no numbers"),
    ],
)
def test_published_files_that_are_not_head_relevance(tmp_path, names, scores, message):
    write_published(tmp_path, np.array(scores, dtype=np.float32), np.array(names))
    with pytest.raises(ValueError, match=message):
        HeadRelevance.load(tmp_path, concepts=["Animals"])


class Mischief:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path):
    made = tmp_path / "made"
    evil = np.array([Mischief(made)], dtype=object)
    np.save(tmp_path / "hrv.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "hrv.npz", scores=evil, concepts=evil, heads=evil)
    for path in (tmp_path, tmp_path / "hrv.npz"):
        with pytest.raises(ValueError, match="hrv.np. is damaged, or pickled, and is not read"):
            HeadRelevance.load(path, concepts=["Animals"])
    assert not made.exists()
    np.load(tmp_path / "hrv.npy", allow_pickle=True)
    assert made.exists(), "the file is indeed harmful"


def test_a_file_cut_short_is_said_to_be_damaged(counts, tmp_path):
    HeadRelevance.from_counts(counts).save(tmp_path / "hrv.npz")
    (tmp_path / "hrv.npz").write_bytes((tmp_path / "hrv.npz").read_bytes()[:300])
    with pytest.raises(ValueError, match="hrv.npz is damaged"):
        load_hrv(tmp_path / "hrv.npz")


def test_a_damaged_file_is_a_sentence_wherever_it_is_damaged(counts, tmp_path):
    HeadRelevance.from_counts(counts).save(tmp_path / "hrv.npz")
    content, whole = (tmp_path / "hrv.npz").read_bytes(), HeadRelevance.from_counts(counts).scores.values
    draws = np.random.default_rng(0)
    for _ in range(300):
        at = int(draws.integers(len(content)))
        (tmp_path / "hrv.npz").write_bytes(
            content[:at] + bytes([content[at] ^ 1 << draws.integers(8)]) + content[at + 1 :]
        )
        try:
            np.testing.assert_array_equal(HeadRelevance.load(tmp_path / "hrv.npz").scores, whole)
        except ValueError as error:
            assert "hrv.npz" in str(error)
    heads = counts["head"].values
    for names, scores in ((np.array(3), whole), (heads.astype(str), whole.astype(str)), (heads.astype("S"), whole)):
        np.savez(tmp_path / "hrv.npz", scores=scores, concepts=counts["concept"].values.astype(str), heads=names)
        with pytest.raises(ValueError, match="expected numbers, and text|4 heads were expected|x 1 heads"):
            HeadRelevance.load(tmp_path / "hrv.npz")


def test_files_that_are_not_there_or_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="No head relevance at"):
        load_hrv(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", scores=np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"no \['concepts', 'heads'\]"):
        HeadRelevance.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="0 .npy files of floats"):
        (tmp_path / "empty").mkdir()
        HeadRelevance.load(tmp_path / "empty")


def test_rankings_counted_on_some_images():
    counts = xr.DataArray(
        np.random.default_rng(0).poisson(2, (6, 2, 5)), {"concept": ["a", "b"]}, ("image", "concept", "head")
    )
    orders = relevance_orders(counts, "b", [2, 6], draws=3)
    assert orders.dims == ("size", "draw", "head") and (np.sort(orders) == np.arange(5)).all()
    for order in orders.sel(size=6).values:
        assert order.tolist() == HeadRelevance.from_counts(counts).ranking("b").tolist()


def test_concentration_is_the_share_of_the_top_heads():
    scores = xr.DataArray([[1.0, 1, 1, 1], [0, 3, 1, 0]], {"concept": ["flat", "peaked"]}, ("concept", "head"))
    assert concentration(HeadRelevance(scores), 1).values.tolist() == [0.25, 0.75]
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must be 1 to 4"):
            concentration(HeadRelevance(scores), k)


def test_similar_concepts_stand_side_by_side():
    rng = np.random.default_rng(2)
    base = rng.random((3, 128))
    rows = np.concatenate([base, base + 0.05 * rng.random((3, 128)), np.zeros((1, 128))])
    scores = xr.DataArray(rows, dims=("concept", "head"), coords={"concept": list("abcABC_")})
    similarity = concept_similarity(scores)
    order = "".join(similarity["concept"].values)
    assert all(abs(order.index(x) - order.index(x.upper())) == 1 for x in "abc")
    cosine = (rows[0] @ rows[1]) / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1])
    assert float(similarity.sel(concept="a", other_concept="b")) == pytest.approx(cosine)
    assert float(similarity.sel(concept="_", other_concept="a")) == 0
