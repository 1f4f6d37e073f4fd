"""Grounding DINO, SAM and SAM 3 in their true classes, tiny and with random weights, saved with their processors."""

from pathlib import Path

import torch
from tiny_sd import WORDS, word_tokenizer
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Sam3Config,
    Sam3Model,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)
from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig, Sam3ViTConfig

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


def tiny_sam3(folder: Path) -> str:
    """Folder of a SAM 3 with its tokenizer."""
    torch.manual_seed(3)
    tokenizer = word_tokenizer(WORDS)
    layout = {"num_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    backbone = Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=28,
    )
    sizes = [[16, 16], [8, 8], [4, 4]]
    vision = Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=16, backbone_feature_sizes=sizes)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=layout,
        detr_encoder_config=layout,
        detr_decoder_config={**layout, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    Sam3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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
