"""What the book includes is what the commands write from the numbers that are stored."""

import json

import pytest

from benchmarks import run, scale, sliders, summary


def test_the_cost_of_capture() -> None:
    stored = json.loads((run.ROOT / "tests/benchmarks/results.json").read_text())
    assert (run.ROOT / "book/performance_table.md").read_text(encoding="utf-8") == run.markdown(stored)


def test_the_summary_of_the_cost() -> None:
    assert summary.TABLE.read_text(encoding="utf-8") == summary.stored()


def test_the_summary_s_ratios_are_medians_over_runs() -> None:
    seconds = {"plain": [1.0, 2.0, 1.0], "capture": [1.1, 2.4, 1.0], "daam": [], "amd-exact": [1.5]}
    shown = " | ".join(summary.column("SDXL", seconds, 7.4)).replace("\N{NO-BREAK SPACE}", " ")
    assert shown == "SDXL | 1.00 s | × 1.10 | not supported | × 1.50 | 7 MB | 3"


def test_scale() -> None:
    stored = json.loads(scale.RESULTS.read_text())
    assert {name: (scale.BOOK / name).read_text(encoding="utf-8") for name in scale.tables(stored)} == scale.tables(
        stored
    )


def test_sliders() -> None:
    assert sliders.TABLE.read_text(encoding="utf-8") == sliders.markdown(json.loads(sliders.RESULTS.read_text()))


def test_a_row_says_on_which_machine_it_was_measured() -> None:
    """Ratios are to the plain run of the same round, and so of the same machine."""
    here, there = ({**run.machine(), "cpu": cpu} for cpu in ("here", "there"))
    seconds = [{"plain": 10.0, "capture": 10.1}, {"plain": 20.0, "capture+proof": 20.4}]
    cells = [{"time/0": {"cpu_s": cpu, "image_changed_by": dict.fromkeys(cpu, 0.0)}} for cpu in seconds]
    stored = [{"machine": here, "date": "1", "cells": cells[0]}, {"machine": there, "date": "2", "cells": cells[1]}]
    table = run.markdown(stored).replace("\N{NO-BREAK SPACE}", " ")
    assert "| nothing (A) | 10.0 s | - | - | no | - | - |" in table
    assert "that it does not know (B) | × 1.020 (1.020 to 1.020 of 1) | - | - | no | - | - |" in table
    assert table.count("\n| ") == 5 and "Machine B, 2: there," in table


def test_what_was_measured_elsewhere_stays(tmp_path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"machine": {"cpu": "another"}, "cells": {"surface": 1.0}, "date": "1"}]))
    run.Results(path).add("surface", 2.0)
    run.Results(path).add("hooks/capture", [0.1])
    stored = json.loads(path.read_text())
    assert [found["cells"] for found in stored] == [{"surface": 1.0}, {"surface": 2.0, "hooks/capture": [0.1]}]


def test_a_round_counts_when_every_way_that_is_wanted_is_in_it(tmp_path) -> None:
    results = run.Results(tmp_path / "results.json", ["plain", "capture"])
    for pair in range(run.PAIRS):
        assert not run.is_done(results, "time")
        results.cells[f"time/{pair}"] = {"cpu_s": {"plain": 1, "capture": 1}}
    assert run.is_done(results, "time")
    results.names = ["plain", "capture", "capture+proof"]
    assert run.measured(results, "time") == set()


def test_the_times_of_sliders_are_the_medians_of_what_the_tests_print() -> None:
    head = "___ test_a_slider_step_with_maps_as_large_as_sd14s[{}] ___\nmilliseconds of each step: {}\n"
    output = head.format("heads", "[7.0, 8.0, 30.0]") + head.format("diagnosis", "[15.0]")
    assert sliders.times(output) == pytest.approx({"heads": 8, "diagnosis": 15})
