"""Parameters as papermill and the command line hand them over."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_families import build_sdxl

from selattn_lib.models.pipelines import in_embedded_world, model_source
from selattn_lib.studies.base import concepts_of, guidance_of
from selattn_lib.studies.checks import check_parameters, check_selection, object_concepts
from selattn_lib.studies.generated import DiagnosisStudy, Study
from selattn_lib.studies.noised import KnownTruthStudy
from selattn_lib.studies.parameters import read_list


@pytest.mark.parametrize("heads, thresholds", [(0, [0.5]), (129, [0.5]), (True, [0.5]), (30, [1.5]), (30, [])])
def test_a_bad_selection_is_refused(heads: int, thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_selection(heads, thresholds, "emoji-sd")


def test_heads_are_counted_on_the_model(tmp_path: Path) -> None:
    build_sdxl().save_pretrained(tmp_path / "sdxl")
    model = str(tmp_path / "sdxl")
    assert check_selection([1300, 20], "[0.5]", model, several=True) == ([1300, 20], [0.5])
    with pytest.raises(ValueError, match="heads=1301: expected whole numbers from 1 to 1300, the heads of .*sdxl"):
        check_selection(1301, [0.5], model)


@pytest.mark.parametrize(
    "given",
    ["bear, cat", "[bear, cat]", "['bear', 'cat']", '["bear", "cat"]', "('bear', 'cat')", "'bear', 'cat'", "bear,cat,",
     ["bear", "cat"], ("bear", "cat")],
)  # fmt: skip
def test_words_in_any_form(given: Any) -> None:
    assert read_list("words", given) == ["bear", "cat"] and Study(words=given).words == ("bear", "cat")


@pytest.mark.parametrize("given", ["", "[]", "()", None, [], ()])
def test_no_words_in_any_form(given: Any) -> None:
    assert read_list("words", given) == [] and len(Study(words=given).words) == 10


def test_a_single_entry_and_numbers_as_text() -> None:
    assert read_list("words", "oak tree") == ["oak tree"] and read_list("words", "['7']") == ["7"]
    for given in ("20, 30", "[20, 30]", '["20", "30"]', (20, 30), ["20", 30]):
        assert read_list("heads", given, int) == [20, 30]
    assert read_list("thresholds", "0.4", float) == [0.4] == read_list("thresholds", ["0.4"], float)
    assert DiagnosisStudy(meanings="['Animals', 'Vehicles']").meanings == ("Animals", "Vehicles")


@pytest.mark.parametrize(
    "given, settings, said",
    [
        (7, {}, r"words=7: expected texts, such as \['bear', 'cat'\]"),
        ("[bear, 7, ['cat']]", {"kind": int}, "expected whole numbers"),
        ([True], {"kind": int}, "expected whole numbers"),
        ("20.5", {"kind": int}, "words='20.5': expected whole numbers"),
        ("half", {"kind": float}, "expected numbers, such as"),
        ({"bear": 1}, {}, "expected texts"),
        ("bear", {"least": 2}, "words='bear': expected 2 or more texts"),
        ("mouse, bat", {"each": 4}, "expected lists of 4 texts"),
        ([["mouse", "a mouse", "Animals"]], {"each": 4}, "expected lists of 4 texts"),
    ],
)
def test_what_is_no_such_list_is_refused(given: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_list("words", given, **settings)


EMOJI = {"model": "emoji-sd", "concept": "Animals", "heads": 30, "thresholds": [0.3, 0.4]}
CASE = {"cases": [["mouse", "a mouse", "Animals", "Electronics"]]}


@pytest.mark.parametrize(
    "given",
    [
        EMOJI | {"hrv": "emoji-sd", "masks": "", "dtype": "", "guidance": None, "help": print},
        EMOJI | {"words": "bear, cat"},
        EMOJI | {"segmenter": "sam3", "words": "unicorn"},
        {"models": "emoji-control"},
        {"heads": [20, 30], "doses": [0, 1]},
        {"model": "sd14", "concept": "Color"},
        {"concept_file": "", "concepts": []},
        CASE,
    ],
)
def test_what_a_chapter_can_be_run_with_is_let_through(given: dict[str, Any]) -> None:
    check_parameters(given, several=True)


@pytest.mark.parametrize(
    "given, said",
    [
        (
            {"concept": "Size"},
            "concept 'Size' is of no objects that the segmenter emoji-sd knows: expected one of Anim",
        ),
        ({"concept": "Animals", "other": "Time of Day"}, "concept 'Time of Day' is of no objects"),
        ({"concept_file": "", "concepts": ["Animals", "Color"]}, "concept 'Color' is of no objects"),
        ({"concept": "animals"}, "no concept 'animals': expected .*; did you mean 'Animals'"),
        ({"words": ["unicorn"]}, "the embedded segmenter knows no 'unicorn'"),
        ({"words": ["horze"]}, "did you mean 'horse'"),
        ({"heads": "[20, 30]"}, "heads='.20, 30.': expected one number"),
        ({"heads": "few"}, "heads='few': expected whole numbers"),
        ({"thresholds": [3]}, r"thresholds=\[3\]: expected numbers between"),
        ({"model": "emoji_sd"}, "no model 'emoji_sd': .*; did you mean 'emoji-sd'"),
        ({"models": ["emoji-sd", "sd99"]}, "no model 'sd99'"),
        ({"segmenter": "grounded_sam"}, "no segmenter 'grounded_sam': .*; did you mean 'grounded-sam'"),
        ({"dtype": "fp8"}, "dtype='fp8': .*'fp32', 'fp16' or 'bf16'"),
        ({"batch": 0}, "batch=0: expected a whole number, 1 or more"),
        ({"models": ["emoji-sd"], "scenes": 1}, "scenes=1: expected a whole number, 2 or more"),
        ({"draws": "many"}, "draws='many': expected a whole number, 1 or more"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"guidance": 0}, "guidance=0"),
        ({"scale": "off"}, "scale='off': expected a number"),
        ({"tokens": "some"}, "tokens='some': expected all or words"),
        ({"hrv": "nosuch.npz"}, "No head relevance at nosuch.npz"),
        ({"hrv_texts": "nosuch.txt"}, "no file 'nosuch.txt'"),
        ({"masks": "nosuch.json"}, "'nosuch.json': expected a COCO file"),
        ({"concepts": "nosuch.yaml"}, "no concepts 'nosuch.yaml'"),
        ({"learnt": "half"}, "learnt='half': expected whole numbers"),
        ({"cases": [["mouse", "a cat", "Animals", "Electronics"]]}, "word 'mouse' is not in the prompt"),
        ({"word": "cat", "prompt": "a bear"}, "word='cat' is not in the prompt"),
    ],
)
def test_a_parameter_is_refused_with_what_was_expected(given: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        check_parameters(EMOJI | given)
    assert "\n" not in str(error.value)


def test_a_chapter_without_masks_takes_any_concept() -> None:
    check_parameters({"concept": "Size", "other": "Color"}, objects=False)


def test_concepts_of_objects_are_those_that_can_be_composed() -> None:
    objects = object_concepts(concepts_of("emoji-sd"))
    assert len(objects) == 16 and not {"Color", "Size", "Time of Day", "Weather Conditions"} & {*objects}
    study = KnownTruthStudy(concept="Pets", concepts={"Pets": ["dog", "grapes"]}, scenes=2)
    assert all(mask.any() for _, mask in study.examples([0, 1]))
    with pytest.raises(ValueError, match="no drawing of 'unicorn': expected an object of the embedded world"):
        KnownTruthStudy(words=["unicorn"], scenes=1).examples([0])


def test_a_local_copy_of_the_embedded_model_is_of_its_world(tmp_path: Path) -> None:
    copy = shutil.copytree(model_source("emoji-sd"), tmp_path / "mine", ignore=shutil.ignore_patterns("segmenter"))
    study = Study(model=str(copy))
    assert (study.segmenter, study.guidance) == ("emoji-sd", 3) and guidance_of("sd14") == 7.5
    assert DiagnosisStudy(model=str(copy)).looked_for[0] == "mouse (Animals)"
    assert concepts_of(copy) == concepts_of("emoji-sd") != concepts_of("sd14")
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    assert not in_embedded_world(copy)
