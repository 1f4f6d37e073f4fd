import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from selattn_lib.models.families import FAMILIES, cross_attention_heads
from selattn_lib.models.heads import BLOCKS


def test_sd_v1_has_128_heads_in_the_published_order(tiny_pipe):
    heads = cross_attention_heads(tiny_pipe)
    assert len(heads) == 128
    assert [(layer.block, layer.index) for layer in heads] == [
        *(("down", i) for i in range(6)),
        ("mid", 0),
        *(("up", i) for i in range(9)),
    ]
    assert [layer.first for layer in heads] == list(range(0, 128, 8))
    assert heads.names[0] == "down, layer: 0, head: 0"
    assert heads.names[48] == "mid, layer: 0, head: 0"
    assert heads.names[-1] == "up, layer: 8, head: 7"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_the_blocks_of_a_family_are_known_and_in_its_order(family):
    assert [block for block in BLOCKS if block in family.blocks] == [*family.blocks]


def test_arrays_agree_with_the_names(tiny_pipe):
    heads = cross_attention_heads(tiny_pipe.unet)
    made = [f"{p}, layer: {i}, head: {h}" for p, i, h in zip(heads.block, heads.layer, heads.head, strict=True)]
    assert made == heads.names == heads.coords()["head"]
    assert np.array_equal(heads.coords()["block"][1], heads.block)


def test_layers_are_those_that_read_the_text(tiny_pipe):
    for layer in cross_attention_heads(tiny_pipe):
        module = tiny_pipe.unet.get_submodule(layer.name)
        assert module.to_k.in_features == tiny_pipe.unet.config.cross_attention_dim
        assert module.heads == layer.n_heads


def test_layers_that_cannot_be_captured_are_all_listed():
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
        layers_per_block=1,
    )
    n_layers = len(cross_attention_heads(unet).layers)
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused projections") as error:
        cross_attention_heads(unet)
    assert str(error.value).count("attn2") == n_layers == 4


def test_a_pipeline_without_unet_is_refused(tiny_pipe):
    with pytest.raises(ValueError, match="AutoencoderKL has no UNet"):
        cross_attention_heads(tiny_pipe.vae)
