"""The measurement of training's speed runs whole on a small policy, and keeps nothing of that."""

import pytest

from benchmarks.results import read_results
from benchmarks.train_mfu import MFU, RATIO, main, shares

SMALL = ["--preset", "tiny", "--device", "cpu", "--robot", "2", "--grounding", "1", "--steps", "2", "--warm-up", "0"]


def test_its_rows_are_those_of_the_results() -> None:
    rows = {
        row["name"]: (row["issue"], row["unit"], row["goal"], row["needs"]) for row in read_results() if "needs" in row
    }
    assert rows[MFU] == (4, "%", ">= 35", "gpu") and rows[RATIO] == (4, "times", ">= 2", "gpu")


def test_shares_are_of_the_peak_and_of_the_reference() -> None:
    ours = {"seconds": 2.0, "samples": 40.0, "operations": 800.0, "memory_gib": 1.0}
    found = shares(ours, ours | {"seconds": 6.0}, peak=1000.0)
    assert (found["mfu"], found["ratio"], found["samples_per_s"]["house"]) == (0.4, 3.0, 20.0)
    assert shares(ours, ours, None)["mfu"] is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_small_policy_goes_through_both_loops_and_is_no_figure(
    dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = main([*SMALL, "--dtype", dtype])
    assert found["mfu"] is None and found["ratio"] > 0 and found["flops_per_s"] > 0
    said = capsys.readouterr().out
    assert '"preset": "tiny"' in said and "not a figure" in said


def test_a_small_policy_is_not_recorded() -> None:
    with pytest.raises(SystemExit, match="tiny on cpu is not recorded"):
        main([*SMALL, "--record"])
