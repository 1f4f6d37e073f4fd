"""The recipe of `emoji-sd`, whole and in small, as chapter 06 speaks of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from selattn_lib.emoji.recipe.autoencoder import LatentBasis
from selattn_lib.emoji.recipe.unet import new_unet, train_unet
from selattn_lib.emoji.scenes import compose_many
from selattn_lib.models.pipelines import model_source


def test_the_recipe_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UNet's training in small, on a few scenes: the loss of the last steps is below 0.9 of the first ones'."""

    def narrow() -> UNet2DConditionModel:
        small = {"block_out_channels": (32, 32), "norm_num_groups": 8, "layers_per_block": 1}
        down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
        return UNet2DConditionModel.from_config(new_unet().config, down_block_types=down, up_block_types=up, **small)

    monkeypatch.setattr("selattn_lib.emoji.recipe.unet.new_unet", narrow)
    weights = Path(model_source("emoji-sd"))
    basis = LatentBasis.fit(np.stack([scene.image for scene in compose_many(40, 0)]))  # of 2,000 scenes in the recipe
    torch.save(basis.state_dict(), tmp_path / "basis.pt")
    train_unet(tmp_path, weights, steps=61, batch=4, count=8)
    log = [line.split(",") for line in (tmp_path / "unet.csv").read_text().split()]
    total = {int(step): (int(step) + 1) * float(loss) for step, _, loss in log}  # what is logged is the mean so far
    first, last = total[20] / 21, (total[60] - total[40]) / 20
    assert last < 0.9 * first, log
    resumed = train_unet(tmp_path, weights, steps=61, batch=4, count=8)
    assert all(torch.isfinite(parameter).all() for parameter in resumed.parameters())
