"""A checkpoint is written behind the step, from a copy that later steps leave alone."""

import threading
from collections import OrderedDict

import pytest
import torch

from st4vla.platform.train.background import Background, Snapshot, Stopwatch, copied


def test_a_copy_stays_as_it_was_and_a_view_becomes_as_small_as_it_is():
    weights = torch.zeros(1000)
    state = OrderedDict(head=weights[:2], counters={"step": 3}, shards=[(weights[2:4], "x")])
    kept = copied(state)
    weights += 1
    assert kept["head"].tolist() == [0.0, 0.0] and kept["shards"][0][0].tolist() == [0.0, 0.0]
    assert kept["head"].untyped_storage().nbytes() == 8
    assert isinstance(kept, OrderedDict) and kept["counters"] == {"step": 3}


def test_one_thing_runs_at_a_time_and_its_error_is_not_lost():
    behind, order, gate = Background(), [], threading.Event()

    def first():
        gate.wait()
        order.append("first")

    behind.start(first)
    order.append("the loop goes on")
    gate.set()
    behind.start(lambda: order.append("second"))
    behind.wait()
    assert order == ["the loop goes on", "first", "second"]

    def full():
        raise OSError("no space left")

    behind.start(full)
    with pytest.raises(OSError, match="no space"):
        behind.close()


def test_the_stopwatch_tells_what_the_loop_waited_and_what_the_whole_took():
    ticks, rows = iter([10.0, 10.0, 10.5, 12.0, 12.25, 14.0]), []
    watch = Stopwatch(rows.append, 7, lambda: next(ticks))
    for _ in range(2):
        with watch.holds_up():
            pass
    watch.go_on()
    assert rows == []
    watch.stands()
    assert rows == [{"step": 7.0, "checkpoint/blocked_s": 0.75, "checkpoint/whole_s": 4.0}]


def test_a_checkpoint_that_is_written_in_the_loop_hides_nothing():
    ticks, rows = iter([10.0, 10.0, 13.0, 13.5]), []
    watch = Stopwatch(rows.append, 7, lambda: next(ticks))
    with watch.holds_up():
        watch.stands()
    watch.go_on()
    assert rows == [{"step": 7.0, "checkpoint/blocked_s": 3.5, "checkpoint/whole_s": 3.5}]


def test_the_next_copy_takes_the_same_memory_unless_the_size_changed():
    snapshot, weights = Snapshot(), torch.zeros(4)
    first = snapshot.take({"w": weights, "steps": [weights[:1]]}, "file")
    snapshot.settle()
    weights += 1
    second = snapshot.take({"w": weights, "steps": [weights[:2]]}, "file")
    snapshot.flush()
    assert first["w"].data_ptr() == second["w"].data_ptr() and second["w"].tolist() == [1.0] * 4
    assert second["steps"][0].tolist() == [1.0, 1.0]
    snapshot.settle()
    assert snapshot.take({"w": weights}, "another file")["w"].data_ptr() != first["w"].data_ptr()


def test_a_tensor_is_copied_once_unless_it_was_written_to():
    snapshot, weights = Snapshot(), torch.zeros(4)
    first = snapshot.take(weights.detach(), "file")
    assert snapshot.take({"w": weights}, "policy")["w"] is first
    snapshot.flush()
    weights += 1  # as an average does that is lent to the model
    lent = snapshot.take({"w": weights}, "policy")["w"]
    snapshot.settle()
    assert lent.tolist() == [1.0] * 4 and first.tolist() == [0.0] * 4


def test_an_update_waits_for_the_copy_that_another_thread_makes(monkeypatch: pytest.MonkeyPatch):
    copy, begun, gate = torch._foreach_copy_, threading.Event(), threading.Event()

    def slow_copy(*args: object, **options: object) -> object:
        begun.set()
        gate.wait()
        return copy(*args, **options)

    monkeypatch.setattr(torch, "_foreach_copy_", slow_copy)
    snapshot, weights = Snapshot(), torch.zeros(4)
    kept = snapshot.take(weights, "file")
    behind, update = threading.Thread(target=snapshot.settle), threading.Thread(target=snapshot.flush)
    behind.start()
    begun.wait()
    update.start()
    assert update.is_alive()
    gate.set()
    update.join()
    weights += 1
    behind.join()
    assert kept.tolist() == [0.0] * 4


def test_a_loop_that_failed_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("st4vla.platform.train.background.PATIENCE_S", 0.01)
    behind, gate = Background(), threading.Event()
    behind.start(gate.wait)
    behind.leave()
    gate.set()
