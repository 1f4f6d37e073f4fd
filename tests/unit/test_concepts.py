"""Concept tables, shipped and from files."""

from pathlib import Path

import pytest

from selattn_lib.concepts import load_concepts, read_lines


def test_concept_tables() -> None:
    paper, emoji = load_concepts("paper"), load_concepts("emoji-sd")
    assert len(paper) == 34 and {len(words) for words in paper.values()} == {10}
    paper["Animals"].clear()
    assert len(load_concepts("paper")["Animals"]) == 10, "each caller has a table of its own"
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_windows_saves_them(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark, which is no part of the first word."""
    (tmp_path / "lines.txt").write_bytes("B\u00e4r\r\ncat\r\n".encode(encoding))
    (tmp_path / "table.yaml").write_bytes("Pets:\r\n- B\u00e4r\r\n- cat\r\n".encode(encoding))
    assert read_lines(tmp_path / "lines.txt") == ["B\u00e4r", "cat"]
    assert load_concepts(tmp_path / "table.yaml") == {"Pets": ["B\u00e4r", "cat"]}


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("B\u00e4r".encode("latin-1"))
    with pytest.raises(ValueError, match="lines.txt is not text in UTF-8"):
        read_lines(tmp_path / "lines.txt")


def test_a_files_name_may_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """papermill hands `-p concepts 2024` over as a number."""
    monkeypatch.chdir(tmp_path)
    Path("2024").write_text("Pets: [dog]\n")
    assert load_concepts(2024) == {"Pets": ["dog"]}  # type: ignore[arg-type]
