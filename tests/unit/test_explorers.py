"""The explorers: what the browser computes against torch, and what Python hands it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

from selattn_lib.evaluation.scores import attention_on, attention_ratio, iou, ious
from selattn_lib.explorers import base
from selattn_lib.explorers.aggregation import AggregationExplorer
from selattn_lib.explorers.diagnosis import DiagnosisExplorer
from selattn_lib.explorers.heads import HeadExplorer
from selattn_lib.explorers.items import pack_maps, unpacked
from selattn_lib.explorers.switch import ExplorerSwitch
from selattn_lib.explorers.view import METHODS, ExplorerView, script
from selattn_lib.maps.consensus import consensus, finest_heads
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.maps.head_sets import first_heads
from selattn_lib.maps.relevance import HeadRelevance

GRIDS = {(16, 12): [0, 1, 5, 6], (8, 6): [2, 3, 8, 9], (4, 3): [4, 7]}
HEIGHT, WIDTH, N_HEADS = 128, 96, 10
NAMES = [f"{block}, layer: {layer}, head: {h}" for block, layer in (("down", 0), ("up", 1)) for h in range(5)]
KS, THRESHOLDS = (1, 2, 5, 10), (0.05, 0.3, 0.4, 0.55, 0.95)

node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node (any version since 18) to run the script")


@pytest.fixture(scope="module")
def maps() -> HeadMaps:
    """Two images, blobs that move from head to head, at three grids; float16, as studies store maps."""
    rng = np.random.default_rng(3)
    grids = []
    for (height, width), numbers in GRIDS.items():
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
        shape = (2, 2, len(numbers))
        cy, cx, size = (rng.uniform(low, high, (*shape, 1, 1)) for low, high in ((0.3, 0.7), (0.3, 0.7), (0.1, 0.3)))
        values = 0.03 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / size**2) + 0.004 * rng.random((*shape, height, width))
        grids.append((numbers, values.astype(np.float16)))
    return HeadMaps.from_grids(grids, ["bear", "lake"], (HEIGHT, WIDTH))


def changed(maps: HeadMaps, change: Callable[[np.ndarray], np.ndarray]) -> HeadMaps:
    """Maps of other values."""
    dataset = maps.dataset
    values = {name: (array.dims, change(array.values)) for name, array in dataset.data_vars.items()}
    return HeadMaps(dataset.assign(values))


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([np.hypot(y - 60, x - 50) < 25, (abs(y - 70) < 30) & (abs(x - 40) < 20)])


@pytest.fixture(scope="module")
def rankings() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {concept: rng.permutation(N_HEADS) for concept in ("Animals", "Electronics", "Plants")}


@pytest.fixture
def results(maps, truth) -> HeadMaps:
    return maps.with_pictures(pictures(), truth=truth)


@pytest.fixture
def explorer(results, rankings) -> AggregationExplorer:
    return AggregationExplorer(results, rankings, heads=NAMES, k=3)


def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)


def run_in_node(folder: Path, view: ExplorerView, body: str, source: str | None = None) -> dict:
    """Run `body`, which fills `result`, beside the script, with the view's traits as `state`."""
    state = {name: view.get_state()[name] for name in view.trait_names(sync=True) if not name.startswith("_")}
    state = {name: value for name, value in state.items() if name not in ("layout", "tabbable", "tooltip", "comm")}
    for name, value in state.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
            state[name] = None
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "explorer.mjs").write_text(source or script())
    (folder / "run.mjs").write_text(
        """
import fs from "fs";
import * as core from "./explorer.mjs";
const state = JSON.parse(fs.readFileSync("state.json"));
for (const name of ["maps", "truth", "palette"]) {
  const file = fs.readFileSync(name);
  const shifted = new Uint8Array(file.length + 3);  // as in a page: bytes that start anywhere in their buffer
  shifted.set(file, 3);
  state[name] = new DataView(shifted.buffer, 3);
}
const { height, width } = state;
const load = (image) => core.decodeHeads(state.maps, state.grids, image, state.items[image].shift);
const truthOf = (image) => core.decodeMask(state.truth, state.items[image].mask, height * width);
const result = {};
"""
        + body
        + '\nfs.writeFileSync("result.json", JSON.stringify(result));\n'
    )
    subprocess.run(["node", "run.mjs"], cwd=folder, check=True, timeout=120)
    return json.loads((folder / "result.json").read_text())


SETTINGS = """
const [ks, thresholds] = SETTINGS;
const finest = core.finestHeads(state.grids);
const orders = { random: state.random_order, consensus: state.consensus[0], finest };
for (const image of [0, 1]) {
  const heads = load(image);
  for (const method of state.constants.methods) {
    for (const k of ks) {
      const chosen = core.chooseHeads(method, k, state.rankings.Animals, orders);
      const heat = core.heatmap(heads, chosen, height, width);
      const ious = thresholds.map((level) => core.iou(core.threshold(heat, level), truthOf(image)));
      result[[image, method.name, k]] = { chosen, heat: Array.from(heat), ious };
    }
  }
}
""".replace("SETTINGS", json.dumps([KS, THRESHOLDS]))


def reference_heat(maps: HeadMaps, image: int, chosen: list[int]) -> np.ndarray:
    """Equation 4 word by word: each head upsampled by itself."""
    total = torch.zeros(HEIGHT, WIDTH)
    for numbers, grid in maps.native(image):
        for number, values in zip(numbers, grid, strict=True):
            if number in chosen:
                total += F.interpolate(values[None, None], (HEIGHT, WIDTH), mode="bicubic", align_corners=False)[0, 0]
    return ((total - total.min()) / (total.max() - total.min())).numpy()


def compare(result: dict, maps: HeadMaps, truth: np.ndarray, order: np.ndarray, random: np.ndarray) -> None:
    """Equal heads, heat maps equal up to float32 rounding, and IoUs equal but for pixels that lie on the threshold."""
    for image in (0, 1):
        for method in METHODS:
            for k in KS:
                found = result[f"{image},{method},{k}"]
                chosen = {
                    "top k": order[:k],
                    "bottom k": order[-k:],
                    "consensus k": consensus(maps, k),
                    "finest grid": finest_heads(maps),
                    "random k": random[:k],
                    "all heads": order,
                }[method]
                assert sorted(found["chosen"]) == sorted(chosen.tolist())
                heat = reference_heat(maps, image, chosen.tolist())
                np.testing.assert_allclose(np.reshape(found["heat"], heat.shape), heat, atol=1e-5)
                for threshold, value in zip(THRESHOLDS, found["ious"], strict=True):
                    near = (abs(heat - threshold) < 1e-6).sum() / (heat > threshold).sum()
                    assert abs(value - iou(heat > threshold, truth[image])) <= near + 1e-12


@node
def test_the_browser_computes_equation_4_and_5(tmp_path, explorer, maps, truth, rankings):
    result = run_in_node(tmp_path, explorer.view, SETTINGS)
    compare(result, maps, truth, rankings["Animals"], np.array(explorer.view.random_order))


@node
@pytest.mark.parametrize(
    "change", [("const A = -0.75", "const A = -0.5"), ("((i * step + 0.5) * from)", "((i * step + 0.4) * from)")]
)
def test_another_kernel_would_be_noticed(tmp_path, explorer, maps, truth, rankings, change):
    source = script()
    assert source.count(change[0]) == 1
    result = run_in_node(tmp_path, explorer.view, SETTINGS, source.replace(*change))
    with pytest.raises(AssertionError):
        compare(result, maps, truth, rankings["Animals"], np.array(explorer.view.random_order))


@node
def test_full_precision_maps_lose_what_float16_loses(tmp_path, maps, truth, rankings):
    """Fresh from a capture, maps are float32: each value is off by 2**-11 of itself, bicubic weights reach 1.6."""
    fresh = changed(maps, lambda values: values.astype(np.float32) * np.float32(1.0007))
    explorer = AggregationExplorer(fresh.with_pictures(pictures(), truth=truth), rankings, k=3)
    result = run_in_node(tmp_path, explorer.view, SETTINGS)
    for k in KS:
        heat = reference_heat(fresh, 0, rankings["Animals"][:k].tolist())
        found = np.reshape(result[f"0,top k,{k}"]["heat"], heat.shape)
        assert 1e-6 < abs(found - heat).max() < 2 * 1.6 * 2**-11
        explorer.k = k  # and in a live kernel the explorer says what the page says
        np.testing.assert_allclose(found, explorer.heat, atol=1e-6)


@node
def test_half_precision_maps_are_exact(tmp_path, maps, truth, rankings):
    """What a study has stored reaches the browser bit for bit, however small."""
    stored = changed(maps, lambda values: values * np.float16(0.001 if values.shape[-1] == 12 else 1))  # subnormal
    explorer = AggregationExplorer(stored.with_pictures(pictures(), truth=truth), rankings, k=3)
    result = run_in_node(tmp_path, explorer.view, "result.heads = load(1).map((head) => Array.from(head.values));")
    for numbers, grid in stored.native(1):
        for number, values in zip(numbers, grid, strict=True):
            assert result["heads"][number] == values.flatten().tolist()


@node
def test_the_whole_curve_at_once(tmp_path, explorer, maps, truth, rankings):
    body = """
const thresholds = Array.from({ length: 91 }, (_, i) => (5 + i) / 100);
const job = core.iouCurve(load(1), state.rankings.Plants, truthOf(1), thresholds, height, width);
let step = job.next();
while (!step.done) step = job.next();
result.curve = Array.from(step.value);
"""
    curve = np.reshape(run_in_node(tmp_path, explorer.view, body)["curve"], (N_HEADS, 91))
    thresholds = [(5 + i) / 100 for i in range(91)]
    every_k = first_heads(rankings["Plants"], range(1, N_HEADS + 1))
    expected = ious(maps.with_pictures(pictures(), truth=truth).select(image=[1]), every_k, thresholds)
    np.testing.assert_allclose(curve, expected.values[0], atol=1e-3)


@node
def test_outlines_and_colours(tmp_path, explorer):
    body = """
const field = Float32Array.from({ length: 81 }, (_, i) => 1 - Math.hypot((i % 9) - 4, Math.floor(i / 9) - 4) / 4);
const points = [];
const path = { moveTo: (x, y) => points.push([x, y]), lineTo: (x, y) => points.push([x, y]) };
core.contour(path, field, 9, 9, 0.4);
result.radii = points.map(([x, y]) => Math.hypot(x - 4.5, y - 4.5));
const saddle = [];
core.contour({ moveTo: (...p) => saddle.push(p), lineTo: (...p) => saddle.push(p) }, [0, 1, 1, 0], 2, 2, 0.5);
result.saddle = saddle;
const table = core.overlayTable(new Uint8Array(fs.readFileSync("palette")), 1);
result.overlay = Array.from(core.overlay([100, 100], [0, 1], table));
const colours = [[255, 0, 0], [0, 0, 255]];
result.leaders = Array.from(core.leaders([100, 100], [[1, 0.5], [0, 0.5]], core.leadersTable(colours)));
const masks = [[1, 1, 0, 0, 1], [0, 1, 1, 0, 0]];
result.overlaps = Array.from(core.overlaps([0, 0, 0, 40, 40], masks, core.overlapsTable(colours, [0, 200, 0])));
result.memberships = core.memberships(masks);
result.sampled = core.sampled(Array.from({ length: 15 }, (_, i) => i), 3, 5, 2);
"""
    result = run_in_node(tmp_path, explorer.view, body)
    assert len(result["radii"]) > 10
    np.testing.assert_allclose(result["radii"], 2.4, atol=0.2)
    assert result["saddle"] == [[1, 0.5], [0.5, 1], [0.5, 0], [0, 0.5]] or len(result["saddle"]) == 4
    assert result["overlay"] == [68, 1, 84, 255, 253, 231, 37, 255]  # both ends of Viridis
    assert result["leaders"] == [255, 0, 0, 255, 100, 100, 100, 255]
    pixels = np.reshape(result["overlaps"], (5, 4))[:, :3].tolist()
    assert pixels == [[191, 0, 0], [0, 150, 0], [0, 0, 191], [40, 40, 40], [201, 10, 10]]
    assert result["memberships"] == [2, 1, 1]
    assert result["sampled"] == [0, 2, 4, 10, 12, 14]


@node
def test_a_heat_map_made_from_the_last_one_is_the_same(tmp_path, explorer):
    body = """
const cache = new Map();
const heads = load(0);
result.heats = [[0, 2, 4], [0, 2, 4, 5], [2], [2, 3, 7]].map((chosen) =>
  [core.heatmap(heads, chosen, height, width, cache), core.heatmap(heads, chosen, height, width)].map((h) => [...h]));
"""
    for cached, fresh in run_in_node(tmp_path, explorer.view, body)["heats"]:
        assert cached == fresh


@node
def test_what_is_drawn_of_a_heat_map_is_every_second_pixel_of_it(tmp_path, explorer):
    body = """
const [full, drawn] = [1, 2].map((step) => core.heatmap(load(0), [2, 5, 7], height, width, new Map(), step));
result.heats = [[...core.sampled(full, height, width, 2)], [...drawn]];
"""
    sampled, drawn = np.array(run_in_node(tmp_path, explorer.view, body)["heats"])
    np.testing.assert_allclose(drawn, (sampled - sampled.min()) / np.ptp(sampled), atol=1e-6)


@node
def test_the_ratio_of_attention_on_a_mask(tmp_path, explorer, results):
    """The browser, the explorer's own ranking, and the library's `attention_on`."""
    body = """
const own = load(1).map((_, head) => core.heatmap(load(1), [head], height, width));
result.ratios = own.map((heat) => core.attentionRatio(heat, truthOf(1)));
result.order = core.descending(result.ratios);
result.special = CASES.map(([heat, mask]) => core.attentionRatio(heat, mask));
"""
    cases = [([0.5, 1], [0, 0]), ([0, 0], [1, 0]), ([0, 1], [1, 0]), ([1e-7, 1e-8], [1, 0]), ([1e-7, 1], [1, 0])]
    found = run_in_node(tmp_path, explorer.view, body.replace("CASES", json.dumps(cases)))
    one = results.select(image=[1])
    expected = attention_on(one, {str(h): [h] for h in range(N_HEADS)}, {"": one.truths["truth"].values})
    np.testing.assert_allclose(found["ratios"], expected[:, 0, 0], rtol=1e-5)
    special = [attention_ratio(np.array([heat]), np.array([mask], bool)) for heat, mask in cases]
    np.testing.assert_allclose(found["special"], special, rtol=1e-6)
    assert special[:3] == [1, 1, 0]
    picker = HeadExplorer(results, {"Animals": np.arange(N_HEADS)}, heads=NAMES, k=3)
    picker.image, picker.ranking = 1, "attention on truth"
    assert picker.order.tolist() == found["order"]


def test_packing_keeps_the_promised_precision(maps):
    maps = changed(maps, lambda values: values.astype(np.float32) * np.float32(1.0007))
    every = [maps.select(image=[i], word=[1]) for i in (0, 1)]
    packed, grids, shifts = pack_maps(every)
    assert [grid["heads"] for grid in grids] == list(GRIDS.values())
    values = np.frombuffer(packed, "<f2").reshape(2, -1).astype(float) / np.exp2(shifts)[:, None]
    flat = [np.concatenate([grid.flatten() for _, grid in maps.native(i, 1)]) for i in (0, 1)]
    np.testing.assert_allclose(values, flat, rtol=2**-11)
    for one, again in zip(every, unpacked(packed, grids, shifts, maps.size), strict=True):
        assert again.size == maps.size
        for (numbers, grid), (numbers_again, grid_again) in zip(one.native(), again.native(), strict=True):
            assert numbers.tolist() == numbers_again.tolist()
            np.testing.assert_allclose(grid_again, grid, rtol=2**-11)


def test_packing_of_a_map_without_any_attention(maps):
    _, _, shifts = pack_maps([changed(maps, np.zeros_like)])
    assert shifts == [0]


def test_a_live_kernel_can_read_and_set(explorer, maps, truth, rankings):
    explorer.k, explorer.threshold, explorer.image, explorer.word = 4, 0.5, 1, "lake"
    explorer.concept, explorer.method = "Plants", "bottom k"
    view = explorer.view
    assert (view.k, view.threshold, view.image, view.word, view.concept_0, view.method) == (4, 0.5, 1, 1, 2, 1)
    expected = rankings["Plants"][-4:]
    assert sorted(explorer.heads.tolist()) == sorted(expected.tolist())
    heat = maps.heatmap("lake", expected, image=1)
    np.testing.assert_allclose(explorer.heat, heat, atol=1e-6)
    assert explorer.iou == iou(heat.values > 0.5, truth[1])
    assert explorer.mask.dims == ("y", "x")
    assert explorer.selection == {
        "word": "lake", "image": 1, "k": 4, "threshold": 0.5, "concept": "Plants", "method": "bottom k",
        "heads": explorer.heads.tolist(),
    }  # fmt: skip
    explorer.method = "all heads"
    assert len(explorer.heads) == N_HEADS
    explorer.method = "finest grid"
    assert explorer.heads.tolist() == finest_heads(maps).tolist()
    explorer.method = "random k"
    assert explorer.heads.tolist() == explorer.view.random_order[:4]
    explorer.method = "consensus k"
    assert explorer.heads.tolist() == consensus(maps, 4, word="lake").tolist()


def test_heads_can_be_picked_in_a_live_kernel(results, maps, rankings):
    explorer = HeadExplorer(results, rankings, heads=NAMES, concept="Plants", k=4)
    assert explorer.heads.tolist() == rankings["Plants"][:4].tolist()
    explorer.heads = [7, 2, 2]
    assert explorer.heads.tolist() == [2, 7] == explorer.view.picked == explorer.selection["heads"]
    np.testing.assert_array_equal(explorer.heat, maps.heatmap("bear", [2, 7]))
    explorer.heads = []
    assert not explorer.mask.any()
    explorer.k = 5  # a ranking's setting undoes what was picked by hand
    assert explorer.heads.tolist() == rankings["Plants"][:5].tolist()
    with pytest.raises(ValueError, match=r"heads \[10\] do not exist"):
        explorer.heads = [1, 10]


def test_diagnosis_in_a_live_kernel(maps, truth, rankings):
    results = maps.with_pictures(pictures(), truth_animal=truth, truth_device=~truth)
    meanings = {"bear": ["Plants", "Animals"], "lake": ["Animals", "Electronics"]}
    explorer = DiagnosisExplorer(results, rankings, heads=NAMES, concepts=meanings, k=4)
    assert explorer.concepts == ["Plants", "Animals"] and explorer.view.meanings == [[2, 0], [0, 1]]
    explorer.word = "lake"
    assert set(explorer.mask) == {"Plants", "Animals"}
    np.testing.assert_array_equal(explorer.heat["Plants"], maps.heatmap("lake", rankings["Plants"][:4]))
    assert explorer.static_html().data.count("IoU with device") == 6  # three maps, each with its alternative text


def test_other_pictures_with_the_same_heads(explorer, results, maps):
    explorer.image, explorer.word = 1, "lake"
    explorer.show(results.select(image=[1], word=[0]))
    assert (explorer.word, explorer.image, explorer.view.words, len(explorer.view.items)) == ("bear", 0, ["bear"], 1)
    np.testing.assert_array_equal(explorer.heat, maps.heatmap("bear", explorer.heads, image=1))
    with pytest.raises(ValueError, match="6 heads; this explorer is for 10"):
        explorer.show(fewer_heads(maps).with_pictures(pictures()))


def fewer_heads(maps: HeadMaps) -> HeadMaps:
    """The first 6 of the 10 heads."""
    return maps.select(head_16x12=range(3), head_8x6=range(2), head_4x3=range(1))


def test_words_and_seeds_of_a_study_become_menus(maps, truth, rankings):
    one_word = maps.select(word=[0]).with_pictures(pictures(), truth=truth).dataset
    coords = {"word": ["subject"], "subject": ("image", ["cat", "bear"]), "seed": ("image", [3, 3])}
    study = HeadMaps(one_word.assign_coords(coords))
    explorer = AggregationExplorer(study, rankings, k=2)
    assert (explorer.view.words, explorer.view.labels) == (["cat", "bear"], ["seed 3"])
    explorer.word = "bear"
    np.testing.assert_array_equal(explorer.heat, maps.heatmap("bear", explorer.heads, image=1))
    dog = HeadMaps(study.select(image=[0]).dataset.assign_coords(subject=("image", ["dog"])))
    two = AggregationExplorer([study, dog], rankings, k=2)
    assert two.view.words == ["cat", "bear", "dog"] and len(two.view.pictures) == 2
    with pytest.raises(ValueError, match="pictures of each word.*expected equally many"):
        AggregationExplorer([study, study.select(image=[0])], rankings, k=2)


def test_the_text_form_is_the_same_in_every_run(explorer):
    assert repr(explorer) == "AggregationExplorer: 4 maps, 10 heads, 3 concepts"


def test_static_pages_hold_pictures_and_numbers(explorer, capsys):
    page = explorer.static_html().data
    assert page.count("data:image/webp") == 3
    assert f"{explorer.iou:.3f}" in page
    assert "<script" not in page and "http" not in page


def test_what_is_shown_is_the_widget_and_a_still_for_pages_without_scripts(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(base, "display", lambda what, **options: shown.append(what))
    explorer._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    assert shown[1].data == f"<noscript>{explorer.static_html().data}</noscript>"


def test_relevance_objects_give_rankings_scores_and_names(results):
    scores = xr.DataArray(np.ones((1, N_HEADS)), dims=("concept", "head"), coords={"concept": ["A"], "head": NAMES})
    explorer = AggregationExplorer(results, HeadRelevance(scores), k=2)
    assert explorer.rankings["A"].tolist() == list(range(N_HEADS))
    assert explorer.view.scores == {"A": [1.0] * N_HEADS}
    assert [row["label"] for row in explorer.view.grid] == ["down 0", "up 1"]
    assert explorer.view.grid[1]["heads"] == [5, 6, 7, 8, 9]


def test_heads_without_names_stand_by_resolution(results, rankings):
    grid = AggregationExplorer(results, rankings, k=2).view.grid
    assert grid[0] == {"label": "16 × 12", "heads": [0, 1, 5, 6]}


def test_without_truth_there_is_no_iou(maps, rankings):
    explorer = AggregationExplorer(maps.with_pictures(pictures()), rankings, k=2)
    assert explorer.iou is None
    assert explorer.view.items[0]["regions"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rankings": {"Animals": [0, 1]}}, "ranking of 'Animals' has 2 entries"),
        ({"rankings": {}}, "rankings is empty"),
        ({"concept": "Nosuch"}, "'Nosuch' has no ranking"),
        ({"k": 0}, "k=0 is outside 1 to 10"),
        ({"k": 11}, "k=11 is outside 1 to 10"),
        ({"threshold": 1.5}, "threshold=1.5 is outside"),
        ({"heads": NAMES[:3]}, "heads names 3 heads"),
        ({"heads": ["x"] * N_HEADS}, "'x' is no head's name"),
    ],
)
def test_bad_arguments(results, rankings, change, message):
    with pytest.raises(ValueError, match=message):
        AggregationExplorer(**{"maps": results, "rankings": rankings, "k": 3, **change})


def test_masks_named_as_words_belong_to_these_alone(maps, truth, rankings):
    results = maps.with_pictures(pictures(), truth_bear=truth)
    explorer = AggregationExplorer(results, rankings, k=2)
    assert [item["regions"] for item in explorer.view.items] == [["truth"], ["truth"], [], []]


def test_bad_results(maps, rankings):
    with pytest.raises(ValueError, match="no pictures"):
        AggregationExplorer(maps, rankings)
    with pytest.raises(ValueError, match="pictures .* of shape"):
        AggregationExplorer(maps.with_pictures(np.zeros((2, 4, 4, 3), np.uint8)), rankings)


def test_bad_maps(maps):
    with pytest.raises(ValueError, match="negative or non-finite"):
        pack_maps([changed(maps, np.negative)])
    with pytest.raises(ValueError, match="expected each from 0 to 5"):
        pack_maps([maps.select(head_8x6=[])])
    with pytest.raises(ValueError, match="different heads"):
        pack_maps([maps, fewer_heads(maps)])


def test_bad_settings(explorer):
    with pytest.raises(ValueError, match="Heads k 11 is outside 1 to 10"):
        explorer.k = 11
    with pytest.raises(ValueError, match="'Nosuch' is not among"):
        explorer.concept = "Nosuch"
    with pytest.raises(ValueError, match="Image 7 is not among"):
        explorer.image = 7


def test_diagnosis_needs_two_or_three_concepts(results, rankings):
    for concepts in (["Animals"], {"bear": ["Animals", "Plants"], "lake": ["Animals"]}):
        with pytest.raises(ValueError, match="two or three concepts"):
            DiagnosisExplorer(results, rankings, k=3, concepts=concepts)
    with pytest.raises(ValueError, match=r"names none for \['lake'\]"):
        DiagnosisExplorer(results, rankings, k=3, concepts={"bear": ["Animals", "Plants"]})


def test_explorers_of_two_models_share_their_settings(monkeypatch, results, rankings):
    """The browser links every control of the one to its like in the other, and the menu to what is shown."""
    turned = {concept: order[::-1] for concept, order in rankings.items()}
    each = {
        "natural": AggregationExplorer(results, rankings, k=3),
        "planted": AggregationExplorer(results, turned, k=3),
    }
    links = []
    monkeypatch.setattr("ipywidgets.jslink", lambda source, target: links.append((source, target)))
    switch = ExplorerSwitch(each)
    natural, planted = (explorer.controls for explorer in each.values())
    traits = {"k": "value", "threshold": "value"}
    assert links == [
        ((switch.menu, "index"), (switch.stack, "selected_index")),
        *(((control, t), (planted[n], t)) for n, control in natural.items() for t in [traits.get(n, "index")]),
    ]
    switch.menu.value = "planted"
    assert switch.shown is each["planted"]
    with pytest.raises(ValueError, match="at least one"):
        ExplorerSwitch({})
