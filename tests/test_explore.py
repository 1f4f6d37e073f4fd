"""The explorers: what the browser computes against torch, and what Python hands it."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

from selattn_lib import explore
from selattn_lib.aggregate import heatmap
from selattn_lib.explore import METHODS, AggregationExplorer, DiagnosisExplorer, pack_maps
from selattn_lib.metrics import iou, study_iou_curves

GRIDS = {(16, 12): [0, 1, 5, 6], (8, 6): [2, 3, 8, 9], (4, 3): [4, 7]}
HEIGHT, WIDTH, N_HEADS = 128, 96, 10
NAMES = [f"{place}, layer: {layer}, head: {h}" for place, layer in (("down", 0), ("up", 1)) for h in range(5)]
KS, THRESHOLDS = (1, 2, 5, 10), (0.05, 0.3, 0.4, 0.55, 0.95)
SCRIPT = Path(explore.__file__).with_name("explorer.js")

node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node (any version since 18) to run explorer.js")


@pytest.fixture(scope="module")
def maps() -> xr.Dataset:
    """Two images, blobs that move from head to head, at three grids; float16, as studies store maps."""
    rng = np.random.default_rng(3)
    data, coords = {}, {"word": ["bear", "lake"]}
    for (height, width), numbers in GRIDS.items():
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
        shape = (2, 2, len(numbers))
        cy, cx, size = (rng.uniform(low, high, (*shape, 1, 1)) for low, high in ((0.3, 0.7), (0.3, 0.7), (0.1, 0.3)))
        values = 0.03 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / size**2) + 0.004 * rng.random((*shape, height, width))
        grid = f"{height}x{width}"
        dims = ("image", "word", f"head_{grid}", f"y_{grid}", f"x_{grid}")
        data[f"maps_{grid}"] = (dims, values.astype(np.float16))
        coords[f"head_{grid}"] = numbers
    return xr.Dataset(data, coords, attrs={"height": HEIGHT, "width": WIDTH, "model": "none"})


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([np.hypot(y - 60, x - 50) < 25, (abs(y - 70) < 30) & (abs(x - 40) < 20)])


@pytest.fixture(scope="module")
def rankings() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {concept: rng.permutation(N_HEADS) for concept in ("Animals", "Electronics", "Plants")}


@pytest.fixture
def explorer(maps, truth, rankings) -> AggregationExplorer:
    return AggregationExplorer(pictures(), maps, truth, rankings, ["a bear", "a lake"], heads=NAMES, k=3)


def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (2, HEIGHT, WIDTH, 3)).astype(np.uint8)


def run_in_node(folder: Path, view: explore.ExplorerView, body: str, script: str | None = None) -> dict:
    """Run `body`, which fills `result`, beside explorer.js, with the view's traits as `state`."""
    state = {name: view.get_state()[name] for name in view.trait_names(sync=True) if not name.startswith("_")}
    state = {name: value for name, value in state.items() if name not in ("layout", "tabbable", "tooltip", "comm")}
    for name, value in state.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
            state[name] = None
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "explorer.mjs").write_text(script or SCRIPT.read_text())
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
const load = (image) => core.decodeHeads(state.maps, state.grids, image, state.shifts[image]);
const truthOf = (image) => core.decodeMask(state.truth, image, height * width);
const result = {};
"""
        + body
        + '\nfs.writeFileSync("result.json", JSON.stringify(result));\n'
    )
    subprocess.run(["node", "run.mjs"], cwd=folder, check=True, timeout=120)
    return json.loads((folder / "result.json").read_text())


SETTINGS = """
const [ks, thresholds] = SETTINGS;
for (const image of [0, 1]) {
  const heads = load(image);
  for (const method of core.METHODS) {
    for (const k of ks) {
      const chosen = core.chooseHeads(method, k, state.rankings.Animals, state.random_order);
      const heat = core.heatmap(heads, chosen, height, width);
      const ious = thresholds.map((level) => core.iou(core.threshold(heat, level), truthOf(image)));
      result[[image, method, k]] = { chosen, heat: Array.from(heat), ious };
    }
  }
}
""".replace("SETTINGS", json.dumps([KS, THRESHOLDS]))


def reference_heat(maps: xr.Dataset, image: int, chosen: list[int]) -> np.ndarray:
    """Equation 4 word by word: each head upsampled by itself."""
    total = torch.zeros(HEIGHT, WIDTH)
    for (height, width), numbers in GRIDS.items():
        for slot, number in enumerate(numbers):
            if number in chosen:
                values = torch.from_numpy(maps[f"maps_{height}x{width}"].values[image, 0, slot]).float()
                total += F.interpolate(values[None, None], (HEIGHT, WIDTH), mode="bicubic", align_corners=False)[0, 0]
    return ((total - total.min()) / (total.max() - total.min())).numpy()


def compare(result: dict, maps: xr.Dataset, truth: np.ndarray, order: np.ndarray, random: np.ndarray) -> None:
    """Equal heads, heat maps equal up to float32 rounding, and IoUs within 1e-3."""
    for image in (0, 1):
        for method in METHODS:
            for k in KS:
                found = result[f"{image},{method},{k}"]
                chosen = {
                    "most relevant": order[:k],
                    "least relevant": order[-k:],
                    "random": random[:k],
                    "all": order,
                }[method]
                assert sorted(found["chosen"]) == sorted(chosen.tolist())
                heat = reference_heat(maps, image, chosen.tolist())
                np.testing.assert_allclose(np.reshape(found["heat"], heat.shape), heat, atol=1e-5)
                ious = [iou(heat > threshold, truth[image]) for threshold in THRESHOLDS]
                np.testing.assert_allclose(found["ious"], ious, atol=1e-3)


@node
def test_the_browser_computes_equation_4_and_5(tmp_path, explorer, maps, truth, rankings):
    result = run_in_node(tmp_path, explorer.view, SETTINGS)
    compare(result, maps, truth, rankings["Animals"], explorer.random_order)


@node
@pytest.mark.parametrize(
    "change", [("const A = -0.75", "const A = -0.5"), ("((i + 0.5) * from)", "((i + 0.4) * from)")]
)
def test_another_kernel_would_be_noticed(tmp_path, explorer, maps, truth, rankings, change):
    script = SCRIPT.read_text()
    assert script.count(change[0]) == 1
    result = run_in_node(tmp_path, explorer.view, SETTINGS, script.replace(*change))
    with pytest.raises(AssertionError):
        compare(result, maps, truth, rankings["Animals"], explorer.random_order)


@node
def test_full_precision_maps_lose_what_float16_loses(tmp_path, maps, truth, rankings):
    """Fresh from a capture, maps are float32: each value is off by 2**-11 of itself, bicubic weights reach 1.6."""
    fresh = maps.astype(np.float32) * np.float32(1.0007)
    explorer = AggregationExplorer(pictures(), fresh, truth, rankings, k=3)
    result = run_in_node(tmp_path, explorer.view, SETTINGS)
    for k in KS:
        heat = reference_heat(fresh, 0, rankings["Animals"][:k].tolist())
        found = np.reshape(result[f"0,most relevant,{k}"]["heat"], heat.shape)
        assert 1e-6 < abs(found - heat).max() < 2 * 1.6 * 2**-11


@node
def test_half_precision_maps_are_exact(tmp_path, maps, truth, rankings):
    """What a study has stored reaches the browser bit for bit, however small."""
    stored = maps.copy(deep=True)
    stored["maps_16x12"][:] = stored["maps_16x12"] * np.float16(0.001)  # subnormal
    explorer = AggregationExplorer(pictures(), stored, truth, rankings, k=3)
    result = run_in_node(tmp_path, explorer.view, "result.heads = load(1).map((head) => Array.from(head.values));")
    for (height, width), numbers in GRIDS.items():
        for slot, number in enumerate(numbers):
            values = stored[f"maps_{height}x{width}"].values[1, 0, slot]
            assert result["heads"][number] == values.ravel().astype(float).tolist()


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
    masks = xr.DataArray(truth, dims=("image", "y", "x"))
    expected = study_iou_curves(maps.assign(truth=masks), rankings["Plants"], thresholds)
    np.testing.assert_allclose(curve, expected.values[1], atol=1e-3)


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
result.overlay = Array.from(core.overlay([100, 100], [0, 1], new Uint8Array(fs.readFileSync("palette")), 1));
result.leaders = Array.from(core.leaders([100, 100], [[1, 0.5], [0, 0.5]], [[255, 0, 0], [0, 0, 255]]));
"""
    result = run_in_node(tmp_path, explorer.view, body)
    assert len(result["radii"]) > 10
    np.testing.assert_allclose(result["radii"], 2.4, atol=0.2)
    assert result["saddle"] == [[1, 0.5], [0.5, 1], [0.5, 0], [0, 0.5]] or len(result["saddle"]) == 4
    assert result["overlay"] == [68, 1, 84, 255, 253, 231, 37, 255]  # both ends of Viridis
    assert result["leaders"] == [255, 0, 0, 255, 100, 100, 100, 255]


def test_packing_keeps_the_promised_precision(maps):
    maps = maps.astype(np.float64) * 1.0007
    packed, grids, shifts = pack_maps(maps, "lake")
    assert [grid["heads"] for grid in grids] == list(GRIDS.values())
    values = np.frombuffer(packed, "<f2").reshape(2, -1).astype(float) / np.exp2(shifts)[:, None]
    flat = np.concatenate([maps[name].values[:, 1].reshape(2, -1) for name in maps.data_vars], axis=1)
    np.testing.assert_allclose(values, flat, rtol=2**-11)


def test_packing_of_a_map_without_any_attention(maps):
    _, _, shifts = pack_maps(maps * 0)
    assert shifts == [0, 0]


def test_a_live_kernel_can_read_and_set(explorer, maps, truth, rankings):
    explorer.k, explorer.threshold, explorer.image = 4, 0.5, 1
    explorer.concept, explorer.method = "Plants", "least relevant"
    view = explorer.view
    assert (view.k, view.threshold, view.image, view.concept_0, view.method) == (4, 0.5, 1, 2, 1)
    expected = rankings["Plants"][-4:]
    assert sorted(explorer.heads.tolist()) == sorted(expected.tolist())
    heat = heatmap(maps, expected, image=1)
    np.testing.assert_allclose(explorer.heat, heat, atol=1e-6)
    assert explorer.iou == iou(heat.values > 0.5, truth[1])
    assert explorer.mask.dims == ("y", "x")
    explorer.method = "all"
    assert len(explorer.heads) == N_HEADS
    explorer.method = "random"
    assert explorer.heads.tolist() == explorer.random_order[:4].tolist()


def test_diagnosis_in_a_live_kernel(maps, truth, rankings):
    explorer = DiagnosisExplorer(
        pictures(), maps, rankings, heads=NAMES, truths={"animal": truth, "device": ~truth}, k=4, word="lake"
    )
    assert explorer.view.word == "lake"
    assert explorer.view.n_concepts == 2
    assert set(explorer.mask) == {"Animals", "Electronics"}
    np.testing.assert_array_equal(explorer.heat["Electronics"], heatmap(maps, rankings["Electronics"][:4], word="lake"))
    assert explorer.still().data.count("IoU with device") == 6  # three maps, each with its alternative text


def test_the_text_form_is_the_same_in_every_run(explorer):
    assert repr(explorer) == "AggregationExplorer: 2 images, 10 heads, 3 concepts"


def test_stills_hold_pictures_and_numbers(explorer):
    page = explorer.still().data
    assert page.count("data:image/webp") == 3
    assert f"{explorer.iou:.3f}" in page
    assert "<script" not in page and "http" not in page


def test_relevance_objects_give_rankings_and_names(maps, truth):
    class Relevance:
        scores = xr.DataArray(
            np.zeros((1, N_HEADS)), dims=("concept", "head"), coords={"concept": ["A"], "head": NAMES}
        )

        def ranking(self, concept: str) -> np.ndarray:
            return np.arange(N_HEADS)

    explorer = AggregationExplorer(pictures(), maps, truth, Relevance(), k=2)
    assert explorer.rankings["A"].tolist() == list(range(N_HEADS))
    assert [row["label"] for row in explorer.view.grid] == ["down 0", "up 1"]
    assert explorer.view.grid[1]["heads"] == [5, 6, 7, 8, 9]


def test_a_word_of_each_image_is_not_named(maps, truth, rankings):
    renamed = maps.assign_coords(word=["subject", "lake"])
    assert AggregationExplorer(pictures(), renamed, truth, rankings, k=2).view.word == ""


def test_without_truth_there_is_no_iou(maps, rankings):
    explorer = AggregationExplorer(pictures(), maps, None, rankings, k=2)
    assert explorer.iou is None
    assert explorer.view.regions == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "images has dtype uint8 and shape"),
        ({"truth": np.zeros((1, HEIGHT, WIDTH), bool)}, "mask 'truth' has shape"),
        ({"labels": ["one"]}, "1 labels for 2 images"),
        ({"rankings": {"Animals": [0, 1]}}, "ranking of 'Animals' has 2 entries"),
        ({"rankings": {}}, "rankings is empty"),
        ({"concept": "Nosuch"}, "'Nosuch' has no ranking"),
        ({"k": 0}, "k=0 is outside 1 to 10"),
        ({"k": 11}, "k=11 is outside 1 to 10"),
        ({"threshold": 1.5}, "threshold=1.5 is outside"),
        ({"heads": NAMES[:3]}, "heads names 3 heads"),
        ({"heads": ["x"] * N_HEADS}, "'x' is no head's name"),
        ({"word": "cat"}, "word 'cat' is not in these maps"),
    ],
)
def test_bad_arguments(maps, truth, rankings, change, message):
    arguments = {"images": pictures(), "maps": maps, "truth": truth, "rankings": rankings, "k": 3, **change}
    with pytest.raises(ValueError, match=message):
        AggregationExplorer(**arguments)


def test_bad_maps(maps):
    with pytest.raises(ValueError, match="no maps_HxW"):
        pack_maps(xr.Dataset())
    with pytest.raises(ValueError, match="negative or non-finite"):
        pack_maps(-maps)
    with pytest.raises(ValueError, match="Each head number"):
        pack_maps(maps.drop_vars("maps_8x6"))


def test_bad_settings(explorer):
    with pytest.raises(ValueError, match="Heads k 11 is outside 1 to 10"):
        explorer.k = 11
    with pytest.raises(ValueError, match="'Nosuch' is not among"):
        explorer.concept = "Nosuch"
    with pytest.raises(ValueError, match="Image 7 is not among"):
        explorer.image = 7


def test_diagnosis_needs_two_or_three_concepts(maps, rankings):
    with pytest.raises(ValueError, match="two or three concepts"):
        DiagnosisExplorer(pictures(), maps, rankings, concepts=["Animals"])
