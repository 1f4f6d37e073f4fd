"""The training loop of the recipe, its checkpoints, and a recipe that learns."""

from pathlib import Path

import pytest
import torch

from selattn_lib.emoji.recipe.training import Checkpoint, Muon, Schedule, Training
from selattn_lib.emoji.recipe.unet import LossLog


def test_muon_steps_are_orthogonal_and_of_the_expected_size() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(8, 32))
    p.grad = torch.randn(8, 32)
    Muon([p], lr=1.0, weight_decay=0).step()
    values = torch.linalg.svdvals(p.detach() / (0.2 * 32**0.5))
    assert 0.5 < values.min() and values.max() < 1.4


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 4)
    Checkpoint(tmp_path / "c.pt", layer=layer).save(7, force=True)
    other = torch.nn.Linear(3, 4)
    assert Checkpoint(tmp_path / "c.pt", layer=other).load() == 7
    assert torch.equal(layer.weight, other.weight)
    assert Checkpoint(tmp_path / "missing.pt", layer=other).load() == 0


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = Schedule(steps=10, peak=2.0, warmup=4, decay=0.5)
    assert [schedule.rate(step) for step in range(10)] == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 1.6, 1.2, 0.8, 0.4])


class Interrupted(Exception):
    pass


def fit(path: Path, *, stop_at: int | None = None) -> tuple[Training, list[int]]:
    """A small network taught the identity in 8 steps, each on numbers of its own; broken off at a step, if one is
    given, with a checkpoint of the steps before."""
    torch.manual_seed(0)
    model, ema = (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)) for _ in range(2))
    training = Training(path, Schedule(8, peak=0.1, warmup=2, decay=0.5), model, ema=ema, clip=1.0)
    numbers = []

    def step(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        if number == stop_at:
            training.checkpoint.save(number, force=True)
            raise Interrupted
        numbers.append(number)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
        loss = (model(x) - x).square().mean()
        return loss, {"loss": loss.item()}

    training.run(step)
    return training, numbers


def test_training_that_was_broken_off_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, numbers = fit(tmp_path / "whole.pt")
    assert numbers == list(range(8))
    with pytest.raises(Interrupted):
        fit(tmp_path / "resumed.pt", stop_at=5)
    resumed, numbers = fit(tmp_path / "resumed.pt")
    assert numbers == [5, 6, 7]
    for part, state in torch.load(tmp_path / "whole.pt", weights_only=True).items():
        other = torch.load(tmp_path / "resumed.pt", weights_only=True)[part]
        torch.testing.assert_close(state, other, rtol=0, atol=0)
    start = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).state_dict()["0.weight"]
    average, last = (model.state_dict()["0.weight"] for model in (whole.ema, whole.model))
    assert not torch.equal(average, last) and not torch.equal(average, start)
    _, numbers = fit(tmp_path / "resumed.pt")
    assert numbers == [], "what is finished is not trained again"


def test_the_log_goes_on_where_the_checkpoint_does(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "log.csv", 0)
    for step in range(41):
        log.add(step, 8, 2.0)
    assert (tmp_path / "log.csv").read_text() == "0,8,2.0000\n20,168,2.0000\n40,328,2.0000\n"
    again = LossLog(tmp_path / "log.csv", 30)  # the checkpoint knows the steps before 30 only
    assert (again.samples, again.loss) == (168, 2) and "40," not in (tmp_path / "log.csv").read_text()
