"""Grounding DINO and SAM in their true classes, tiny and with random weights, saved with their processors."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "bear", "cat", "dog"]


def tiny_grounded_sam(folder: Path) -> tuple[str, str]:
    """Folders of a detector, with its tokenizer and processor, and of a segmenter with its processor."""
    torch.manual_seed(3)
    paths = str(folder / "detector"), str(folder / "segmenter")
    _detector().save_pretrained(paths[0])
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(VOCABULARY)}, model_max_length=32)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 128})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(paths[0])
    _segmenter().save_pretrained(paths[1])
    square = {"height": 64, "width": 64}
    small = {"height": 16, "width": 16}
    pictures = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size=square, mask_size={"longest_edge": 16}, mask_pad_size=small
    )
    SamProcessor(pictures).save_pretrained(paths[1])
    return paths


def _detector() -> GroundingDinoForObjectDetection:
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_text_len=32,
    )
    return GroundingDinoForObjectDetection(config)


def _segmenter() -> SamModel:
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        global_attn_indexes=[1],
        window_size=2,
        num_pos_feats=8,
        mlp_dim=16,
    )
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
