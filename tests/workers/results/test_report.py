"""Facts about the report."""

from pathlib import Path

from st4vla.workers.results.official import official_tables
from st4vla.workers.results.report import Film, ReportInput, percent, write_report
from st4vla.workers.results.summary import summarise


def row(seed, success, suite="seen", perturbations=(), **changes):
    return {
        **{"suite": suite, "task": "reach", "variant": "default", "seed": seed, "perturbations": list(perturbations)},
        **{"success": success, "partial_credit": float(success), "stages": ["over it"] if success else [], "steps": 9},
        **{"failure": "" if success else "task", "reason": "", "recovery_steps": 4 if perturbations else None},
        **{"wall_s": 4.0, "policy_s": 1.0, "render_s": 1.0, "physics_s": 1.0},
        **changes,
    }


def report(tmp_path: Path) -> str:
    rows = [row(seed, success=seed < 3, steps=9 + seed) for seed in range(4)]
    rows += [row(seed, True, "moved_object") for seed in range(2)]
    rows += [row(seed, seed == 0, "moved_object", ("object_moved",)) for seed in range(2)]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"film")
    films = [Film("films/a.mp4", "seen / reach, seed 0", "reach the <red> cube - 9 steps", True)]
    given = ReportInput("tiny on seen", {"policy": "runs/x"}, summarise(rows), rows, films)
    return write_report(tmp_path, given).read_text()


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    page = report(tmp_path)
    assert 'src="data:image/png;base64,' in page
    assert 'src="data:video/mp4;base64,' in page
    assert "http://" not in page and "https://" not in page


def test_the_page_shows_intervals_and_twins(tmp_path: Path):
    page = report(tmp_path)
    assert "75 % [30, 95]" in page
    assert "+50 [" in page
    assert "1: 75 %" in page


def test_words_are_escaped(tmp_path: Path):
    assert "reach the &lt;red&gt; cube" in report(tmp_path)


def test_each_plot_is_also_a_file(tmp_path: Path):
    report(tmp_path)
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["failures.png", "steps.png", "success.png", "time.png"]


def test_a_suite_with_variants_gets_a_heat_map_and_stands_beside_published_rows(tmp_path: Path):
    rows = [
        row(seed, seed < 4 * place, "simplerenv_widowx", task="carrot", variant=variant)
        for place, variant in enumerate(("day", "night"))
        for seed in range(4)
    ]
    given = ReportInput("tiny", {}, summarise(rows), rows, (), official_tables(rows))
    page = write_report(tmp_path, given).read_text()
    assert (tmp_path / "plots" / "variants.png").exists()
    assert "InternVLA-M1" in page and "67.9" in page and "average as printed; its cells give 32.1" in page


def test_a_run_without_a_success_has_no_plot_of_steps(tmp_path: Path):
    rows = [row(0, success=False)]
    write_report(tmp_path, ReportInput("tiny", {}, summarise(rows), rows))
    assert not (tmp_path / "plots" / "steps.png").exists()


def test_nan_is_a_dash():
    assert percent(float("nan")) == "-"
    assert percent(0.734) == "73 %"
