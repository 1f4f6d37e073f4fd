"""Parameters as papermill and the command line hand them over."""

from pathlib import Path
from typing import Any

import pytest
from tiny_families import build_sdxl

from selattn_lib.studies.generated import DiagnosisStudy, Study
from selattn_lib.studies.parameters import check_selection, read_list


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
