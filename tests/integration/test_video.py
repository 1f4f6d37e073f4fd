"""Models that draw clips, and maps (frame, y, x), on tiny models of the true classes."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from attention_truth import assert_proven
from diffusers import WanPipeline, WanTransformer3DModel
from PIL import Image
from tiny_families import build

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads
from selattn_lib.evaluation.scores import ious
from selattn_lib.explorers.drawing import draw as draw_pictures
from selattn_lib.explorers.heads import HeadExplorer
from selattn_lib.figures.pictures import compare_maps
from selattn_lib.maps.consensus import consensus
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.models.families import cross_attention_heads, find_family
from selattn_lib.models.pipelines import check_draws_pictures, load_pipeline, network_layout
from selattn_lib.studies.relevance import RelevanceStudy
from selattn_lib.studies.store import Store

MODELS = ["wan", "cogvideo", "cogvideo_turned", "cogvideo15", "hunyuan_video"]
APART = ["wan", "hunyuan_video"]  # call the network a second time with the negative prompts
TOKENS = 12
PROMPTS = ["photo of a bear", "a bear on the desk"]
WHERE = [3, 1]  # of "bear" among T5's tokens
GUIDED = {"negative_prompt": ["a dog"] * 2}
FRAME = 4 * 6  # pixels, of patches of 2 x 2 latents, for 64 x 96 pixels


def draw(name, prompt=PROMPTS, steps=2, **settings):
    """Nine pictures a clip: latents of three frames."""
    batch = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(i) for i in range(batch * settings.get("num_videos_per_prompt", 1))]
    pipe, size = build(name), {"height": 64, "width": 96, "num_frames": 9, "output_type": "latent"}
    if name == "hunyuan_video":
        pipe.guider.guidance_scale = settings.pop("guidance_scale", 3.0)
    else:
        size["max_sequence_length"] = TOKENS
    return pipe(prompt, generator=generators, num_inference_steps=steps, **size | settings).frames


@contextmanager
def handed_over(pipe):
    """Yield, for each layer, the query, the key and the mask that the model itself hands to PyTorch's attention, in
    each call."""
    layers, inside, hooks = list(cross_attention_heads(pipe)), [], []
    seen, real = [[] for _ in layers], F.scaled_dot_product_attention

    def spy(query, key, *args, **kwargs):
        if inside:
            seen[inside[-1]].append((query, key, kwargs.get("attn_mask")))
        return real(query, key, *args, **kwargs)

    for i, layer in enumerate(layers):
        module = pipe.transformer.get_submodule(layer.name)
        hooks.append(module.register_forward_pre_hook(lambda *_, i=i: inside.append(i)))
        hooks.append(module.register_forward_hook(lambda *_: inside.clear()))
    try:
        with mock.patch.object(F, "scaled_dot_product_attention", spy):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def assert_maps_equal(name, maps, seen, rows, places):
    """(clip, head, frame, y, x) is the mean over calls of the word's column of the softmax, in which CogVideoX has the
    text first, and HunyuanVideo last."""
    [found] = maps.head_maps().dataset.data_vars.values()
    assert found.dims == ("image", "word", "head_4x6", "frame", "y_4x6", "x_4x6")
    frames = found.sizes["frame"]
    for layer, calls in zip(maps.heads, seen, strict=True):
        for clip, (row, place) in enumerate(zip(rows, places, strict=True)):
            expected = 0
            for query, key, mask in calls:
                logits = query[row].double() @ key[row].double().transpose(1, 2) / query.shape[-1] ** 0.5
                logits = logits if mask is None else logits.masked_fill(~mask[row], -torch.inf)
                first = 0 if name in APART else TOKENS
                column = place + frames * FRAME * (name == "hunyuan_video")
                drawn = logits.softmax(-1)[:, first : first + frames * FRAME, column]
                expected += drawn.unflatten(1, (-1, 4, 6)).numpy() / len(calls)
            got = found.values[clip, 0, layer.first : layer.first + layer.n_heads]
            assert expected.std() > 1e-4
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_clips_under_guidance_equal_the_models_own_attention_and_change_nothing(name):
    """CogVideoX has the negative prompts' rows before the prompts'."""
    pipe, repeats = build(name), 2 if name == "wan" else 1  # the others draw one clip a prompt
    settings = GUIDED | {"num_videos_per_prompt": repeats}
    plain = draw(name, **settings)
    with handed_over(pipe) as seen, capture(pipe, ["bear"]) as maps:
        captured = draw(name, **settings)
    assert torch.equal(plain, captured)
    if name in APART:
        assert {len(calls) for calls in seen} == {4}
        rows = range(2 * repeats)
        assert_maps_equal(name, maps, [calls[::2] for calls in seen], rows, np.repeat(WHERE, repeats))
    else:
        assert {len(calls) for calls in seen} == {2}
        assert_maps_equal(name, maps, seen, [2, 3], WHERE)


@pytest.mark.parametrize("name", MODELS)
def test_one_clip_without_guidance(name):
    pipe = build(name)
    plain = draw(name, PROMPTS[0], guidance_scale=1.0)
    with handed_over(pipe) as seen, capture(pipe, "bear") as maps:
        captured = draw(name, PROMPTS[0], guidance_scale=1.0)
    assert torch.equal(plain, captured)
    assert_maps_equal(name, maps, seen, [0], WHERE[:1])
    assert maps.memory(64, 96, frames=maps.head_maps().n_frames) == 4 * 6 * maps.head_maps().n_frames * FRAME


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_puts_out_what_its_captured_attention_makes(name, monkeypatch):
    assert_proven(build(name), lambda: draw(name, steps=1), monkeypatch)


@pytest.mark.parametrize("name", MODELS)
def test_prompts_of_embeddings_made_elsewhere_are_said(name):
    pipe = build(name)
    if name == "hunyuan_video":
        kinds = [f"{of}prompt_embeds{kind}" for of in ("", "negative_") for kind in ("", "_mask", "_2", "_mask_2")]
        given = dict(zip(kinds, pipe.encode_prompt(PROMPTS[0]) + pipe.encode_prompt("a dog"), strict=True))
    else:
        embeddings, negative = pipe.encode_prompt(PROMPTS[0], max_sequence_length=TOKENS)
        given = {"prompt_embeds": embeddings, "negative_prompt_embeds": negative}
    with pytest.raises(ValueError, match="encoded elsewhere|embeddings made elsewhere"), capture(pipe, "bear"):
        pipe(height=64, width=96, num_frames=9, **given)
    with capture(pipe, "bear", prompt=PROMPTS[0]) as maps:
        pipe(height=64, width=96, num_frames=9, num_inference_steps=1, output_type="latent", **given)
    with pytest.raises(ValueError, match="cat"), capture(pipe, "bear", prompt="a bear on a cat"):
        draw(name, PROMPTS[0], steps=1)
    assert maps.head_maps().n_images == 1


@pytest.mark.parametrize("name", ["wan", "cogvideo", "cogvideo15", "hunyuan_video"])
@pytest.mark.parametrize("n_pictures", [1, 8, 9, 13])
def test_frames_cover_as_many_pictures_as_are_decoded(name, n_pictures):
    with capture(build(name), "bear") as maps:
        [clip] = draw(name, PROMPTS[0], steps=1, num_frames=n_pictures, height=16, width=16, output_type="np")
    held = maps.head_maps()
    covers = held["covers"].values
    assert covers.sum() == len(clip) and held.n_frames == len(covers)
    assert held.with_pictures([clip]).pictures.shape == (1, len(covers), 16, 16, 3)


def test_calls_at_chosen_timesteps_and_each_by_itself():
    pipe = build("wan")
    with capture(pipe, "bear") as mean, capture(pipe, "bear", per_timestep=True) as each:
        draw("wan", PROMPTS[0])
    every = each.head_maps()["maps_4x6"]
    assert every.dims == ("image", "word", "call", "head_4x6", "frame", "y_4x6", "x_4x6")
    np.testing.assert_allclose(every.mean("call"), mean.head_maps()["maps_4x6"], atol=1e-6)
    np.testing.assert_allclose(each.heatmap("bear"), mean.heatmap("bear"), atol=1e-4)


def test_timesteps_of_every_pixel_and_frames_that_change():
    """As Wan 2.2 5B hands them to its network; clips of two lengths do not fit into one block."""
    single = build("wan")
    pipe = WanPipeline(**single.components, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 64, "width": 96, "num_inference_steps": 1, "output_type": "latent"}
    with capture(pipe, "bear", timesteps=(0, 1000)) as maps:
        pipe(PROMPTS[0], num_frames=5, **settings)
    assert maps.heatmap("bear").shape == (2, 64, 96)
    with capture(single, "bear") as maps:
        draw("wan", PROMPTS[0], num_frames=5)
        draw("wan", PROMPTS[0], num_frames=9)
    with pytest.raises(RuntimeError, match=r"several sizes, \[\(2, 8, 12\), \(3, 8, 12\)\]"):
        maps.head_maps()


def test_wan_of_two_networks_is_refused_with_a_way_out():
    single = build("wan")
    both = WanPipeline(**{**single.components, "transformer_2": single.transformer}, boundary_ratio=0.9)
    with pytest.raises(ValueError, match="two networks in turn.*transformer_2"), capture(both, "bear"):
        pass
    one = WanPipeline(**{**both.components, "transformer_2": None})
    with capture(one, "bear") as maps:
        one(PROMPTS[0], height=64, width=96, num_frames=5, num_inference_steps=1, output_type="latent")
    assert maps.head_maps().n_frames == 2


def test_heads_of_wan_vote_by_the_keys_that_it_makes_of_words():
    """Eq. 3 from the model's own queries, and the keys that it makes of each word as a prompt."""
    pipe, concepts = build("wan"), {"Animals": ["bear"], "Things": ["oak tree"]}
    with handed_over(pipe) as drawn, score_heads(pipe, concepts) as votes:
        captured = draw("wan", PROMPTS[0])
    with handed_over(pipe) as alone:
        draw("wan", ["bear", "oak tree"], steps=1)
    assert torch.equal(captured, draw("wan", PROMPTS[0]))
    expected = np.zeros((2, len(votes.heads)), int)
    family, network = find_family(pipe)
    text, _ = pipe.encode_prompt("bear", do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    for layer, calls, own in zip(votes.heads, drawn, alone, strict=True):
        with torch.no_grad():
            keys = family.keys(network.get_submodule(layer.name), family.project(network, text[0, :1]))
        torch.testing.assert_close(keys[0], own[0][1][0, :, 0].flatten())
        words = torch.cat([own[0][1][0, :, :1], own[0][1][1, :, :2]], dim=1)  # "bear", then "oak" and "tree"
        for query, *_ in calls[::2]:  # each a call with the prompt and one with the negative prompt
            share = (query[0] @ words.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
            winner = (share[:, 1:].mean(-1) > share[:, 0]).int().numpy()
            expected[winner, layer.first + np.arange(layer.n_heads)] += 1
    np.testing.assert_array_equal(votes.counts()[0], expected)
    assert votes.relevance().scores.shape == (2, 6) and (expected.sum(1) > 0).all()


@pytest.mark.parametrize("given", [None, 'a bear with "cat" on the desk'])
def test_what_hunyuan_video_reads_twice_is_refused_by_name(given):
    pipe = build("hunyuan_video")
    with pytest.raises(ValueError, match="a second time"), capture(pipe, "bear", prompt=given):
        draw("hunyuan_video", 'a bear with "cat" on the desk', steps=1)


def test_heads_of_cogvideox_are_not_scored():
    with pytest.raises(ValueError, match="cannot be scored"), score_heads(build("cogvideo"), {"A": ["a"], "B": ["b"]}):
        pass


def test_the_example_of_a_call_fits_wans_network():
    with torch.device("meta"):
        network = WanTransformer3DModel(num_layers=1)
    family, _ = find_family(network)
    [drawn] = network(**family.example(network, 2, partial(torch.zeros, device="meta")), return_dict=False)
    assert drawn.shape == (2, 16, 21, 60, 104)


CLIP = np.zeros((1, 1, 2, 3, 4, 4), np.float32)
CLIP[0, 0, 0, 1, :2, :2], CLIP[0, 0, 0, 2, 2:, 2:], CLIP[0, 0, 1, 2, :, 0] = 1, 0.5, 1
LOUD = np.array([1, 8], np.float32)[:, None, None, None]  # (head, frame, y, x)


def clip_maps():
    """Three frames of 1, 4 and 4 pictures: head 0 sees nothing, then a square, then half as much of another one."""
    return HeadMaps.from_grids([([0, 1], CLIP)], ["bear"], (32, 32), covers=[1, 4, 4])


PICTURES = np.linspace(0, 1, 9)[None, :, None, None, None] * np.ones((1, 9, 32, 32, 3))


def test_a_clips_heat_map_is_normalised_over_all_of_its_frames():
    maps = clip_maps()
    heat = maps.heatmap("bear", heads=[0])
    assert heat.dims == ("frame", "y", "x")
    drawn = F.interpolate(torch.from_numpy(CLIP[0, 0, 0])[None], size=(32, 32), mode="bicubic")[0]
    np.testing.assert_allclose(heat, (drawn - drawn.min()) / (drawn.max() - drawn.min()), atol=1e-6)
    assert heat[1].max() == 1 and heat[2].max() < 0.6
    alone = [maps.select(frame=i).heatmap("bear", heads=[0]) for i in range(3)]
    assert [float(one.max()) for one in alone] == [0, 1, 1] and alone[1].dims == ("y", "x")


@pytest.mark.parametrize("normalise", ["minmax", "max", "per-head"])
def test_a_clip_of_one_frame_is_as_its_picture(normalise):
    maps = clip_maps().select(frame=[2])
    options = {"weights": [1, 3], "heads": [0, 1], "normalise": normalise}
    np.testing.assert_allclose(
        maps.heatmap(0, **options)[0], clip_maps().select(frame=2).heatmap(0, **options), atol=1e-6
    )


def test_heads_normalised_by_themselves_go_from_0_to_1_over_the_clip():
    loud = HeadMaps.from_grids([([0, 1], CLIP * LOUD)], ["bear"], (32, 32), covers=[1, 4, 4])
    each = [maps.heatmap("bear", normalise="per-head") for maps in (clip_maps(), loud)]
    np.testing.assert_allclose(each[0], each[1], atol=1e-5)
    drawn = F.interpolate(torch.from_numpy(CLIP[0, 0]), size=(32, 32), mode="bicubic")  # (head, frame, y, x)
    low, high = drawn.amin((1, 2, 3), keepdim=True), drawn.amax((1, 2, 3), keepdim=True)
    mean = ((drawn - low) / (high - low)).mean(0)
    np.testing.assert_allclose(each[0], (mean - mean.min()) / (mean.max() - mean.min()), atol=1e-5)
    assert abs(clip_maps().heatmap("bear") - loud.heatmap("bear")).max() > 0.1


def test_a_frame_keeps_the_picture_in_the_middle_of_those_that_it_covers():
    maps = clip_maps().with_pictures(PICTURES)
    assert maps.pictures.shape == (1, 3, 32, 32, 3)
    np.testing.assert_array_equal(maps.pictures[0, :, 0, 0, 0], np.round(255 * np.array([0, 3, 7]) / 8))
    assert maps.select(frame=1).pictures.shape == (1, 32, 32, 3)
    frames = [[Image.fromarray(picture) for picture in (PICTURES[0] * 255).round().astype(np.uint8)]]
    np.testing.assert_array_equal(clip_maps().with_pictures(frames).pictures, maps.pictures)
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 32, 32, 3\): expected \(1, 9, 32, 32, 3\)"):
        clip_maps().with_pictures(PICTURES[:, :8])
    with pytest.raises(ValueError, match=r"maps.select\(frame=0\)"):
        clip_maps().with_pictures(PICTURES, truth=np.zeros((1, 32, 32), bool))


def test_overlays_and_files_of_every_frame(tmp_path):
    maps = clip_maps().with_pictures(PICTURES)
    frames = maps.overlays("bear", [0])
    assert [frame.size for frame in frames] == [(256, 256)] * 3
    sheet = maps.overlay("bear", [0])
    assert sheet.size == (3 * 256, 256)
    np.testing.assert_array_equal(np.asarray(sheet)[:, 256:512], np.asarray(frames[1]))
    written = [path.name for path in maps.save(tmp_path, [0], threshold=0.75)]
    kinds = {kind: [f"000-bear-heads-0-{kind}-{i:03d}.png" for i in range(3)] for kind in ("map", "mask", "overlay")}
    assert written == [*kinds["map"], *kinds["mask"], *kinds["overlay"], "000-bear-heads-0-overlay.gif"]
    masks = [np.asarray(Image.open(tmp_path / name)) for name in kinds["mask"]]
    heat = maps.heatmap("bear", [0]).values
    for mask, one in zip(masks, heat, strict=True):
        np.testing.assert_array_equal(mask, 255 * (one > 0.75))
    assert masks[1].any() and not masks[0].any() and not masks[2].any()  # one threshold for the whole clip
    assert Image.open(tmp_path / written[-1]).n_frames == 3
    assert len(clip_maps().save(tmp_path / "plain")) == 6


def test_what_is_for_pictures_refuses_clips_by_name_and_takes_a_frame_of_them():
    maps = clip_maps().with_pictures(PICTURES)
    heads = {"all": "all"}
    uses = [
        lambda maps: consensus(maps, k=1),
        lambda maps: maps.native(),
        lambda maps: list(maps.heatmaps(np.eye(2))),
        lambda maps: ious(maps.with_pictures(maps.pictures, truth=np.ones((1, 32, 32), bool)), heads, thresholds=[0.4]),
        lambda maps: compare_maps(maps, heads, [0], labels=["bear"]),
        lambda maps: HeadExplorer(maps, {"Animals": [1, 0]}, k=1),
    ]
    for use in uses:
        use(maps.select(frame=1))
    for use in (*uses[:3], *uses[4:]):
        with pytest.raises(ValueError, match=r"clips of 3 frames, and maps of pictures.*maps\.select\(frame=0\)"):
            use(maps)
    with pytest.raises(ValueError, match="clips"):
        maps.heatmap("bear", heads="daam")


def test_stores_take_clips(tmp_path):
    maps = clip_maps().with_pictures(PICTURES)
    store = Store(tmp_path / "clips", 2)
    store.describe({"kind": "test"})
    store.write(range(2), xr.concat([maps.dataset] * 2, "image", data_vars="minimal"))
    store = Store(tmp_path / "clips", 2, read_only=True)
    assert store.is_complete(0) and store.is_complete(1)
    again = HeadMaps(store.open())
    np.testing.assert_array_equal(again.pictures, np.concatenate([maps.pictures] * 2))
    np.testing.assert_array_equal(again.heatmap("bear", image=1), maps.heatmap("bear"))
    assert again["covers"].values.tolist() == [1, 4, 4]
    maps.dataset.to_zarr(tmp_path / "plain.zarr")
    np.testing.assert_array_equal(HeadMaps(xr.open_zarr(tmp_path / "plain.zarr")).heatmap(), maps.heatmap())


def test_models_of_clips_are_loaded_by_name_and_refused_where_pictures_are_drawn(tmp_path):
    build("wan").save_pretrained(tmp_path / "wan")
    name = str(tmp_path / "wan")
    assert len(cross_attention_heads(network_layout(name))) == 6
    pipe = load_pipeline(name, device="cpu")
    assert isinstance(pipe, WanPipeline)
    study = RelevanceStudy(model=name, images=2, steps=1, concepts={"A": ["bear"], "B": ["desk"]}, texts=["a bear"])
    for refused in (
        lambda: check_draws_pictures(name),
        lambda: study.pipe,
        lambda: draw_pictures(pipe, "photo of a bear", ["bear"]),
    ):
        with pytest.raises(ValueError, match=r"draws clips: expected one that draws pictures.*maps.select\(frame=0\)"):
            refused()
