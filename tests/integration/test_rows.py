"""Whose attention is captured: the picture's, in all the ways in which people run a pipeline, or a refusal says why."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from unittest import mock

import diffusers
import numpy as np
import pytest
import tiny_families
import tiny_sd
import torch
from attention_truth import assert_captured, attention_seen
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from PIL import Image

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads

BEAR, DESK = "photo of a bear", "a bear on the desk"  # where "bear" is token 4, and token 2
CONCEPTS = {"Animals": ["bear", "cat"], "Things": ["desk", "lamp"]}


@cache
def build(kind="sd", scheduler=None, channels=4, time_cond=None, **options):
    """A tiny pipeline of a class of diffusers, or of a family."""
    if kind in ("sd", "sd3", "flux", "sdxl"):
        return tiny_sd.build_pipeline() if kind == "sd" else getattr(tiny_families, f"build_{kind}")()
    sdxl = "XL" in kind
    parts = {**build("sdxl" if sdxl else "sd").components}
    if scheduler:
        parts["scheduler"] = getattr(diffusers, scheduler)()
    if channels != 4 or time_cond:
        changed = {"in_channels": channels, "time_cond_proj_dim": time_cond}
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, **changed).eval()
    if "ControlNet" in kind:
        options["controlnet"] = diffusers.ControlNetModel.from_unet(parts["unet"])
    if "Adapter" in kind:
        options["adapter"] = diffusers.T2IAdapter(3, [16, 32, 32, 32], 1, downscale_factor=8).eval()
    options |= {"add_watermarker": False} if sdxl else {"requires_safety_checker": False}
    pipe = getattr(diffusers, kind)
    accepted = pipe.__init__.__code__.co_varnames
    parts = {name: part for name, part in parts.items() if name in accepted}
    pipe = pipe(**parts, **{name: value for name, value in options.items() if name in accepted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt=BEAR, steps=2, **settings):
    settings = {"height": 64, "width": 64, "output_type": "latent"} | settings
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, generator=generator, **settings)


def embedded(pipe, *prompts):
    """(row, token, channel) embeddings of prompts, each encoded by itself."""
    return torch.cat([pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])


def latents(seed=0):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def loop(pipe, texts, positive, steps=2, start=None):
    """A loop of one's own: every call of the network sees one row for each text; guidance towards row `positive`."""
    x = latents() if start is None else start
    pipe.scheduler.set_timesteps(steps)
    for t in pipe.scheduler.timesteps:
        noise = pipe.unet(x.repeat(len(texts), 1, 1, 1), t, torch.cat(texts)).sample
        x = pipe.scheduler.step(noise[positive : positive + 1], t, x).prev_sample


def in_two_calls(pipe, positive, negative, first="negative", steps=2):
    x = latents()
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            texts = (negative, positive) if first == "negative" else (positive, negative)
            noise = [pipe.unet(x, t, text).sample for text in texts]
            x = pipe.scheduler.step(noise[0] + noise[1], t, x).prev_sample


def negative_encoded_first(pipe):
    negative, positive = embedded(pipe, BEAR), embedded(pipe, DESK)
    draw(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)


def encoded_in_the_callback(pipe):
    def swap(pipe, step, timestep, tensors):
        if step == 1:
            positive, negative = pipe.encode_prompt(DESK, "cpu", 1, True)
            tensors["prompt_embeds"] = torch.cat([negative, positive])
        return tensors

    draw(pipe, steps=2, callback_on_step_end=swap, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def swapped_in(pipe):
    positive, negative = pipe.encode_prompt(DESK, "cpu", 1, True)
    swap = {"prompt_embeds": torch.cat([negative, positive])}
    draw(pipe, callback_on_step_end=lambda *_: swap, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def written_over(pipe):
    later = embedded(pipe, DESK)

    def write(pipe, step, timestep, tensors):
        tensors["prompt_embeds"][1] = later[0]
        return {}

    draw(pipe, callback_on_step_end=write, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def encoded_together(pipe):
    ids = pipe.tokenizer(["", BEAR], padding="max_length", max_length=20, return_tensors="pt").input_ids
    with torch.no_grad():
        empty, bear = pipe.text_encoder(ids)[0].split(1)
    loop(pipe, [empty, bear], 1)


def attend_and_excite(pipe):
    settings = {"token_indices": [4], "height": 128, "width": 128, "num_inference_steps": 2, "output_type": "latent"}
    pipe(BEAR, max_iter_to_alter=1, attn_res=(4, 4), generator=torch.Generator().manual_seed(0), **settings)


PAG = {"pag_applied_layers": "mid"}
CUTOFF = {
    "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5),
    "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
}
# name -> (pipeline, what is done with it, the rows of its pictures in every call, the word's places, calls that count)
CAPTURED = {
    "negative prompt of the same words": (("sd",), lambda p: draw(p, BEAR, negative_prompt=DESK), [1], [[4]], None),
    "negative embeddings encoded first": (("sd",), negative_encoded_first, [1], [[2]], None),
    "embeddings swapped for ones encoded in a callback": (
        ("sd",), encoded_in_the_callback, [1], {0: [4], 1: [4], 2: [2]}, None
    ),
    "guidance that ends half-way": (("sd",), lambda p: draw(p, steps=4, **CUTOFF), [-1], [[4]], None),
    "perturbed attention": (
        ("StableDiffusionPAGPipeline",), lambda p: draw(p, pag_scale=3.0), [1], [[4]], None
    ),
    "perturbed attention, two prompts": (
        ("StableDiffusionPAGPipeline",), lambda p: draw(p, [BEAR, DESK], pag_scale=3.0), [2, 3], [[4], [2]], None
    ),
    "perturbed attention without other guidance": (
        ("StableDiffusionPAGPipeline",), lambda p: draw(p, pag_scale=3.0, guidance_scale=1.0), [0], [[4]], None
    ),
    "edits beside the prompt (SEGA)": (
        ("SemanticStableDiffusionPipeline",),
        lambda p: draw(p, editing_prompt=["a blue cat", DESK], edit_warmup_steps=0), [1], [[4]], None,
    ),
    "self-attention guidance": (
        ("StableDiffusionSAGPipeline", "DDIMScheduler"),
        lambda p: draw(p, height=128, width=128), [1], [[4]], slice(None, None, 2),
    ),
    "attend and excite": (("StableDiffusionAttendAndExcitePipeline",), attend_and_excite, [-1], [[4]], "guided"),
    "free U": (("sd",), lambda p: (p.enable_freeu(0.9, 0.2, 1.2, 1.4), draw(p), p.disable_freeu()), [1], [[4]], None),
    "timesteps of one's own": (
        ("StableDiffusionPipeline", "EulerDiscreteScheduler"),
        lambda p: draw(p, steps=None, timesteps=[900, 500, 100]), [1], [[4]], None,
    ),
    "a loop with the prompt first": (
        ("sd",), lambda p: loop(p, [embedded(p, BEAR), embedded(p, "")], 0), [0], [[4]], None
    ),
    "texts encoded together": (("sd",), encoded_together, [1], [[4]], None),
    "a loop with the negative in a call of its own": (
        ("sd",), lambda p: in_two_calls(p, embedded(p, BEAR), embedded(p, "")), [0], [[4]], slice(1, None, 2)
    ),
    "embeddings swapped for ones encoded before, in the block": (("sd",), swapped_in, [1], {0: [4], 1: [2]}, None),
    "embeddings written over": (("sd",), written_over, [1], {0: [4], 1: [2]}, None),
    "instructions to change a picture": (
        ("StableDiffusionInstructPix2PixPipeline", None, 8),
        lambda p: p(BEAR, image=torch.rand(1, 3, 64, 64), num_inference_steps=2, output_type="pt"), [0], [[4]], None,
    ),
    "a model that needs no guidance (LCM)": (
        ("LatentConsistencyModelPipeline", "LCMScheduler", 4, 16), lambda p: draw(p), [0], [[4]], None
    ),
    "a control network": (
        ("StableDiffusionControlNetPipeline",), lambda p: draw(p, image=torch.rand(1, 3, 64, 64)), [1], [[4]], None
    ),
    "an adapter of sketches (T2I)": (
        ("StableDiffusionAdapterPipeline",), lambda p: draw(p, image=torch.rand(1, 3, 64, 64)), [1], [[4]], None
    ),
    "the same latents for two prompts": (
        ("sd",), lambda p: draw(p, [BEAR, DESK], latents=latents().repeat(2, 1, 1, 1)), [2, 3], [[4], [2]], None
    ),
    "twice the same picture": (
        ("sd",), lambda p: draw(p, [BEAR] * 2, latents=latents().repeat(2, 1, 1, 1)), [2, 3], [[4], [4]], None
    ),
    "the prompt as its own negative": (("sd",), lambda p: draw(p, negative_prompt=BEAR), [1], [[4]], None),
    "the second picture's prompt as its own negative": (
        ("sd",), lambda p: draw(p, [BEAR] * 2, negative_prompt=[DESK, BEAR]), [2, 3], [[4], [4]], None
    ),
    "the first picture's prompt as its own negative": (
        ("sd",), lambda p: draw(p, [BEAR] * 2, negative_prompt=[BEAR, DESK]), [2, 3], [[4], [4]], None
    ),
    "all prompts as their own negatives": (
        ("sd",), lambda p: draw(p, [BEAR, DESK], negative_prompt=[BEAR, DESK]), [2, 3], [[4], [2]], None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURED)
def test_the_pictures_own_rows(name):
    how, run, rows, columns, calls = CAPTURED[name]
    pipe = build(*how, **(PAG if "PAG" in how[0] else {}))
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        run(pipe)
    if isinstance(columns, dict):  # other places from some call on
        places, columns = columns, [[0]]
        for layer in seen:
            for call, attention in enumerate(layer):
                attention[..., 0] = attention[..., places[min(call, max(places))]].mean(dim=-1)
    if calls == "guided":  # not those that look at the prompt's row alone, to change the latents
        calls = [i for i, call in enumerate(seen[0]) if len(call) == 2]
    assert_captured(maps, seen, rows, columns, slice(None) if calls is None else calls)


GIVEN = {
    "negative first, in calls of their own": lambda p, bear, desk: in_two_calls(p, bear, desk),
    "negative last, in calls of their own": lambda p, bear, desk: in_two_calls(p, bear, desk, first="positive"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_loop_with_embeddings_from_outside_and_the_prompt_given(name):
    pipe = build()
    bear, desk = embedded(pipe, BEAR, DESK).split(1)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=BEAR) as maps:
        GIVEN[name](pipe, bear, desk)
    assert_captured(maps, seen, [0], [[4]], slice("first" in name, None, 2))


def test_three_rows_a_picture_with_the_prompt_given():
    pipe = build()
    bear, desk, cat = embedded(pipe, BEAR, DESK, "a cat").split(1)
    for order, row in (([bear, desk, cat], 0), ([desk, bear, cat], 1), ([cat, desk, bear], 2)):
        with attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=BEAR) as maps:
            loop(pipe, order, row)
        assert_captured(maps, seen, [row], [[4]])


def test_copies_that_guidance_perturbs_in_a_loop_are_no_pictures():
    """Perturbed attention without other guidance: the picture's row, and the same again for the perturbed layers."""
    pipe = tiny_sd.build_pipeline()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(PAGIdentitySelfAttnProcessor2_0())
    bear = embedded(pipe, BEAR)
    with pytest.raises(ValueError, match=r"2 rows of which 1 differ .* copies that guidance perturbs\? .*prompt=\["):
        with capture(pipe, ["bear"]):
            loop(pipe, [embedded(pipe, BEAR)] * 2, 0)
    for prompt, rows in ((BEAR, [0]), ([BEAR], [0]), ([BEAR, BEAR], [0, 1])):
        with attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=prompt) as maps:
            loop(pipe, [bear, bear], 0)
        assert_captured(maps, seen, rows, [[4]] * len(rows))


@torch.no_grad()
def with_reference(pipe, text, block=nullcontext):
    """A loop of one's own that shows the network something else with the prompt before each step."""
    x = latents()
    pipe.scheduler.set_timesteps(4)
    for t in pipe.scheduler.timesteps:
        pipe.unet(x + 1, t, text)
        with block():
            noise = pipe.unet(x, t, text).sample
        x = pipe.scheduler.step(noise, t, x).prev_sample


def test_references_in_a_loop_are_refused_and_the_way_out_works():
    pipe, blocks = build(), []
    text = embedded(pipe, BEAR)
    with pytest.raises(ValueError, match="is shown the prompt 2 times at timestep .*around each call that draws"):
        with capture(pipe, ["bear"], prompt=BEAR):
            with_reference(pipe, text)

    @contextmanager
    def block():
        with capture(pipe, ["bear"], prompt=BEAR) as maps:
            yield
        blocks.append(maps)

    with attention_seen(pipe) as seen:
        with_reference(pipe, text, block)
    assert len(blocks) == 5
    for call, maps in enumerate(blocks):
        assert_captured(maps, seen, [0], [[4]], [2 * call + 1])


def test_a_layer_that_is_skipped_keeps_the_mean_of_the_calls_it_ran_in():
    """As DeepCache does it: every second call of the network takes the deep blocks' outputs of the one before."""
    pipe, calls = tiny_sd.build_pipeline(), []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(len(calls)))

    def cache_output(block):
        forward, kept = block.forward, []

        def run(*args, **kwargs):
            if calls[-1] % 2 == 0:
                kept[:] = [forward(*args, **kwargs)]
            return kept[0]

        block.forward = run

    for block in (*pipe.unet.down_blocks[1:], pipe.unet.mid_block, *pipe.unet.up_blocks[:-1]):
        cache_output(block)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        draw(pipe, steps=4)
    assert {len(layer) for layer in seen} == {5, 3}
    assert_captured(maps, seen, [1], [[4]])
    with pytest.raises(RuntimeError, match="skip no layers"), capture(pipe, ["bear"], per_timestep=True) as maps:
        draw(pipe, steps=4)
        maps.head_maps()


@pytest.mark.parametrize("mask", [False, True])
def test_edits_of_a_picture_that_was_inverted_before_the_block(mask):
    """LEDITS++, also where a processor of its own makes masks of the attention."""
    pipe = build("LEditsPPPipelineStableDiffusion", "DPMSolverMultistepScheduler")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    pipe.invert(image=Image.new("RGB", (128, 128), "red"), num_inversion_steps=4, height=128, width=128)

    def edit(*edits):
        pipe(editing_prompt=[*edits], edit_guidance_scale=[5.0] * len(edits), edit_threshold=[0.7] * len(edits),
             use_cross_attn_mask=mask, output_type="latent")  # fmt: skip

    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        edit(BEAR)
    assert_captured(maps, seen, [1], [[4]])
    with pytest.raises(ValueError, match="same latents with .*: which of them is the prompt"):
        with capture(pipe, ["bear"]):
            edit("a cat", BEAR)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=BEAR) as maps:
        edit("a cat", BEAR)
    assert_captured(maps, seen, [2], [[4]])


def test_a_scheduler_that_needs_two_calls_a_timestep():
    pipe = build("StableDiffusionPipeline", "HeunDiscreteScheduler")
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        loop(pipe, [embedded(pipe, ""), embedded(pipe, BEAR)], 1, steps=3)
    assert len(seen[0]) == 5
    assert_captured(maps, seen, [1], [[4]])


def test_two_prompts_given_for_one_picture_are_refused_and_for_two_are_not():
    pipe = build()
    bear, desk = embedded(pipe, BEAR, DESK).split(1)
    with pytest.raises(ValueError, match="the same latents with .*: which of them is the prompt"):
        with capture(pipe, ["bear"], prompt=[BEAR, DESK]):
            loop(pipe, [bear, desk], 0)
    with torch.no_grad(), capture(pipe, ["bear"], prompt=[BEAR, DESK]) as maps:
        pipe.scheduler.set_timesteps(2)
        x = latents().repeat(2, 1, 1, 1)  # two pictures of the same noise
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t, torch.cat([bear, desk])).sample, t, x).prev_sample
    assert maps.head_maps().n_images == 2


@pytest.mark.parametrize("before", [False, True])
def test_two_loops_make_two_pictures(before):
    """Also with the same embeddings, where only the timesteps say that another picture begins."""
    pipe = build()
    with torch.no_grad(), attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        texts = [embedded(pipe, text) for text in ("", BEAR, DESK)]
        loop(pipe, texts[:2], 1)
        loop(pipe, texts[:2] if before else [texts[0], texts[2]], 1, start=latents(1))
    first, second = maps.head_maps().select(image=0), maps.head_maps().select(image=1)
    assert maps.head_maps().n_images == 2
    n_calls = len(seen[0]) // 2
    for image, place in ((first, 4), (second, 4 if before else 2)):
        calls = slice(0, n_calls) if image is first else slice(n_calls, None)
        assert_captured(mock.Mock(heads=maps.heads, head_maps=lambda image=image: image), seen, [1], [[place]], calls)


def test_sdxl_with_perturbed_attention():
    pipe = build("StableDiffusionXLPAGPipeline", **PAG)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        with score_heads(pipe, CONCEPTS) as votes:
            draw(pipe, [BEAR, DESK], steps=1, pag_scale=3.0)
    assert_captured(maps, seen, [2, 3], [[4], [2]])
    assert votes.counts().sum("concept").values.tolist() == [[1] * 1300] * 2


def test_a_negative_prompt_of_flux_in_the_batch():
    """Guidance of one's own: one call with the negative prompt's row and the prompt's."""
    pipe = build("flux")
    encode = {"prompt_2": None, "max_sequence_length": 12}
    with torch.no_grad(), attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=BEAR) as maps:
        (desk, pooled, text_ids), (bear, _, _) = (pipe.encode_prompt(text, **encode) for text in (DESK, BEAR))
        pipe.transformer(
            torch.randn(1, 24, 16).repeat(2, 1, 1), torch.cat([desk, bear]), pooled.repeat(2, 1), torch.full((2,), 0.5),
            pipe._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32), text_ids, guidance=torch.tensor([3.5] * 2),
        )  # fmt: skip
    assert_captured(maps, [[call[:, :, 12:] for call in layer] for layer in seen], [1], [[3]])


def test_modular_pipelines_whose_guidance_calls_once_for_each_text():
    guiders = pytest.importorskip("diffusers.guiders")
    modular = pytest.importorskip("diffusers.modular_pipelines")
    pipe = modular.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {name: part for name, part in build("sdxl").components.items() if part is not None}
    pipe.update_components(**parts, guider=guiders.ClassifierFreeGuidance(guidance_scale=7.5))
    pipe.set_progress_bar_config(disable=True)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps, score_heads(pipe, CONCEPTS) as votes:
        pipe(prompt=BEAR, negative_prompt=DESK, height=64, width=64, num_inference_steps=1, output="images",
             output_type="latent")  # fmt: skip
    assert len(seen[0]) == 2 and (votes.counts().sum("concept") == 1).all()
    right = [call for call in range(2) if _is(maps, seen, call)]
    assert len(right) == 1


def _is(maps, seen, call):
    try:
        assert_captured(maps, seen, [0], [[4]], [call])
    except AssertionError:
        return False
    return True


def swapped(pipe):
    """Prompt editing with embeddings made before the block."""
    positive, negative = pipe.encode_prompt(DESK, "cpu", 1, True)
    settings = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    swap = {"prompt_embeds": torch.cat([negative, positive])}
    return lambda: draw(pipe, steps=3, callback_on_step_end=lambda *_: swap, **settings)


def panorama(pipe):
    return lambda: draw(pipe, height=64, width=576, steps=1)


def crop(pipe):
    mask = np.zeros((64, 64), np.uint8)
    mask[30:50, 30:50] = 255
    settings = {"image": Image.new("RGB", (64, 64)), "mask_image": Image.fromarray(mask)}
    return lambda: pipe(BEAR, padding_mask_crop=8, height=64, width=64, num_inference_steps=2, **settings)


def composed(pipe):
    """Several prompts for one picture, as in composable diffusion."""
    return lambda: loop(pipe, [embedded(pipe, ""), embedded(pipe, BEAR), embedded(pipe, DESK)], 1)


def negative_in_a_loop(pipe):
    return lambda: loop(pipe, [embedded(pipe, DESK), embedded(pipe, BEAR)], 1)


def negative_in_a_loop_of_two_calls(pipe):
    return lambda: in_two_calls(pipe, embedded(pipe, BEAR), embedded(pipe, DESK))


def reference(pipe):
    """Each step shows the network a reference first, with the prompt."""

    def run():
        texts, scale = embedded(pipe, "", BEAR), pipe.scheduler.scale_model_input

        def show_reference_first(x, t):
            pipe.unet(x + 1, t, texts)
            return scale(x, t)

        with mock.patch.object(pipe.scheduler, "scale_model_input", show_reference_first):
            draw(pipe, steps=4)

    return run


REFUSED = {
    "embeddings from outside half-way": (
        "sd",
        swapped,
        "encoded elsewhere, while the pipeline was called with prompt=",
    ),
    "panorama": ("StableDiffusionPanoramaPipeline", panorama, "64 x 576 pixels, but the network is shown 64 x 512"),
    "crop": ("StableDiffusionInpaintPipeline", crop, "padding_mask_crop shows the network a part"),
    "references beside the picture": ("sd", reference, "more often than the scheduler has timesteps"),
    "two texts on one picture": ("sd", composed, "same latents with .*: which of them is the prompt"),
    "guess mode": (
        "StableDiffusionControlNetPipeline",
        lambda p: lambda: draw(p, image=torch.rand(1, 3, 64, 64), guess_mode=True, negative_prompt=BEAR),
        "which row is whose is not clear",
    ),
    "negative prompt in a loop": ("sd", negative_in_a_loop, "which of them is the prompt"),
    "negative prompt in a loop of two calls": ("sd", negative_in_a_loop_of_two_calls, "prompt=..."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_pictures_is_refused(name):
    kind, prepare, said = REFUSED[name]
    pipe = build(kind, "DDIMScheduler") if "Panorama" in kind else build(kind)
    run = prepare(pipe)
    hooks = tiny_sd.count_hooks(pipe)  # transformers has some of its own
    with pytest.raises(ValueError, match=said), capture(pipe, ["bear"]):
        run()
    assert tiny_sd.count_hooks(pipe) == hooks and "_call_listeners" not in vars(type(pipe))


def test_calls_for_a_gradient_do_not_draw():
    pipe = build()
    with pytest.raises(ValueError, match="draw under torch.no_grad"), capture(pipe, ["bear"]):
        loop.__wrapped__(pipe, [embedded(pipe, ""), embedded(pipe, BEAR)], 1)


def test_the_prompt_given_helps_where_the_error_says_so():
    pipe = build()
    for run, calls in (
        (negative_in_a_loop(pipe), slice(None)),
        (negative_in_a_loop_of_two_calls(pipe), slice(1, None, 2)),
    ):
        with attention_seen(pipe) as seen, capture(pipe, ["bear"], prompt=BEAR) as maps:
            run()
        assert_captured(maps, seen, [-1], [[4]], calls)


def test_a_prompt_that_is_not_what_the_model_reads_is_refused():
    pipe = build()
    text = embedded(pipe, BEAR)
    for settings in ({"prompt_embeds": text}, {"prompt_embeds": text, "negative_prompt_embeds": embedded(pipe, DESK)}):
        with pytest.raises(ValueError, match="not what its text encoder makes of prompt="):
            with capture(pipe, ["bear"], prompt="a (bear)1.5"):
                draw(pipe, None, **settings)
    with pytest.raises(ValueError, match="not shown what the model makes of"):
        with capture(pipe, ["bear"], prompt="a dog and a bear"):
            loop(pipe, [embedded(pipe, ""), text], 1)


def test_weighted_words_keep_their_places():
    """As compel and others weigh them: away from the empty prompt's embedding, or from zero."""
    pipe = build()
    text, empty = embedded(pipe, DESK, "").split(1)
    weights = torch.ones(1, 20, 1)
    weights[:, 2] = 1.5
    for weighted in (empty + weights * (text - empty), text * weights):
        for given in (None, DESK):
            with attention_seen(pipe) as seen, capture(pipe, ["desk"], prompt=given) as maps:
                if given is None:
                    embedded(pipe, DESK, "")  # inside the block, as compel does
                draw(pipe, None, prompt_embeds=weighted, negative_prompt_embeds=empty)
            assert_captured(maps, seen, [1], [[5]])
    with pytest.raises(ValueError, match="embeddings made elsewhere"), capture(pipe, ["desk"]):
        draw(pipe, None, prompt_embeds=(text + embedded(pipe, BEAR)) / 2, negative_prompt_embeds=empty)


def test_prompts_longer_than_the_encoder_in_parts():
    pipe = build()
    first, second = embedded(pipe, "a cat and a dog", DESK).split(1)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        first, second, empty = embedded(pipe, "a cat and a dog", DESK, "").split(1)
        draw(pipe, None, prompt_embeds=torch.cat([first, second], 1), negative_prompt_embeds=torch.cat([empty] * 2, 1))
    assert_captured(maps, seen, [1], [[22]])


def test_text_encoders_that_are_gone():
    pipe = build("flux")
    text, pooled, _ = pipe.encode_prompt(BEAR, None, max_sequence_length=12)
    settings = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": 64, "width": 64}
    settings |= {"num_inference_steps": 1, "output_type": "latent"}
    gone = {"text_encoder": None, "text_encoder_2": None}
    small = type(pipe)(**{**pipe.components, **gone})
    small.set_progress_bar_config(disable=True)
    with attention_seen(small) as seen, pytest.warns(UserWarning, match="text encoder is gone"):
        with capture(small, ["bear"], prompt=BEAR) as maps:
            small(**settings)
    assert_captured(maps, [[call[:, :, 12:] for call in layer] for layer in seen], [0], [[3]])
    smaller = type(pipe)(**{**small.components, "tokenizer": None, "tokenizer_2": None})
    with pytest.raises(ValueError, match="FluxPipeline has no tokenizer_2"), capture(smaller, ["bear"], prompt=BEAR):
        pass


def test_another_thread_may_use_the_pipeline_meanwhile():
    pipe = build()

    def interrupt(*_):
        with ThreadPoolExecutor(1) as other:
            other.submit(draw, pipe, "a cat", 1).result()
        return {}

    # Schedulers are not for two threads at once, so the other has one of its own in any real program.
    scheduler = pipe.scheduler
    with capture(pipe, ["bear"]) as alone:
        loop(pipe, [embedded(pipe, ""), embedded(pipe, BEAR)], 1)
    with capture(pipe, ["bear"]) as maps, torch.no_grad():
        texts = torch.cat([embedded(pipe, ""), embedded(pipe, BEAR)])
        x = latents()
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps.tolist():
            noise = pipe.unet(x.repeat(2, 1, 1, 1), t, texts).sample
            state = dict(vars(scheduler))
            interrupt()
            vars(scheduler).update(state)
            x = scheduler.step(noise[1:], t, x).prev_sample
    assert maps.head_maps().n_images == 1
    for numbers, values in maps.head_maps().native(0):
        expected = next(v for n, v in alone.head_maps().native(0) if n.tolist() == numbers.tolist())
        np.testing.assert_allclose(values, expected, atol=1e-5)
    with capture(pipe, ["bear"]) as maps, ThreadPoolExecutor(1) as other:
        other.submit(draw, pipe).result()
    with pytest.raises(RuntimeError, match="by another thread"):
        maps.head_maps()


def test_blocks_may_end_in_any_order():
    pipe = build()
    kind, one, two = type(pipe), capture(pipe, ["bear"]), capture(pipe, ["a"])
    first, _ = one.__enter__(), two.__enter__()
    draw(pipe, steps=1)
    one.__exit__(None, None, None)
    draw(pipe, steps=1)
    two.__exit__(None, None, None)
    assert type(pipe) is kind and tiny_sd.count_hooks(pipe) == 0
    assert first.head_maps().n_images == 1


def test_attention_that_is_not_finite_raises_at_once_with_layer_and_call():
    pipe = tiny_sd.build_pipeline()
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    def overflow(pipe, step, timestep, tensors):
        if step == 1:
            with torch.no_grad():
                layer.to_k.weight[0, 0] = float("inf")
        return {}

    mid, up = "mid_block.attentions.0", "up_blocks.1.attentions.0"  # which is the next to see what mid put out
    for block, name in ((capture(pipe, ["bear"]), mid), (score_heads(pipe, CONCEPTS), up)):
        said = f"{name}.transformer_blocks.0.attn2 is NaN or infinite in call 3"
        layer.to_k.weight.data.nan_to_num_(0, 0)
        with pytest.raises(ValueError, match=said), block:
            draw(pipe, steps=4, callback_on_step_end=overflow)
        assert tiny_sd.count_hooks(pipe) == 0
