"""What `supported_models` says of each model is so, in every cell, and the book's tables say the same."""

import json

import pytest
import test_families
import test_video
import tiny_sd
from benchmarks.models import OUT, PEER, peer_cells, read_peer, table
from tiny_families import TINY, build, processors_of_models

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads
from selattn_lib.models.families import cross_attention_heads, find_family
from selattn_lib.models.supported import supported_models

CONCEPTS = {"Animals": ["bear", "cat"], "Things": ["desk", "lamp"]}


@pytest.fixture(scope="module")
def supported():
    return supported_models().set_index("model")


def draw(name):
    """One step for one prompt with a bear."""
    if name == "sd1":
        return tiny_sd.generate(build(name), steps=1)
    module = test_video if name in test_video.MODELS else test_families
    return module.draw(name, "photo of a bear", steps=1)


@pytest.mark.parametrize("model", TINY)
def test_every_cell_of_a_captured_model(supported, model):
    """That maps are exact is tested beside: of clips in test_video, of pictures in test_families and test_capture."""
    name, row = TINY[model], supported.loc[model]
    assert row.maps and name in {"sd1", *test_families.FAMILIES, *test_video.MODELS}
    pipe = build(name)
    assert (type(pipe).__name__, type(find_family(pipe)[1]).__name__) == (row.pipeline, row.network)
    chosen = [0, 1]
    if row.relevance:
        with score_heads(pipe, CONCEPTS) as votes:
            draw(name)
        chosen = votes.relevance().top("Animals", 2)
    else:
        with pytest.raises(ValueError, match="cannot be scored"), score_heads(pipe, CONCEPTS):
            pass
    with capture(pipe, "bear") as captured:
        draw(name)
    maps = captured.head_maps()
    assert row.per_head and maps.n_heads == len(cross_attention_heads(pipe))
    assert row.selection == ("by relevance" if row.relevance else "by number")
    assert maps.heatmap("bear", heads=chosen).dims == (("frame", "y", "x") if row.video else ("y", "x"))


def test_every_model_is_tried_and_every_other_one_refused(supported):
    assert list(supported.index[supported.maps]) == list(TINY)
    refused = supported[~supported.maps]
    assert not refused[["per_head", "relevance", "video"]].any(axis=None) and (refused.selection == "").all()


def test_every_network_is_laid_out_once(supported, monkeypatch):
    monkeypatch.setattr("selattn_lib.models.supported.cross_attention_heads", lambda _: pytest.fail("once more"))
    assert supported_models().set_index("model").equals(supported)


def test_heads_at_their_published_sizes(supported):
    heads = supported.heads
    assert heads["Stable Diffusion 1.x"] == 128 and heads["Stable Diffusion XL"] == 1300
    assert heads["FLUX.1"] == (19 + 38) * 24 and heads["Z-Image"] == 30 * 30
    assert heads["Wan 2.1 14B"] == 40 * 40 and heads["CogVideoX 5B"] == 42 * 48


def test_the_books_table_is_this_one():
    peer = json.loads(PEER.read_text(encoding="utf-8"))
    assert OUT.read_text(encoding="utf-8") == table(peer, processors_of_models()), "python tests/benchmarks/models.py"


README = """Name: attention_map_diffusers
Version: 9.1

| Key | Checkpoint | Relations |
| --- | --- | --- |
| `sdxl` | [`stabilityai/stable-diffusion-xl-base-1.0`](https://example.org) | image->text |
"""
CONFIG = 'class CaptureConfig:\n    heads: Union[str, Sequence[int]] = "mean"\n'
COMPUTE = 'def reduce_heads(tensor, heads):\n    if heads == "all":\n        return tensor\n'
PROCESSORS = 'MORE_PROCESSOR_NAMES = {"OneProcessor": 1, "OtherProcessor": 2}\nOTHER = {"not": 3}\n'


def test_what_the_peers_source_says_is_read_from_it(tmp_path):
    (tmp_path / "attention_map_diffusers-9.1.dist-info").mkdir()
    (tmp_path / "attention_map_diffusers-9.1.dist-info/METADATA").write_text(README)
    (tmp_path / "attention_map_diffusers").mkdir()
    for name, source in {"config": CONFIG, "compute": COMPUTE, "processors": PROCESSORS}.items():
        (tmp_path / f"attention_map_diffusers/{name}.py").write_text(source)
    peer = read_peer(tmp_path)
    assert (peer["version"], peer["checkpoints"]) == ("9.1", ["stable-diffusion-xl-base-1.0"])
    assert peer["processors"] == ["OneProcessor", "OtherProcessor"]
    assert peer["per_head"] and peer["heads_by_default"] == "mean"
    assert not peer["relevance"] and not peer["video"]
    named = peer_cells(peer, "Stable Diffusion XL", {"OneProcessor"}, video=False)
    assert named["maps"] == "yes" and named["selection"] == "by number" and named["relevance"] == "no"
    assert peer_cells(peer, "Kolors", {"OneProcessor", "OtherProcessor"}, video=False)["maps"] == "not named"
    assert set(peer_cells(peer, "Kolors", {"OneProcessor", "Third"}, video=False).values()) == {"no"}
