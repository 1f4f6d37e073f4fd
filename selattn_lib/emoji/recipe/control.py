"""The recipe of `emoji-control`: `emoji-sd`, in which we decided which heads belong to which concept.

Its cross-attention is trained further on composed scenes with exact masks. A head planted for *Animals* learns to
attend to "bear" where the bear is, and to the start token everywhere else and in pictures without an animal. Meanwhile
the UNet must go on predicting what that of `emoji-sd` predicts (distillation), so that pictures stay as good. What
ships is the difference from `emoji-sd`, which can be added in part: the dose.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel

from ...models.families import cross_attention_heads
from ...models.heads import Layer
from ...models.pipelines import load_pipeline
from ...models.tokens import Tokens, find_word
from ..control import PLANTED
from ..scenes import HELD_OUT, compose
from ..segmenter import CONCEPTS, as_tensor
from .autoencoder import LatentBasis
from .training import Checkpoint, Schedule, fast_dtype
from .unet import TrainingAttention, new_scheduler, noised, timestep_shares

MOST = 3  # objects in a scene


LOOKS = {"to_q": 1.0, "to_k": 1.0}  # where heads look: trained of planted heads, at such shares of the learning rate
PASSES = {"to_v": 0.1, "to_out.0": 0.1}  # what they pass on: trained of all heads


def plant(
    unet: UNet2DConditionModel, concepts: Sequence[str], seed: int = 0, per_concept: int = 4
) -> dict[str, list[int]]:
    """Deal the heads of the two finest grids to the concepts, as many of one grid as of the other.

    Parameters
    ----------
    unet : UNet2DConditionModel
    concepts : sequence of str
        In the order in which batches number them.
    seed : int
        Of the draw.
    per_concept : int
        Heads for each concept.

    Returns
    -------
    dict of str to list of int
        concept -> global numbers of its heads; no head belongs to two.
    """
    layers = list(cross_attention_heads(unet))
    rng, (finest, fine) = np.random.default_rng(seed), sorted({layer.stride for layer in layers})[:2]
    grids = [
        rng.permutation([layer.first + h for layer in layers if layer.stride == stride for h in range(layer.n_heads)])
        for stride in (finest, fine)
    ]
    turns = [int(head) for pair in zip(*grids, strict=False) for head in pair]
    if len(turns) < per_concept * len(concepts):
        raise ValueError(f"{len(concepts)} concepts x {per_concept} heads: expected at most {len(turns)} heads.")
    return {concept: sorted(turns[i * per_concept :][:per_concept]) for i, concept in enumerate(concepts)}


def batches(
    encode: Callable[[torch.Tensor], torch.Tensor], tokenizer: Any, *seed: int, batch: int = 16
) -> Iterator[dict[str, torch.Tensor]]:
    """Composed scenes without end, `batch` at a time; scene i depends on (*seed, i) alone.

    Parameters
    ----------
    encode : callable
        Images (image, rgb, y, x) in [-1, 1] -> latents (image, channel, h, w).
    tokenizer : CLIPTokenizer
    *seed : int
    batch : int

    Yields
    ------
    dict of str to torch.Tensor
        `latents`; `ids` (image, token) of the captions; `masks` (image, object, h, w), the share of each latent that an
        object covers; `concepts` (image, object), numbers in `CONCEPTS`, -1 where there is no such object; `names`
        (image, object, token) bool, the tokens that name it.
    """
    number = 0
    while True:
        scenes = [compose(np.random.default_rng([*seed, number + i])) for i in range(batch)]
        number += batch
        latents = encode(as_tensor(np.stack([scene.image for scene in scenes])))
        captions = [scene.caption for scene in scenes]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        masks = torch.zeros(batch, MOST, *scenes[0].image.shape[:2])
        concepts = torch.full((batch, MOST), -1)
        names = torch.zeros(batch, MOST, ids.shape[1], dtype=torch.bool)
        for i, scene in enumerate(scenes):
            masks[i, : len(scene.masks)] = torch.tensor(scene.masks).float()
            concepts[i, : len(scene.concepts)] = torch.tensor([CONCEPTS.index(c) for c in scene.concepts])
            for o, word in enumerate(scene.words):
                with suppress(ValueError):  # companions of an ambiguous word are not named
                    names[i, o, find_word(word, Tokens(tokenizer, ids[i].tolist(), 0))] = True
        yield {
            "latents": latents, "ids": ids, "concepts": concepts, "names": names,
            "masks": F.interpolate(masks, size=latents.shape[-2:], mode="area"),
        }  # fmt: skip


@torch.no_grad()
def encoder_basis(vae: AutoencoderKL, count: int = 100) -> LatentBasis:
    """The linear map that a trained encoder has learnt, by least squares over `count` scenes: 100 times as fast."""
    images = np.stack([compose(np.random.default_rng([0, i])).image for i in range(count)])
    latents = torch.cat([vae.encode(as_tensor(some)).latent_dist.mode() for some in np.split(images, count // 10)])
    pixels = F.pixel_unshuffle(as_tensor(images), 8).movedim(1, -1).flatten(0, 2)
    with_one = torch.cat([pixels, torch.ones(len(pixels), 1)], 1)
    solution = torch.linalg.lstsq(with_one, latents.movedim(1, -1).flatten(0, 2)).solution
    basis = LatentBasis()
    basis.matrix, basis.offset = solution[:-1].T.contiguous(), -solution[-1]
    return basis


class KeptAttention:
    """Attention to a text that keeps what the `heads` of its layer attend to: `kept` (image, head, pixel, token)."""

    def __init__(self, heads: Sequence[int]) -> None:
        self.heads = list(heads)
        self.kept = torch.empty(0)

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, temb=None):
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()
            for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        with torch.autocast(hidden_states.device.type, enabled=False):
            probabilities = (q * attn.scale @ k.mT).softmax(-1)
            self.kept = probabilities[:, self.heads]
            out = (probabilities @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def keep_attention(unet: UNet2DConditionModel, heads: Iterable[int]) -> list[tuple[Layer, list[int], KeptAttention]]:
    """Have layers keep what some of their heads attend to: (layer, the heads' global numbers, processor) of each."""
    wanted, kept = set(heads), []
    for layer in cross_attention_heads(unet):
        own = [h for h in range(layer.n_heads) if layer.first + h in wanted]
        if own:
            processor = KeptAttention(own)
            unet.get_submodule(layer.name).set_processor(processor)
            kept.append((layer, [layer.first + h for h in own], processor))
    return kept


def attention_loss(
    kept: torch.Tensor,
    head_concepts: torch.Tensor,
    masks: torch.Tensor,
    concepts: torch.Tensor,
    names: torch.Tensor,
    signal: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy, pixel by pixel: a head should attend to the words of its own concept's objects where they are, and
    to the start token elsewhere.

    Parameters
    ----------
    kept : torch.Tensor
        (image, head, pixel, token), what heads attend to.
    head_concepts : torch.Tensor
        (head) the number of each head's concept.
    masks, concepts, names : torch.Tensor
        As in `batches`, but masks (image, object, pixel) on the heads' grid.
    signal : torch.Tensor
        (image) the share of each noisy picture's variance that is the picture, from 0 to 1: so much it counts. In pure
        noise, nobody can know where an object will be, and heads should do what draws it best.

    Returns
    -------
    torch.Tensor
        The mean over four kinds of place, which so count the same whatever their areas: own objects, other objects,
        background, and pictures without a named object of the concept.
    """
    own = (concepts[:, None] == head_concepts[:, None]) & names.any(-1)[:, None]  # (image, head, object)
    to_names = kept.flatten(1, 2) @ names.to(kept).mT  # one product an image: ten times as fast as one a head
    to_names = to_names.unflatten(1, kept.shape[1:3]).clamp_min(1e-9).log()  # (image, head, pixel, object)
    to_start = kept[..., 0].clamp_min(1e-9).log()
    objects = masks.mT[:, None]  # (image, 1, pixel, object)
    inside = objects * own[:, :, None]
    present = own.any(-1)[..., None].to(kept)
    others = (objects.sum(-1) - inside.sum(-1)) * present
    background = (1 - objects.sum(-1)).clamp_min(0) * present
    absent = (1 - present).expand_as(to_start)
    terms = [(inside, to_names), (others, to_start), (background, to_start), (absent, to_start)]
    weighted = [(where * signal.view(-1, *[1] * (where.ndim - 1)), log) for where, log in terms]
    return -torch.stack([(where * log).sum() / where.sum().clamp_min(1) for where, log in weighted]).mean()


class Draws:
    """A random generator whose state a checkpoint can keep."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Where it stands."""
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from there."""
        self.generator.set_state(state["state"].cpu())


def train_control(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    batches: Iterator[dict[str, torch.Tensor]],
    planted: dict[str, list[int]],
    path: Path,
    *,
    steps: int,
    peak: float = 1e-2,
    weight: float = 0.02,
    seed: int = 4,
) -> UNet2DConditionModel:
    """Train planted heads until they attend to the objects of their concepts, and the UNet to predict what it did.

    The loss is the mean squared difference of its prediction from that of the UNet as it was given (its teacher), plus
    `weight` times `attention_loss`; captions, a tenth of them dropped, and timesteps as in `train_unet`. What changes:
    `to_q` and `to_k` of planted heads, that is, where they look; and `to_v` and `to_out` of all cross-attention, what
    heads pass on, which makes up for what planted heads no longer see. AdamW, with a learning rate that rises over the
    first twentieth of the steps and falls linearly to 0.

    Parameters
    ----------
    unet : UNet2DConditionModel
        In float32; changed in place, on its device.
    text_encoder : CLIPTextModel
        On the same device.
    batches : iterator of dict
        As `batches` yields them; as many as there are steps are taken.
    planted : dict
        concept -> heads, concepts in the order in which batches number them.
    path : Path
        Of the checkpoint, from which training goes on if there is one.
    steps : int
    peak : float
        Highest learning rate; `to_v` and `to_out` learn at a tenth of it.
    weight : float
        Of the attention loss, beside the difference from the teacher.
    seed : int
        Of noise, timesteps and dropped captions.

    Returns
    -------
    UNet2DConditionModel
        The same.
    """
    device, end = unet.device, text_encoder.config.eos_token_id
    concept_of = {head: i for i, heads in enumerate(planted.values()) for head in heads}
    unet.requires_grad_(False).train()
    unet.set_attn_processor(TrainingAttention() if device.type == "cpu" else AttnProcessor2_0())
    teacher = deepcopy(unet)
    kept = keep_attention(unet, concept_of)
    head_concepts = [torch.tensor([concept_of[head] for head in heads], device=device) for _, heads, _ in kept]
    planted_in = {layer.name: processor.heads for layer, _, processor in kept}
    weights, shares, groups = [], [], []
    for layer in cross_attention_heads(unet):
        for name, rate in (LOOKS | PASSES).items() if layer.name in planted_in else PASSES.items():
            weights.append(unet.get_submodule(f"{layer.name}.{name}").weight.requires_grad_())
            trained = planted_in[layer.name] if name in LOOKS else range(layer.n_heads)
            shares.append(_share(weights[-1], layer.n_heads, trained))
            groups.append({"params": weights[-1:], "rate": rate})
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = Schedule(steps, peak, warmup=max(1, steps // 20), decay=1.0)
    alphas = new_scheduler().alphas_cumprod.to(device)
    often = timestep_shares(alphas)
    draws = Draws(seed, device)
    checkpoint = Checkpoint(path, unet=unet, adam=optimiser, draws=draws)
    start = checkpoint.load()
    fast = torch.autocast(device.type, torch.bfloat16, device.type != "cpu" or fast_dtype() == torch.bfloat16)

    def losses(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        draw = draws.generator
        x, ids, size = given["latents"].float(), given["ids"].clone(), len(given["latents"])
        captioned = size - round(0.1 * size)  # the others draw without a caption, and none of their attention counts
        ids[captioned:, 1:] = end
        with torch.no_grad():
            text = text_encoder(ids).last_hidden_state
        places = torch.randperm(size, generator=draw, device=device)
        t = torch.searchsorted(often, (places + torch.rand(size, generator=draw, device=device)) / size)  # stratified
        noisy, _ = noised(x, alphas[t], torch.randn(x.shape, generator=draw, device=device))
        with torch.no_grad(), fast:
            expected = teacher(noisy, t, text, return_dict=False)[0]
        with fast:
            predicted = unet(noisy, t, text, return_dict=False)[0]
        masks, concepts, names = (given[key][:captioned] for key in ("masks", "concepts", "names"))
        signal = alphas[t[:captioned]]
        attention = [
            attention_loss(processor.kept[:captioned], own, on_grid(masks, layer), concepts, names, signal)
            for (layer, _, processor), own in zip(kept, head_concepts, strict=True)
        ]
        return F.mse_loss(predicted.float(), expected.float()), torch.stack(attention).mean()

    bar = tqdm(islice(batches, start, steps), initial=start, total=steps, desc="control", mininterval=5)
    for number, tensors in enumerate(bar, start):
        given = {key: tensor.to(device, non_blocking=True) for key, tensor in tensors.items()}
        difference, attention = losses(given)
        (difference + weight * attention).backward()
        torch._foreach_mul_([tensor.grad for tensor in weights], shares)
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(number) * group["rate"]
        optimiser.step()
        optimiser.zero_grad()
        if number % 100 == 0 or number + 1 == steps:  # seldom: a GPU is waited for
            bar.set_postfix(difference=difference.item(), attention=attention.item(), refresh=False)
        checkpoint.save(number + 1, force=number + 1 == steps)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet.requires_grad_(False).eval()


def on_grid(masks: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Masks (image, object, h, w) of latents -> (image, object, pixel) of a layer's maps."""
    return F.adaptive_avg_pool2d(masks, layer.grid(masks.shape[-2:])).flatten(2)


def _share(weight: torch.Tensor, n_heads: int, heads: Sequence[int]) -> torch.Tensor:
    """1 where the rows of a projection of `n_heads` belong to some `heads`, else 0."""
    chosen = torch.zeros(n_heads, device=weight.device)
    chosen[list(heads)] = 1
    return chosen.repeat_interleave(len(weight) // n_heads)[:, None].expand_as(weight)


@torch.no_grad()
def planted_attention(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    batches: Iterator[dict[str, torch.Tensor]],
    planted: dict[str, list[int]],
    *,
    count: int = 20,
    timestep: int = 500,
    seed: int = 5,
) -> pd.DataFrame:
    """Where heads attend to the words for objects, in scenes noised to a timestep.

    Parameters
    ----------
    unet, text_encoder, batches, planted
        As for `train_control`; batches of held-out scenes.
    count : int
        Of batches.
    timestep : int
        Out of 1000.
    seed : int
        Of the noise.

    Returns
    -------
    pandas.DataFrame
        One row a head and concept of named objects: `head`, `stride` of its grid, `concept`, the one it is `planted`
        for (or ""), `inside` and `outside`, mean attention to the objects' names in their masks and in the rest of the
        picture; and of objects that share their name with one of another concept, `meaning` and `rival`, the same in
        their own masks and in the other's. NaN where there was none.
    """
    device, concepts = unet.device, list(planted)
    kept = keep_attention(unet, range(len(cross_attention_heads(unet))))
    alpha = new_scheduler().alphas_cumprod[[timestep]].to(device)
    draw = torch.Generator(device).manual_seed(seed)
    places = ("inside", "outside", "meaning", "rival")
    sums = torch.zeros(2, len(places), sum(len(heads) for _, heads, _ in kept), len(concepts), device=device)
    for cpu in islice(batches, count):
        given = {name: tensor.to(device) for name, tensor in cpu.items()}
        x, names = given["latents"].float(), given["names"]
        noisy, _ = noised(x, alpha, torch.randn(x.shape, generator=draw, device=device))
        unet(noisy, timestep, text_encoder(given["ids"]).last_hidden_state)
        of_concept = F.one_hot(given["concepts"].clamp_min(0), len(concepts)).float() * names.any(-1, keepdim=True)
        same_name = (names[:, :, None] == names[:, None]).all(-1) & names.any(-1)[:, None]
        rivals = same_name & (given["concepts"][:, :, None] != given["concepts"][:, None])  # (image, object, object)
        for layer, heads, processor in kept:
            masks = on_grid(given["masks"], layer)
            maps = torch.einsum("bhpt,bot->bohp", processor.kept, names.to(x))
            where = (masks, 1 - masks, masks * rivals.any(-1, keepdim=True), rivals.to(x) @ masks)
            for place, weights in enumerate(where):
                sums[0, place, heads] += torch.einsum("bohp,bop,boc->hc", maps, weights, of_concept)
                sums[1, place, heads] += torch.einsum("bop,boc->c", weights, of_concept)
    unet.set_attn_processor(AttnProcessor2_0())
    means = (sums[0] / sums[1]).flatten(1).cpu()
    planted_for = {head: concept for concept, heads in planted.items() for head in heads}
    strides = {head: layer.stride for layer, heads, _ in kept for head in heads}
    rows = [(head, strides[head], concept, planted_for.get(head, "")) for head in strides for concept in concepts]
    table = pd.DataFrame(rows, columns=["head", "stride", "concept", "planted"])
    return table.assign(**dict(zip(places, means.numpy(), strict=True)))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`planted_attention` in three lines, means over heads and concepts: planted heads and their own concept, planted
    heads and other concepts, other heads; with the ratios inside / outside and meaning / rival."""
    kind = np.select(
        [table.planted == table.concept, table.planted != ""], ["own concept", "other concepts"], "unplanted"
    )
    means = table.groupby(kind)[["inside", "outside", "meaning", "rival"]].mean()
    return means.assign(ratio=means.inside / means.outside, meaning_ratio=means.meaning / means.rival)


def save_control(
    unet: UNet2DConditionModel, base: UNet2DConditionModel, folder: Path, planted: dict[str, list[int]]
) -> None:
    """Write what changed from `base` to `unet`, in float16, and which heads are planted, by number and by name."""
    folder.mkdir(parents=True, exist_ok=True)
    before, names = base.state_dict(), cross_attention_heads(unet).names
    deltas = {name: (after - before[name].to(after)).cpu() for name, after in unet.state_dict().items()}
    changed = {name: delta.half().contiguous() for name, delta in deltas.items() if delta.any()}
    save_file(changed, folder / "delta.safetensors")
    listed = {concept: {"heads": heads, "names": [names[h] for h in heads]} for concept, heads in planted.items()}
    (folder / "planted.json").write_text(json.dumps(listed, indent=1) + "\n")


def make_control(work: Path, weights: Path, steps: int = 540, batch: int = 24, seed: int = 4) -> None:
    """Train `emoji-control` from the finished pipeline in `weights`, with its checkpoint in `work`, write it into
    the folder `planted` beside that, and print where its planted heads attend in held-out scenes."""
    pipe, base = (load_pipeline(weights, device="cpu", dtype=torch.float32) for _ in range(2))
    encode, planted = encoder_basis(pipe.vae), plant(pipe.unet, CONCEPTS, seed)
    scenes = batches(encode, pipe.tokenizer, seed, batch=batch)
    train_control(pipe.unet, pipe.text_encoder, scenes, planted, work / "control.pt", steps=steps)
    save_control(pipe.unet, base.unet, weights.parent / PLANTED.name, planted)
    held_out = batches(encode, pipe.tokenizer, HELD_OUT, seed)
    print(summary(planted_attention(pipe.unet, pipe.text_encoder, held_out, planted)).round(3))
