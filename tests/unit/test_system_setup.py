"""Getting a browser, a font and Git, with commands that stand for the real ones."""

import os
import stat
import sys
from pathlib import Path

import pytest
import system_setup


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, empty; playwright has fetched no browser and cannot."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(system_setup, "APPLICATIONS", ())
    monkeypatch.setattr(system_setup, "PLAYWRIGHT_CHROMIUM", f"print({str(tmp_path / 'fetched' / 'chrome')!r})")
    monkeypatch.setattr(system_setup, "FONTS", (str(tmp_path),))
    (tmp_path / "a.ttf").touch()
    write_command(folder / "git", "exit 0")
    write_command(folder / "python", "exit 1")
    monkeypatch.setattr(sys, "executable", write_command(folder / "python", f'exec {sys.executable} "$@"'))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


def write_command(path: Path, script: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def fetching(path: Path, script: str) -> str:
    """A script that writes the command `path`."""
    write = f'/bin/mkdir -p {path.parent}; printf "#!/bin/sh\\n{script}\\n" > {path}; /bin/chmod +x {path}'
    return f"{write}; exit 0"


def playwright(commands: Path, script: str) -> None:
    """Let `python -m playwright install chromium` do what `script` says."""
    python = (commands / "python").read_text().splitlines()[-1]
    write_command(commands / "python", f'if [ "$2" = playwright ]; then {script}; fi\n{python}')


def test_a_browser_that_is_there_is_taken_and_nothing_fetched(
    commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_command(commands / "chromium", "exit 1")  # a stub
    chrome = write_command(commands / "google-chrome", "exit 0")
    assert system_setup.main() == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"browser: {chrome}" and [line.split(":")[0] for line in lines] == ["browser", "font", "git"]


def test_playwright_is_tried_first(commands: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetched = tmp_path / "fetched" / "chrome"
    playwright(commands, fetching(fetched, "exit 0"))
    assert system_setup.main() == 0
    said = capfd.readouterr().out
    assert "playwright install chromium" in said and "apt-get" not in said and f"browser: {fetched}" in said


def test_then_the_systems_package(commands: Path, capfd: pytest.CaptureFixture[str]) -> None:
    playwright(commands, "echo unreachable; exit 1")
    package = fetching(commands / "chromium", "exit 0")
    write_command(commands / "apt-get", f'if [ "$1" = install ]; then {package}; fi')
    assert system_setup.main() == 0
    said = capfd.readouterr().out
    places = [said.index(text) for text in ("playwright install", "unreachable", "apt-get update", "apt-get install")]
    assert places == sorted(places) and f"browser: {commands / 'chromium'}" in said


def test_a_download_that_hangs_is_given_up(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_setup, "DOWNLOAD_S", 0.2)
    playwright(commands, "/bin/sleep 60")
    write_command(commands / "apt-get", "exit 100")
    assert system_setup.main() == 1
    assert "given up" in capfd.readouterr().out


def test_where_there_is_no_way_one_sentence_says_what_to_install(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    playwright(commands, "exit 1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert system_setup.main() == 1
    said = capfd.readouterr().out.splitlines()
    assert said[-1] == (
        "No browser found, and none could be fetched: install Chromium or Google Chrome "
        "(Debian, Ubuntu: apt-get install chromium), then run this again."
    )


@pytest.mark.parametrize("lost, said", [("a.ttf", "No font found"), ("bin/git", "No git found")])
def test_a_font_and_git_are_needed_too(
    commands: Path, tmp_path: Path, lost: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_command(commands / "chromium", "exit 0")
    (tmp_path / lost).unlink()
    assert system_setup.main() == 1
    assert said in capfd.readouterr().out.splitlines()[-1]
