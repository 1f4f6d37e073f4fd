"""`selattn explain`: one command from a prompt to a folder of pictures and a page."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selattn_lib import cli
from selattn_lib.attention.capture import capture
from selattn_lib.explorers.drawing import agreement_ranking, check_words
from selattn_lib.maps.relevance import load_hrv
from selattn_lib.models.pipelines import load_pipeline
from selattn_lib.publishing import explain

PROMPT = "a photo of a cat and a dog"
FILES = {"picture", "map", "mask", "overlay"}


@pytest.fixture(scope="module")
def model(shared_pipe, tmp_path_factory) -> str:
    """A folder of a tiny model with the heads of Stable Diffusion v1, and of emoji-sd."""
    folder = tmp_path_factory.mktemp("model")
    shared_pipe.save_pretrained(folder)
    return str(folder)


load_once = lru_cache(load_pipeline)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "load_pipeline", load_once)


def run(out: Path, model: str, *more: str) -> int:
    return cli.main(
        ["explain", PROMPT, "--words", "cat", "dog", "--model", model, "--steps", "1", "--out", str(out), *more]
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_what_is_written_is_what_the_library_makes_of_the_same_call(tmp_path, model, tiny_pipe, capsys) -> None:
    chosen = ["--hrv", "emoji-sd", "--heads", "20", "--concept", "Animals", "--seeds", "2", "--threshold", "0.3"]
    assert run(tmp_path / "out", model, *chosen, "--guidance", "3", "--steps", "2") == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out" / "index.html")
    assert "4/4" in said.err and "<" in said.err, "steps that are done, and the time that remains"
    with capture(tiny_pipe, ["cat", "dog"]) as maps:
        seed = torch.Generator().manual_seed(1)
        [image] = tiny_pipe(PROMPT, num_inference_steps=2, guidance_scale=3, generator=seed).images
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "001-picture.png"), np.asarray(image))
    top = load_hrv("emoji-sd").top("Animals", 20)
    for name, heads in {"top-20-Animals": top, "all": "all"}.items():
        heat = maps.heatmap("dog", heads)
        assert np.abs(pixels(tmp_path / "out" / f"001-dog-{name}-map.png") - 255 * heat.values).max() <= 0.5
        np.testing.assert_array_equal(pixels(tmp_path / "out" / f"001-dog-{name}-mask.png") > 0, heat.values > 0.3)
    files = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {name.rsplit("-", 1)[-1].removesuffix(".png") for name in files} == FILES and len(files) == 2 + 2 * 2 * 2 * 3
    settings = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert set(settings["files"]) == files | {"index.html"} and settings["heads"] == 20


def test_every_head_needs_no_head_relevance_and_some_of_them_do(tmp_path, model, capsys) -> None:
    assert run(tmp_path / "out", model, "--heads", "all") == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "agreement with all heads" in page and "top-" not in " ".join(
        path.name for path in (tmp_path / "out").iterdir()
    )
    assert run(tmp_path / "other", model, "--heads", "20") == 1
    assert "--heads 20: no head relevance of" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_heads_that_agree_with_all_come_first(maps) -> None:
    [order], finest = agreement_ranking(maps).values(), (8, 16)
    mean = np.stack([maps.heatmap(w, image=i, size=finest).values.ravel() for i in range(2) for w in range(2)])
    own = [
        [maps.heatmap(w, [head], image=i, size=finest).values.ravel() for i in range(2) for w in range(2)]
        for head in range(maps.n_heads)
    ]
    likeness = [np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(of_head, mean, strict=True)]) for of_head in own]
    assert order.tolist() == np.argsort(-np.array(likeness)).tolist()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--words", "cta"], "the word 'cta' is not in the prompt: did you mean 'cat'?"),
        (["--words", " "], "no words: expected some of the prompt"),
        (["--concept", "animal"], "--concept 'animal' has no head relevance here: did you mean 'Animals'? There are: "),
        (["--heads", "200"], "--heads 200: expected all, or a whole number from 1 to 128"),
        (["--heads", "few"], "--heads few: expected all, or a whole number"),
        (["--threshold", "1.5"], "--threshold 1.5: expected a number between 0 and 1"),
        (["--seeds", "0"], "--seeds 0: expected 1 or more"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--hrv", "nosuch.npz"], "No head relevance at nosuch.npz"),
        (["--model", "emoji-ds"], "no model 'emoji-ds'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys, more: list[str], said: str
) -> None:
    monkeypatch.setattr(explain, "draw", lambda *_, **__: pytest.fail("it has begun to draw"))
    given = {"--words": ["cat"], "--out": [str(tmp_path / "out")], "--hrv": ["emoji-sd"], **{more[0]: more[1:]}}
    options = [text for name, values in given.items() for text in (name, *values)]
    assert cli.main(["explain", "a cat and a dog", *options]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_words_may_stand_one_after_the_other_or_between_commas() -> None:
    assert cli.repeated(["a b", "--words", "cat", "oak tree", "--out", "x"], "--words") == [
        "a b", "--words", "cat", "--words", "oak tree", "--out", "x",
    ]  # fmt: skip


def test_a_folder_of_somebody_else_s_is_not_touched(tmp_path, model, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert run(tmp_path, model, "--heads", "all") == 1
    assert "was not made by selattn explain: nothing in it is touched" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["[]", "{bad"])
def test_a_damaged_list_of_files_is_named_before_anything_is_drawn(tmp_path, model, capsys, content) -> None:
    (tmp_path / "explain.json").write_text(content)
    assert run(tmp_path, model, "--heads", "all") == 1
    assert "explain.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", ["nan", "-5"])
def test_guidance_that_makes_no_sense_is_refused(tmp_path, model, capsys, guidance) -> None:
    assert run(tmp_path, model, "--heads", "all", "--guidance", guidance) == 1
    assert "expected a finite number of 0 or more" in capsys.readouterr().err


def test_signs_are_words_where_the_prompt_has_them() -> None:
    assert check_words([",", "'s", "oak  tree"], "a bear's hat, an oak tree") == [",", "'s", "oak  tree"]
    for word in ("ear", "!", "oak"):
        with pytest.raises(ValueError, match="is not in the prompt"):
            check_words([word], "a bear's hat, an oaktree")


def test_an_earlier_run_s_files_are_replaced_and_others_beside_them_kept(tmp_path, model) -> None:
    out = tmp_path / "deep" / "out"
    assert run(out, model, "--heads", "all", "--seeds", "2") == 0
    (out / "notes.txt").write_text("mine")
    assert run(out, model, "--heads", "all") == 0
    assert {path.name[:3] for path in out.glob("*.png")} == {"000"}, "the second picture was the earlier run's"
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_stopped_half_way_it_leaves_what_was_there(tmp_path, model, monkeypatch, earlier: bool) -> None:
    if earlier:
        assert run(tmp_path / "out", model, "--heads", "all") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out/*")}

    def stopped(self, path, *_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selattn_lib.explorers.base.Explorer.save", stopped)  # the last thing that is written
    with pytest.raises(SystemExit):
        run(tmp_path / "out", model, "--heads", "all", "--seeds", "2")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out/*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * earlier
