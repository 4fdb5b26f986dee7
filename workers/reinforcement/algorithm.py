"""Set RLlib's PPO up for the tabletop tasks; nothing else of ours knows its settings' names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from st4vla.envs.vector import VectorConfig, make_vector_env
from st4vla.platform.errors import ConfigError

RLLIB_ENV, SOLVED = "st4vla_tabletop", "solved"
LEARNER_METRICS = ("policy_loss", "vf_loss", "vf_explained_var", "entropy")


@dataclass(frozen=True)
class PpoConfig:
    """How PPO learns (J. Schulman et al., "Proximal policy optimization algorithms", 2017).

    Attributes:
        runners: env runner processes; 0 steps the worlds in the learner's own.
        worlds: worlds in each of them.
        batch: control steps between two updates.
        minibatch, epochs: how a batch is gone through.
        lr: learning rate at the start; it falls linearly to a tenth at the end of the budget.
        gamma, gae_lambda: discount, and the generalised advantage estimate's.
        clip: how far an update may move a probability ratio from 1.
        entropy: weight of the entropy bonus.
        grad_clip: largest norm of a gradient.
        hidden: widths of actor and critic.
        log_std: logarithm of the first standard deviation, in half action ranges.
    """

    runners: int = 0
    worlds: int = 16
    batch: int = 1024
    minibatch: int = 256
    epochs: int = 10
    lr: float = 1e-3
    gamma: float = 0.95
    gae_lambda: float = 0.9
    clip: float = 0.2
    entropy: float = 0.0
    grad_clip: float = 0.5
    hidden: tuple[int, ...] = (128, 128)
    log_std: float = -0.7

    def __post_init__(self) -> None:
        if self.runners < 0 or min(self.worlds, self.batch, self.minibatch, self.epochs) < 1:
            raise ConfigError("ppo.worlds, batch, minibatch and epochs need at least 1 each, ppo.runners at least 0.")
        if self.minibatch > self.batch:
            raise ConfigError(f"ppo.minibatch is {self.minibatch}, more than ppo.batch={self.batch}; make it smaller.")
        if not 0.0 < self.gamma <= 1.0 or not 0.0 <= self.gae_lambda <= 1.0:
            raise ConfigError(f"ppo.gamma is {self.gamma} and gae_lambda {self.gae_lambda}; both lie in 0..1.")


def build_algorithm(config: PpoConfig, env: VectorConfig, steps: int, name: str, seed: int) -> Any:
    """Build RLlib's algorithm on the Ray that is connected; `steps` is the budget that the learning rate falls over."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from st4vla.workers.reinforcement.module import ActorCritic

    register_env(RLLIB_ENV, lambda settings: make_vector_env(**settings))
    model = {"task": env.task, "hidden": config.hidden, "name": name, "log_std": config.log_std}
    made = (
        PPOConfig()
        .environment(env=RLLIB_ENV, env_config=vars(env))
        .env_runners(
            num_env_runners=config.runners,
            num_envs_per_env_runner=config.worlds,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length="auto",
        )
        .training(
            train_batch_size_per_learner=config.batch,
            minibatch_size=config.minibatch,
            num_epochs=config.epochs,
            lr=[[0, config.lr], [steps, config.lr / 10]],
            gamma=config.gamma,
            lambda_=config.gae_lambda,
            clip_param=config.clip,
            vf_clip_param=1e6,  # the published algorithm does not clip the critic's loss
            vf_loss_coeff=0.5,
            entropy_coeff=config.entropy,
            use_kl_loss=False,
            grad_clip=config.grad_clip,
            grad_clip_by="global_norm",
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ActorCritic, model_config=model))
        .callbacks(on_episode_end=note_success)
        .reporting(min_time_s_per_iteration=0, metrics_num_episodes_for_smoothing=100)
        .debugging(seed=seed, log_level="ERROR")
    )
    return made.build_algo()


def note_success(*, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
    """Count the episodes that solved their task: only a solved one is terminated, others are cut.

    A sum, because RLlib empties a window with every result: a mean over "the last 100" would be over one round.
    """
    metrics_logger.log_value(SOLVED, float(episode.is_terminated), reduce="sum")


@dataclass(frozen=True)
class Iteration:
    """What one round of sampling and learning gave.

    Attributes:
        steps: control steps so far.
        episodes: that ended in this round, exploration included.
        solved: how many of them solved their task.
        episode_return, episode_steps: their means; nan without any.
        learner: losses and the like.
    """

    steps: int
    episodes: int
    solved: int
    episode_return: float
    episode_steps: float
    learner: Mapping[str, float]

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "Iteration":
        """Pick it out of RLlib's result."""
        sampled, learned = result["env_runners"], result["learners"]["default_policy"]
        return cls(
            steps=int(sampled["num_env_steps_sampled_lifetime"]),
            episodes=int(sampled.get("num_episodes", 0)),
            solved=int(sampled.get(SOLVED, 0)),
            episode_return=float(sampled.get("episode_return_mean", float("nan"))),
            episode_steps=float(sampled.get("episode_len_mean", float("nan"))),
            learner={name: float(learned[name]) for name in LEARNER_METRICS if name in learned},
        )


def cpu_seconds(algorithm: Any) -> float:
    """Sum the CPU seconds of this process and of every env runner."""
    seconds = algorithm.env_runner_group.foreach_env_runner(_process_cpu_s, local_env_runner=False)
    return _process_cpu_s() + sum(seconds)


def _process_cpu_s(runner: Any = None) -> float:
    import time

    return time.process_time()
