"""Models whose heads attend to image and text at once: one softmax over both."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PRXTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention
from diffusers.models.transformers.transformer_prx import PRXAttention, apply_rope
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch.nn.utils.rnn import pad_sequence

from .base import Call, Family, Model, Outputs, QueryKey, Sizes, Text, TextAttention, own_encoding, split_heads

IMAGE_AND_TEXT = "the image's rows and the text's columns of the joint softmax"


class JointAttention(Family):
    """One softmax over text and image in a module "attn" of every "joint" block."""

    captured = IMAGE_AND_TEXT
    blocks: ClassVar[tuple[str, ...]] = ("joint",)
    carried = True
    embedder: ClassVar[tuple[str, ...]] = ("context_embedder",)  # the submodules that the text goes through first

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("joint", f"transformer_blocks.{i}.attn", block.attn, network.config.patch_size)

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens)

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        for name in self.embedder:
            text = getattr(network, name).forward(text)
        return text


class StableDiffusion3(JointAttention):
    """Stable Diffusion 3 and 3.5.

    The text is CLIP's tokens (both CLIP encoders on the same positions), then T5's: a word has its columns in both
    stretches. The second, image-only attention of some blocks of 3.5 does not see the text and is left out. The
    calls of skip-layer guidance do not count.
    """

    models = {
        "Stable Diffusion 3": Model(
            "StableDiffusion3Pipeline",
            {"num_layers": 24, "num_attention_heads": 24},
            "stabilityai/stable-diffusion-3-medium-diffusers",
        ),
        "Stable Diffusion 3.5 large": Model(
            "StableDiffusion3Pipeline",
            {"num_layers": 38, "num_attention_heads": 38},
            "stabilityai/stable-diffusion-3.5-large",
        ),
    }
    network = SD3Transformer2DModel

    def texts(self, pipe: Any) -> list[Text]:
        return [
            Text(pipe.tokenizer, pipe.text_encoder, pipe.tokenizer_max_length, early=True),
            Text(pipe.tokenizer_3, pipe.text_encoder_3, None, "prompt_3"),
        ]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        settings = {"prompt_2": None, "prompt_3": None, "max_sequence_length": n_tokens - pipe.tokenizer_max_length}
        return own_encoding(pipe, prompts, n_tokens, **settings)

    def call(self, arguments: dict[str, Any]) -> Call:
        counts = arguments.get("skip_layers") is None
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"], counts)

    def watched(self, attention: Any) -> tuple[str, ...]:
        return *super().watched(attention), "add_k_proj" if attention.norm_added_k is None else "norm_added_k"

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        outputs = (seen[name] for name in self.watched(attention))
        query, image_key, text_key = (x if x.ndim == 4 else split_heads(x, attention.heads) for x in outputs)
        return query, torch.cat([text_key, image_key], dim=2)

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config = network.config
        return {
            "hidden_states": zeros(rows, config.in_channels, config.sample_size, config.sample_size),
            "encoder_hidden_states": zeros(rows, 77 + 256, config.joint_attention_dim),
            "pooled_projections": zeros(rows, config.pooled_projection_dim),
            "timestep": zeros(rows),
        }


class Flux(JointAttention):
    """FLUX.1: rotary positions, in "double" blocks, where text and image have projections of their own, and in "single"
    blocks.

    The text is T5's tokens; CLIP gives only a pooled vector. True guidance, where asked for, calls the network
    again with the negative prompt; those calls do not count.
    """

    models = {"FLUX.1": Model("FluxPipeline")}
    captured = f"{IMAGE_AND_TEXT}, in double and in single blocks"
    network = FluxTransformer2DModel
    attention: ClassVar[tuple[Any, ...]] = (FluxAttention,)
    blocks = ("double", "single")
    masked, rows = True, 1

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("double", f"transformer_blocks.{i}.attn", block.attn, 2)
        for i, block in enumerate(network.single_transformer_blocks):
            yield TextAttention("single", f"single_transformer_blocks.{i}.attn", block.attn, 2)

    def texts(self, pipe: Any) -> list[Text]:
        return [Text(pipe.tokenizer_2, pipe.text_encoder_2, None, "prompt_2")]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return None if pipe.text_encoder is None else own_encoding(pipe, prompts, n_tokens, prompt_2=None)

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"] * 1000)

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        row, column = arguments["img_ids"].reshape(-1, 3)[-1, 1:].tolist()  # of the last patch, 2 x 2 latents
        return 2 * int(row) + 2, 2 * int(column) + 2

    def watched(self, attention: Any) -> tuple[str, ...]:
        joint = getattr(attention, "added_kv_proj_dim", None) is not None
        return ("norm_q", "norm_k", "norm_added_k") if joint else ("norm_q", "norm_k")

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        query, key, tokens = seen["norm_q"], seen["norm_k"], sizes.tokens  # (row, position, head, channel)
        if "norm_added_k" in seen:
            key = torch.cat([seen["norm_added_k"], key], dim=1)
        else:  # the single blocks get text and image as one sequence
            query = query[:, tokens:]
        cos, sin = options["image_rotary_emb"]
        query = apply_rotary_emb(query, (cos[tokens:], sin[tokens:]), sequence_dim=1)
        return query.transpose(1, 2), apply_rotary_emb(key, (cos, sin), sequence_dim=1).transpose(1, 2)

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        mask = options.get("attention_mask")
        if mask is None or mask.ndim < 3 or mask.shape[-2] == 1:
            return mask
        return mask[..., sizes.tokens :, :]  # of every position

    def words(
        self, attention: Any, text: torch.Tensor, places: torch.Tensor, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = self.unturned(attention, text)
        cos, sin = options["image_rotary_emb"]  # of the text first
        query, key = (
            torch.cat([apply_rotary_emb(row[None], (cos[at], sin[at])) for row, at in zip(x, places, strict=True)])
            for x in (query, key)
        )
        return query, key, value

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config, side = network.config, 64  # of 1024 x 1024 pixels, in patches
        arguments: dict[str, Any] = {
            "hidden_states": zeros(rows, side * side, config.in_channels),
            "encoder_hidden_states": zeros(rows, 512, config.joint_attention_dim),
            "pooled_projections": zeros(rows, config.get("pooled_projection_dim") or 0),
            "timestep": zeros(rows),
            "guidance": zeros(rows) if config.get("guidance_embeds") else None,
            "img_ids": zeros(side * side, len(config.axes_dims_rope)),
            "txt_ids": zeros(512, len(config.axes_dims_rope)),
        }
        arguments["img_ids"][-1, 1:3] = side - 1
        return {name: arguments[name] for name in signature(network.forward).parameters if name in arguments}


class Chroma(Flux):
    """Chroma: FLUX.1's layers without its pooled text; the padding of T5's tokens is masked."""

    models = {"Chroma": Model("ChromaPipeline")}
    network, rows = ChromaTransformer2DModel, 2

    def texts(self, pipe: Any) -> list[Text]:
        return [Text(pipe.tokenizer, pipe.text_encoder, None)]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens)


class Flux2(Flux):
    """FLUX.2 dev and klein: as FLUX.1, but for single blocks that make queries, keys and values in one projection.

    The text is a language model's (Mistral in dev, Qwen3 in klein), three of its layers one beside the other, with the
    instruction and the turns of a chat around the prompt.
    """

    models = {"FLUX.2 dev": Model("Flux2Pipeline"), "FLUX.2 klein": Model("Flux2KleinPipeline", None)}
    network = Flux2Transformer2DModel
    attention = (Flux2Attention, Flux2ParallelSelfAttention)

    def texts(self, pipe: Any) -> list[Text]:
        tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)  # that of a processor of pictures and text

        def framed(prompt: str) -> list[int]:
            if hasattr(pipe, "system_message"):
                chat = format_input([prompt], pipe.system_message)
                return pipe.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
            return _turn(tokenizer, prompt, thinks=False)

        return [Text(tokenizer, pipe.text_encoder, None, framed=framed if tokenizer is not None else None)]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens)

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        ids = arguments["img_ids"].reshape(-1, 4)
        row, column = ids[ids[:, 0] == 0].amax(dim=0)[1:3].tolist()  # further pictures have times of their own
        return 2 * int(row) + 2, 2 * int(column) + 2

    def projections(self, attention: Any) -> tuple[str, ...]:
        joint = isinstance(attention, Flux2Attention)
        return super().projections(attention) if joint else ("to_qkv_mlp_proj",)

    def value(self, attention: Any, seen: Outputs, sizes: Sizes) -> torch.Tensor:
        if isinstance(attention, Flux2Attention):
            return super().value(attention, seen, sizes)
        width = attention.inner_dim
        return split_heads(seen["to_qkv_mlp_proj"][..., 2 * width : 3 * width], attention.heads)

    def used(self, attention: Any, output: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        joint = isinstance(attention, Flux2Attention)
        return output if joint else output[:, sizes.tokens :, : attention.inner_dim]

    def unturned(self, attention: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if isinstance(attention, Flux2Attention):
            return super().unturned(attention, text)
        fused = attention.to_qkv_mlp_proj.forward(text)[..., : 3 * attention.inner_dim]
        query, key, value = (split_heads(x, attention.heads) for x in fused.chunk(3, dim=-1))
        return attention.norm_q.forward(query), attention.norm_k.forward(key), value

    def put_out(self, attention: Any, attended: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if isinstance(attention, Flux2Attention):
            return attention.to_add_out.forward(attended)
        mlp = attention.to_qkv_mlp_proj.forward(text)[..., 3 * attention.inner_dim :]
        return attention.to_out.forward(torch.cat([attended, attention.mlp_act_fn(mlp)], dim=-1))


class QwenImage(JointAttention):
    """Qwen-Image: rotary positions; the text is that of Qwen2.5-VL from the prompt's first token on, its padding
    masked. The negative prompt comes in calls of its own, which do not count."""

    models = {"Qwen-Image": Model("QwenImagePipeline")}
    network = QwenImageTransformer2DModel
    masked, rows = True, 1
    embedder = ("txt_norm", "txt_in")

    def texts(self, pipe: Any) -> list[Text]:
        def framed(prompt: str) -> list[int]:
            return pipe.tokenizer(pipe.prompt_template_encode.format(prompt)).input_ids

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"] * 1000)

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        _, height, width = arguments["img_shapes"][0][0]  # in patches of 2 x 2 latents; further pictures come after
        return 2 * height, 2 * width

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "norm_q", "norm_k", "norm_added_k"

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        image, text = options["image_rotary_emb"]
        query, key, text_key = (
            apply_rotary_emb_qwen(seen[name], positions, use_real=False).transpose(1, 2)
            for name, positions in zip(self.watched(attention), (image, image, text), strict=True)
        )
        return query, torch.cat([text_key, key], dim=2)

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        mask = options.get("encoder_hidden_states_mask")
        return None if mask is None else F.pad(mask, (0, sizes.pixels), value=True)

    def words(
        self, attention: Any, text: torch.Tensor, places: torch.Tensor, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = self.unturned(attention, text)
        _, positions = options["image_rotary_emb"]
        positions = positions[places].unsqueeze(1)  # (row, 1, token, channel / 2), complex
        query, key = (
            torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * positions)
            .flatten(3)
            .to(x.dtype)
            for x in (query, key)
        )
        return query, key, value

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        side = 64  # of 1024 x 1024 pixels, in patches
        return {
            "hidden_states": zeros(rows, side * side, network.config.in_channels),
            "encoder_hidden_states": zeros(rows, 64, network.config.joint_attention_dim),
            "encoder_hidden_states_mask": zeros(rows, 64).bool().logical_not(),
            "timestep": zeros(rows),
            "img_shapes": [[(1, side, side)]] * rows,
        }


class ZImage(JointAttention):
    """Z-Image: image and text as one sequence with rotary positions, each padded to a multiple of 32 that is attended
    to. The text is Qwen3's, the turns of a chat included; the blocks that refine image and text alone are left out."""

    models = {"Z-Image": Model("ZImagePipeline")}
    network = ZImageTransformer2DModel
    masked, carried = True, False
    unscored = "its text passes blocks of its own before it meets the image, padded, and words beside it would not"

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.layers):
            yield TextAttention("joint", f"layers.{i}.attention", block.attention, network.config.all_patch_size[0])

    def texts(self, pipe: Any) -> list[Text]:
        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=partial(_turn, pipe.tokenizer, thinks=True))]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        encoded, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return pad_sequence(encoded, batch_first=True)

    def call(self, arguments: dict[str, Any]) -> Call:
        if isinstance(arguments["x"][0], list):
            raise ValueError("Z-Image with pictures beside the prompt cannot be captured: call it with a prompt alone.")
        sample = torch.stack(list(arguments["x"]))[:, :, 0]
        return Call(
            sample, arguments["cap_feats"], 1000 - arguments["t"] * 1000, join=partial(pad_sequence, batch_first=True)
        )

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "norm_q", "norm_k"

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        positions = options["freqs_cis"].unsqueeze(2)
        query, key = (
            torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * positions)
            .flatten(3)
            .type_as(x)
            for x in (seen["norm_q"], seen["norm_k"])
        )
        return query[:, : sizes.pixels].transpose(1, 2), self._text_first(key.transpose(1, 2), sizes, dim=2)

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        mask = options.get("attention_mask")
        return None if mask is None else self._text_first(mask, sizes, dim=-1)

    def value(self, attention: Any, seen: Outputs, sizes: Sizes) -> torch.Tensor:
        return self._text_first(super().value(attention, seen, sizes), sizes, dim=2)

    def used(self, attention: Any, output: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        return output[:, : sizes.pixels]

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        pictures = [zeros(network.config.in_channels, 1, 128, 128) for _ in range(rows)]
        texts = [zeros(64, network.config.cap_feat_dim) for _ in range(rows)]
        return {"x": pictures, "t": zeros(rows), "cap_feats": texts}

    def _text_first(self, positions: torch.Tensor, sizes: Sizes, dim: int) -> torch.Tensor:
        image = -(-sizes.pixels // SEQ_MULTI_OF) * SEQ_MULTI_OF
        return positions.roll(-image, dims=dim)


class PRX(JointAttention):
    """PRX: the image attends to text and image, the text to nothing; the padding of the text is masked."""

    models = {"PRX": Model("PRXPipeline"), "PRX pixel": Model("PRXPixelPipeline", None)}
    network = PRXTransformer2DModel
    attention = (PRXAttention,)
    masked, carried, batched = True, False, False
    embedder = ("txt_in",)

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.blocks):
            yield TextAttention("joint", f"blocks.{i}.attention", block.attention, network.config.patch_size)

    def texts(self, pipe: Any) -> list[Text]:
        def framed(prompt: str) -> list[int]:
            ids, mask = pipe._tokenize_prompts([prompt], "cpu")
            return ids[mask].tolist()

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens, tokenizer_max_length=n_tokens)

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"] * 1000)

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "norm_q", "norm_k", "norm_added_k"

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        query, key, text_key = (seen[name] for name in self.watched(attention))  # (row, head, position, channel)
        query, key = (apply_rope(x, options["image_rotary_emb"]) for x in (query, key))
        return query, torch.cat([text_key, key], dim=2)

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        mask = options.get("attention_mask")
        return None if mask is None else F.pad(mask.bool(), (0, sizes.pixels), value=True)

    def projections(self, attention: Any) -> tuple[str, ...]:
        return "txt_kv_proj", "img_qkv_proj"

    def value(self, attention: Any, seen: Outputs, sizes: Sizes) -> torch.Tensor:
        values = (seen[name][..., -attention.inner_dim :] for name in self.projections(attention))
        return torch.cat([split_heads(value, attention.heads) for value in values], dim=2)

    def keys(self, attention: Any, text: torch.Tensor) -> torch.Tensor:
        keys = attention.txt_kv_proj.forward(text)[..., : attention.inner_dim].unflatten(-1, (attention.heads, -1))
        return attention.norm_added_k.forward(keys).flatten(-2)

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        pixels = 1024 if network.config.in_channels == 3 else 64  # else latents of 512 x 512 pixels, 8 a side each
        return {
            "hidden_states": zeros(rows, network.config.in_channels, pixels, pixels),
            "timestep": zeros(rows),
            "encoder_hidden_states": zeros(rows, 256, network.config.context_in_dim),
        }


def _turn(tokenizer: Any, prompt: str, thinks: bool) -> list[int]:
    """Token ids of a prompt as one turn of a chat with Qwen3."""
    settings = {"add_generation_prompt": True, "enable_thinking": thinks}
    chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, **settings)
    return tokenizer(chat).input_ids
