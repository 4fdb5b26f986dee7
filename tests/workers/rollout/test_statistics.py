"""Facts about whose action scale a checkpoint of two robots acts with, in a micro policy of random weights."""

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from st4vla.platform.checkpoint import Lineage, save_checkpoint
from st4vla.platform.contracts import Observation
from st4vla.platform.data.statistics import EmbodimentStatistics, Statistics
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.inference import InferenceConfig as ActingConfig
from st4vla.platform.policy.model import St4vlaModel
from st4vla.platform.policy.processor import Processor
from st4vla.platform.policy.prompt import template_texts
from st4vla.platform.policy.tokenizer import build_tokenizer
from st4vla.workers.evaluation.evaluate import plan_episodes, run_folder
from st4vla.workers.evaluation.settings import EvalConfig
from st4vla.workers.rollout.actors import InferenceConfig, RolloutActor, WorkerSetup, gpus_per_replica
from st4vla.workers.rollout.episode import RolloutOptions
from st4vla.workers.rollout.inference import BatchConfig, InferenceServer
from st4vla.workers.rollout.policies import PolicySource, acting_for
from st4vla.workers.rollout.worlds import SIMPLER_SUITES, family

MICRO = Path(__file__).parents[2] / "platform" / "policy" / "micro.yaml"
BRIDGE, RT1, OWN = "oxe_bridge", "oxe_rt1", "tabletop_panda"
needs_assets = pytest.mark.skipif(not os.environ.get("ST4VLA_ASSETS"), reason="SimplerEnv's files: set ST4VLA_ASSETS")


def statistics(key: str, half_width: float) -> EmbodimentStatistics:
    rows = Statistics.of(np.linspace(-half_width, half_width, 14).reshape(2, 7))
    return EmbodimentStatistics(key, rows, rows)


@pytest.fixture(scope="module")
def two_robots(tmp_path_factory: pytest.TempPathFactory) -> PolicySource:
    """A checkpoint of Bridge and RT-1 whose policy.yaml names neither, with scales of 1, 10 and 100."""
    torch.set_num_threads(1)
    config = PolicyConfig.from_yaml(MICRO)
    known = {key: statistics(key, width) for key, width in ((OWN, 100.0), (BRIDGE, 1.0), (RT1, 10.0))}
    processor = Processor(config, build_tokenizer(template_texts(config.prompt), 512), known)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("two") / "checkpoint"
    return PolicySource(str(save_checkpoint(folder, St4vlaModel(config, processor.token_ids), processor, Lineage())))


@pytest.fixture
def seen() -> Observation:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Observation({"third_person": image, "wrist": image}, np.zeros(7, np.float32), "reach the red cube")


class Standing:
    """A world, as far as a client looks at it."""

    def __init__(self, embodiment: str):
        self.embodiment = embodiment


def evaluation(policy: PolicySource, **changes) -> EvalConfig:
    return EvalConfig(**{"policy": policy, "suites": ("simplerenv_widowx", "simplerenv_google_vm")} | changes)


def test_each_robot_acts_with_its_own_statistics_and_shares_one_model(two_robots: PolicySource, seen: Observation):
    keys = evaluation(two_robots).statistics
    assert keys == {"widowx": BRIDGE, "google_robot": RT1}
    setup = WorkerSetup(two_robots, RolloutOptions(), "simpler", statistics=keys)
    make_client = RolloutActor(setup)._make_client()
    for robot, key in keys.items():
        client = make_client(Standing(robot))  # pyright: ignore[reportArgumentType]
        assert client.spec.statistics_key == key
        alone = two_robots.load(ActingConfig(statistics_key=key)).act([seen], ["a"], [(3, 0)])[0].actions
        assert client.act(seen, "a", (3, 0)).actions.tobytes() == alone.tobytes()
    policy = two_robots.load()
    other = acting_for(policy, RT1)
    assert (policy.spec.statistics_key, other.spec.statistics_key) == (OWN, RT1)
    assert other.engine is policy.engine  # pyright: ignore[reportAttributeAccessIssue]


def test_one_batch_holds_rows_of_both_robots_each_in_its_own_scale(two_robots: PolicySource, seen: Observation):
    async def drive():
        server = InferenceServer(two_robots.load, BatchConfig(max_batch=3, max_wait_ms=1e9))
        asked = [server.act(seen, key, (3, 0), key) for key in (BRIDGE, "", RT1)]
        return await asyncio.gather(*asked), (await server.spec(RT1)).statistics_key

    chunks, key = asyncio.run(drive())
    bridge, own, rt1 = (chunk.actions[:, :3] for chunk in chunks)
    assert np.allclose(rt1, 10 * bridge, rtol=1e-4, atol=1e-6) and np.allclose(own, 100 * bridge, rtol=1e-4, atol=1e-6)
    assert np.abs(bridge).max() > 0 and key == RT1


def test_what_the_user_chooses_wins_and_is_another_evaluation(two_robots: PolicySource):
    found, chosen = evaluation(two_robots), evaluation(two_robots, inference=InferenceConfig(statistics_key=BRIDGE))
    assert found.settings()["statistics"] == {"widowx": BRIDGE, "google_robot": RT1}
    assert chosen.settings()["statistics"] == {"widowx": BRIDGE, "google_robot": BRIDGE}
    assert run_folder(found, plan_episodes(found)) != run_folder(chosen, plan_episodes(chosen))
    tabletop = evaluation(two_robots, suites=("seen",))
    assert "statistics" not in tabletop.settings()
    with pytest.raises(ConfigError, match="statistics_key is 'pr2'; .* has statistics of tabletop_panda, oxe_bridge"):
        _ = evaluation(two_robots, inference=InferenceConfig(statistics_key="pr2")).statistics


def test_a_robot_that_a_checkpoint_knows_nothing_of_is_refused_with_the_way_out(two_robots: PolicySource, tmp_path):
    (tmp_path / "policy.yaml").write_text("kind: st4vla")
    text = (Path(two_robots.name) / "statistics.json").read_text()
    (tmp_path / "statistics.json").write_text(text.replace(RT1, "franka"))
    with pytest.raises(PolicyError, match="google_robot needs one of oxe_rt1.*inference.statistics_key="):
        evaluation(PolicySource(str(tmp_path))).settings()
    assert PolicySource("random").statistics_keys(["widowx"]) == {}
    with pytest.raises(ConfigError, match="policy=random has statistics of no embodiment"):
        PolicySource("random").statistics_keys(["widowx"], BRIDGE)


@needs_assets
@pytest.mark.parametrize("suite", SIMPLER_SUITES)
def test_a_suites_robot_is_the_one_in_its_worlds(suite: str):
    from st4vla.envs.simpler.assets import find_tree
    from st4vla.envs.simpler.cases import resolve
    from st4vla.envs.simpler.robot import robot_model
    from st4vla.envs.simpler.suites import case_of

    worlds = family("simpler")
    specs = {spec.task: spec for spec in worlds.plan(suite, (), None, 0)}.values()
    robots = {robot_model(resolve(case_of(spec), find_tree()).build.robot).embodiment for spec in specs}
    assert robots == {worlds.robot_of(suite)}


@pytest.mark.parametrize(
    ("config", "num_gpus", "held", "share"),
    [
        (InferenceConfig(), 0, 0, 0.0),
        (InferenceConfig(), 1, 0, 1.0),
        (InferenceConfig(), 8, 1, 1.0),
        (InferenceConfig(replicas=3), 2, 0, 0.5),
        (InferenceConfig(replicas=3), 1, 0, 0.3333),
        (InferenceConfig(replicas=2), 1, 0.5, 0.25),
        (InferenceConfig(num_gpus=0.2), 1, 1, 0.2),
        (InferenceConfig(device="cpu"), 4, 0, 0.0),
    ],
)
def test_each_replica_reserves_a_gpu_where_there_is_one(config, num_gpus: float, held: float, share: float):
    assert gpus_per_replica(config, num_gpus, held) == share


def test_a_gpu_that_is_not_there_or_not_free_is_refused():
    with pytest.raises(ConfigError, match="of the cluster's 0 rendering holds 0"):
        gpus_per_replica(InferenceConfig(device="cuda"), 0, 0)
    with pytest.raises(ConfigError, match="of the cluster's 1 rendering holds 1. Lower gpu_workers.gpus_each"):
        gpus_per_replica(InferenceConfig(), 1, 1)
    with pytest.raises(ConfigError, match="device is 'tpu' and dtype 'float32'"):
        InferenceConfig(device="tpu")  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_without_a_gpu_auto_is_the_processor_with_the_same_rows_and_cuda_is_an_error(
    two_robots: PolicySource, seen: Observation
):
    plain, auto = (two_robots.load(device=device).act([seen], ["a"], [(3, 0)])[0] for device in ("cpu", "auto"))
    assert plain.actions.tobytes() == auto.actions.tobytes()
    with pytest.raises(ConfigError, match="device is cuda and this process has no GPU"):
        two_robots.load(device="cuda")


@pytest.mark.gpu
def test_on_a_gpu_a_policy_acts_there_as_it_does_on_a_processor(two_robots: PolicySource, seen: Observation):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    policies = [two_robots.load(device=device) for device in ("cpu", "cuda")]
    here, there = (policy.act([seen], ["a"], [(3, 0)])[0].actions for policy in policies)
    assert np.abs(here - there).max() < 1e-2 * np.abs(here).max()
