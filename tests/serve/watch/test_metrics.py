"""What is counted, how many series there can be, and that the Grafana board asks only for what is there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from st4vla.serve.events import Ended, Opened, Refused, Served, Stopped, Trouble
from st4vla.serve.recorder.figures import RecorderMetrics
from st4vla.serve.recorder.recording import Recorder
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.watch.metrics import FleetMetrics, MetricsConfig, exposition

MakeServed = Callable[..., Served]


def values(text: bytes) -> dict[str, float]:
    """Read Prometheus text as {name{labels without replica}: value}."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "replica")
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def tell_all(metrics: FleetMetrics, make_served: MakeServed) -> None:
    clamped = {"kind": "clamped", "limit": "velocity", "rows": [0, 1]}
    metrics(make_served(1, interventions=[clamped, clamped]))
    metrics(make_served(2, robot="arm-2", batch_size=3))
    for event in (
        Opened("arm-1", "s", "openpi"),
        Refused("stale", robot="arm-1"),
        Ended("arm-1", "s", "episode", True),
        Stopped(True, "arm-2"),
        Trouble("recorder_died", "it died"),
    ):
        metrics(event)


def test_everything_that_is_told_is_counted(make_served: MakeServed) -> None:
    metrics = FleetMetrics(waiting=lambda: 5)
    tell_all(metrics, make_served)
    seen = values(exposition({"a": metrics.families()}))
    assert seen["st4vla_requests_total{canary=false,model=st4vla,robot=arm-1,version=7}"] == 1
    assert seen["st4vla_latency_seconds_bucket{le=0.02,robot=arm-1}"] == 1
    assert seen["st4vla_latency_seconds_bucket{le=0.01,robot=arm-1}"] == 0
    assert seen["st4vla_stage_seconds_sum{model=st4vla,stage=queue,version=7}"] == 0.004
    assert seen["st4vla_robot_plan_age_seconds{robot=arm-2}"] == 0.02
    assert seen["st4vla_batch_size_sum{model=st4vla,version=7}"] == 4
    assert seen["st4vla_interventions_total{kind=clamped,limit=velocity,robot=arm-1}"] == 2
    assert seen["st4vla_refusals_total{kind=stale,robot=arm-1}"] == 1
    assert seen["st4vla_sessions_opened_total{protocol=openpi,resumed=false}"] == 1
    assert seen["st4vla_episodes_ended_total{kind=episode,success=true}"] == 1
    assert seen["st4vla_emergency_stop{robot=arm-2}"] == 1
    assert seen["st4vla_troubles_total{kind=recorder_died}"] == 1
    assert seen["st4vla_queue_requests{}"] == 5


def test_robots_beyond_the_bound_share_one_series(make_served: MakeServed) -> None:
    metrics = FleetMetrics(MetricsConfig(max_robots=3, max_names=2))
    for number in range(1000):
        metrics(make_served(0, robot=f"arm-{number}", model_version=str(number)))
    text = exposition({"a": metrics.families()})
    requests = [name for name in values(text) if name.startswith("st4vla_requests_total")]
    assert len(requests) <= 12 and len(text.splitlines()) < 500
    assert sum(values(text)[name] for name in requests) == 1000
    assert "st4vla_robot_plan_age_seconds{robot=other}" in values(text)


def test_a_stop_that_another_process_released_is_gone() -> None:
    stops = {"arm-2": "smoke"}
    metrics = FleetMetrics(stops=lambda: stops)
    metrics(Stopped(True, "arm-1"))
    assert "st4vla_emergency_stop{robot=arm-2}" in values(exposition({"a": metrics.families()}))
    stops.clear()
    left = [name for name in values(exposition({"a": metrics.families()})) if "emergency_stop" in name]
    assert left == []


def test_a_hostile_name_stays_inside_its_label(make_served: MakeServed) -> None:
    metrics = FleetMetrics()
    metrics(make_served(0, robot='"} 1\nst4vla_fake 7\n#'))
    assert not [name for name in values(exposition({"a": metrics.families()})) if name.startswith("st4vla_fake")]


def test_replicas_are_read_as_one_target(make_served: MakeServed) -> None:
    one, two = FleetMetrics(), FleetMetrics()
    one(make_served(0))
    two(make_served(1))
    text = exposition({"a": one.families(), "b": two.families()}).decode()
    assert text.count("# TYPE st4vla_requests_total counter") == 1
    assert text.count('st4vla_requests_total{canary="false"') == 2 and 'replica="b"' in text


def test_the_board_asks_only_for_metrics_that_are_there(
    checkout: Path, make_served: MakeServed, recorder_config: RecorderConfig
) -> None:
    metrics, recorder = FleetMetrics(), Recorder(recorder_config)
    recorder.counts.cut["disk"] += 1
    recorder.counts.left_out["disk"] += 1
    metrics.add(RecorderMetrics(recorder))
    tell_all(metrics, make_served)
    recorder.close(0)
    there = {name.split("{")[0] for name in values(exposition({"a": metrics.families()}))}
    board = json.loads((checkout / "serve" / "watch" / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked += [one["definition"] for one in board["templating"]["list"] if "definition" in one]
    names = {name for expr in asked for name in re.findall(r"st4vla_\w+", expr)}
    assert len(asked) >= 12 and names - there == set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {name for name in there if "recorder" in name} <= {*names, *RECORDER_NOT_DRAWN}


RECORDER_NOT_DRAWN = ("st4vla_recorder_refused_total", "st4vla_recorder_frames_total")
