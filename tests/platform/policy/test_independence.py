"""The policy and its benchmark run where there is only Python, torch and transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
BLOCKED = ("ray", "hydra", "omegaconf", "mani_skill", "sapien", "mlflow", "deepspeed", "gymnasium", "matplotlib")
RUN = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import pkgutil, st4vla.platform.policy as policy
from importlib import import_module
for package in (policy, import_module("st4vla.platform.policy.engine")):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        import_module(found.name)
sys.argv = ["policy_latency", "--batches", "1", "--seconds", "0", "--out", sys.argv[1]]
from benchmarks.policy_latency import main
main()
"""


def test_the_benchmark_runs_with_everything_else_blocked_and_writes_figures_and_a_chart(tmp_path):
    # Loggers of other tests must not reach it, and the namespace comes from where this process has it.
    own = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(part for part in sys.path if part)])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "policy_latency_tiny.json").read_text())
    assert [(row["batch"], row["what"]) for row in report["milliseconds"]] == [
        (1, "System 2"),
        (1, "System 1"),
        (1, "both"),
    ]
    assert all(row["engine"] > 0 and row["eager"] > 0 for row in report["milliseconds"])
    assert (tmp_path / "policy_latency_tiny.png").is_file()
