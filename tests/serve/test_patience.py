"""A batch waits for foreseen robots exactly as long as that saves more than it costs."""

from st4vla.serve.patience import Durations, Patience, PatienceConfig


def a_patience(robots: int, gap_s: float, batch_s: float, fixed: bool = True) -> Patience:
    """A patience that has seen robots ask `gap_s` after each answer; the last answer came at time 10."""
    patience = Patience(PatienceConfig(max_wait_ms=30, share=0.5, slack_ms=2))
    names = [f"robot{i}" for i in range(robots)]
    for now in (1.0, 2.0, 3.0):
        for size in (1, robots):
            patience.answered(names[:size], size, batch_s if fixed else batch_s * size, now)
        for name in names:
            patience.asked(name, now + gap_s)
    patience.answered(names, robots, batch_s if fixed else batch_s * robots, 10.0)
    return patience


def test_a_lone_request_waits_for_seven_robots_that_will_ask_in_a_moment() -> None:
    patience = a_patience(8, gap_s=0.004, batch_s=0.050)
    assert patience.wait_until({"robot0"}, 10.001, 15, 10.001) == 10.006


def test_nobody_waits_where_a_row_costs_as_much_alone() -> None:
    patience = a_patience(8, gap_s=0.004, batch_s=0.050, fixed=False)
    assert patience.wait_until({"robot0"}, 10.001, 15, 10.001) == 10.001


def test_nobody_waits_for_robots_that_ask_at_their_own_rate() -> None:
    patience = a_patience(8, gap_s=0.480, batch_s=0.020)
    assert patience.wait_until({"robot0"}, 10.001, 15, 10.001) == 10.001


def test_four_wait_for_the_four_they_would_otherwise_take_turns_with() -> None:
    patience = a_patience(8, gap_s=0.020, batch_s=0.050)
    assert patience.wait_until({f"robot{i}" for i in range(4)}, 10.001, 12, 10.001) == 10.022


def test_seven_do_not_wait_long_for_one() -> None:
    patience = a_patience(8, gap_s=0.020, batch_s=0.050)
    waiting = {f"robot{i}" for i in range(7)}
    assert patience.wait_until(waiting, 10.001, 15, 10.001) == 10.001
    assert patience.wait_until(waiting, 10.001, 15, 10.020) == 10.022


def test_no_batch_waits_longer_than_half_of_what_it_takes() -> None:
    patience = a_patience(8, gap_s=0.030, batch_s=0.050)
    assert patience.wait_until({"robot0"}, 10.0, 15, 10.0) == 10.0


def test_a_robot_that_is_late_is_not_waited_for() -> None:
    patience = a_patience(2, gap_s=0.004, batch_s=0.050)
    assert patience.wait_until({"robot0"}, 10.020, 15, 10.020) == 10.020


def test_a_full_batch_does_not_wait() -> None:
    patience = a_patience(8, gap_s=0.004, batch_s=0.050)
    assert patience.wait_until({"robot0"}, 10.001, 0, 10.001) == 10.001


def test_nothing_is_known_at_first() -> None:
    patience = Patience(PatienceConfig())
    patience.asked("robot0", 1.0)
    assert patience.wait_until({"robot0"}, 1.0, 15, 1.0) == 1.0


def test_durations_tell_what_a_batch_costs_from_what_a_row_costs() -> None:
    durations = Durations()
    for size in (1, 4, 2, 8, 1, 3):
        durations.learn(size, 0.030 + 0.005 * size)
    fixed, each = durations.line()
    assert abs(fixed - 0.030) < 1e-9 and abs(each - 0.005) < 1e-9 and abs(durations.of(10) - 0.080) < 1e-9


def test_durations_of_one_size_count_as_fixed() -> None:
    durations = Durations()
    durations.learn(4, 0.040)
    assert durations.line() == (0.040, 0.0)
