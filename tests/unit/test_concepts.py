"""Concept tables, shipped and from files."""

from pathlib import Path

import pytest

from selattn_lib.concepts import load_concepts


def test_concept_tables() -> None:
    paper, emoji = load_concepts("paper"), load_concepts("emoji-sd")
    assert len(paper) == 34 and {len(words) for words in paper.values()} == {10}
    assert len(emoji) >= 20 and set(emoji) <= set(paper)
    with pytest.raises(ValueError, match="nosuch"):
        load_concepts("nosuch")


@pytest.mark.parametrize("text", ["!!python/object:os.system {}", "a: [", "a: !b c", "\xff"])
def test_a_file_that_is_no_plain_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "concepts.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="concepts.yaml is not read .*: expected plain YAML") as error:
        load_concepts(tmp_path / "concepts.yaml")
    assert "\n" not in str(error.value)


def test_concepts_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("Pets: [dog, cat]\n")
    assert load_concepts(path) == {"Pets": ["dog", "cat"]}
    path.write_text("Pets: dog\n")
    with pytest.raises(ValueError, match="list of words"):
        load_concepts(path)
