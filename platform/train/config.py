"""Settings of a training stage, checked where they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.adapters import AdapterConfig
from st4vla.platform.train.average import AverageConfig
from st4vla.platform.train.guard import AlarmConfig

Stage = Literal["grounding", "action"]
STAGES: tuple[Stage, ...] = ("grounding", "action")
PRECISIONS = ("fp32", "bf16")
OFFLOADS = ("none", "cpu")


def require(holds: bool, name: str, value: object, remedy: str) -> None:
    """Raise a ConfigError that names the field, the value seen and what to do, unless `holds`."""
    if not holds:
        raise ConfigError(f"{name} is {value!r}; {remedy}")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with a cosine schedule; defaults are those of InternVLA-M1 (arXiv 2510.13778), as its code sets them.

    Attributes:
        learning_rates: peak learning rate by module ("planner", "planner.vlm") or shell pattern ("*.bias"); the
            longest one that fits counts, "others" is for what none fits, and 0 freezes.
        min_learning_rate: where the cosine ends; a group whose peak is lower stays at its peak.
        warmup_steps: steps of linear rise from zero.
        betas, eps, weight_decay: AdamW's own; vectors (biases, norms) are never decayed.
        clip_norm: global gradient norm is clipped to this; 0 leaves it alone.
    """

    learning_rates: Mapping[str, float]
    min_learning_rate: float = 5e-7
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "learning_rates", dict(self.learning_rates))
        require(
            bool(self.learning_rates),
            "optimiser.learning_rates",
            self.learning_rates,
            "give e.g. {planner: 1e-5, others: 1e-4}",
        )
        for pattern, rate in self.learning_rates.items():
            require(rate >= 0, f"optimiser.learning_rates[{pattern!r}]", rate, "a learning rate is >= 0")
        require(self.warmup_steps >= 0, "optimiser.warmup_steps", self.warmup_steps, "it must be >= 0")
        require(self.clip_norm >= 0, "optimiser.clip_norm", self.clip_norm, "it must be >= 0; 0 switches it off")
        inside = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(inside, "optimiser.betas", self.betas, "give two numbers in [0, 1)")


@dataclass(frozen=True)
class EngineConfig:
    """How DeepSpeed holds the weights: ZeRO stage, precision, where the optimiser's state lives.

    Attributes:
        zero_stage: 0 replicates all; 1 shards the optimiser state, 2 also gradients, 3 also weights.
        precision: "bf16" keeps fp32 masters in the optimiser and computes in bf16.
        offload: "cpu" keeps the optimiser's state in host memory (ZeRO 1 to 3).
        bucket_elements: elements per reduction; 5e6 is InternVLA-M1's setting, small models want all in one.
        overlap_communication: reduce gradients while the backward pass goes on (GPU only; gloo blocks).
        recompute: keep no activations of the planner's layers and compute them again in the backward pass, which
            saves memory for about a third more compute.
    """

    zero_stage: int = 0
    precision: str = "fp32"
    offload: str = "none"
    bucket_elements: int = 50_000_000
    overlap_communication: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        require(self.zero_stage in (0, 1, 2, 3), "deepspeed.zero_stage", self.zero_stage, "choose 0, 1, 2 or 3")
        require(self.precision in PRECISIONS, "deepspeed.precision", self.precision, f"choose one of {PRECISIONS}")
        require(self.offload in OFFLOADS, "deepspeed.offload", self.offload, f"choose one of {OFFLOADS}")
        fits = self.offload == "none" or self.zero_stage > 0
        require(fits, "deepspeed.offload", self.offload, "needs deepspeed.zero_stage 1, 2 or 3")
        fits = self.precision == "fp32" or self.zero_stage > 0
        require(fits, "deepspeed.precision", self.precision, "fp32 masters need deepspeed.zero_stage 1, 2 or 3")
        require(self.bucket_elements > 0, "deepspeed.bucket_elements", self.bucket_elements, "it must be > 0")


@dataclass(frozen=True)
class BatchConfig:
    """Samples of one optimiser step, over all workers; the published mix is 4 robot samples to 1 for grounding.

    Attributes:
        prefetch: micro-batches made ahead.
        max_unreadable_share: share of samples that may be unreadable before the run stops; they are told and counted.
    """

    robot: int
    grounding: int
    accumulation: int = 1
    prefetch: int = 2
    max_unreadable_share: float = 0.01

    def __post_init__(self) -> None:
        for name in ("robot", "grounding"):
            require(getattr(self, name) >= 0, f"batch.{name}", getattr(self, name), "it must be >= 0")
        require(self.robot + self.grounding > 0, "batch", self, "one of robot and grounding must be > 0")
        require(self.accumulation > 0, "batch.accumulation", self.accumulation, "it must be >= 1")
        require(self.prefetch > 0, "batch.prefetch", self.prefetch, "it must be >= 1")

    def check_divides(self, num_workers: int) -> None:
        """Raise ConfigError unless every worker gets the same share of every micro-batch."""
        parts = num_workers * self.accumulation
        for name in ("robot", "grounding"):
            size = getattr(self, name)
            remedy = f"{num_workers} workers x accumulation {self.accumulation} need a multiple of {parts}"
            require(size % parts == 0, f"batch.{name}", size, remedy)


@dataclass(frozen=True)
class ValidationConfig:
    """When held-out samples are looked at, and how many; 0 steps means only at the end."""

    every: int = 0
    robot_samples: int = 32
    grounding_samples: int = 64

    def __post_init__(self) -> None:
        for item in fields(self):
            require(getattr(self, item.name) >= 0, f"validation.{item.name}", getattr(self, item.name), "must be >= 0")


@dataclass(frozen=True)
class SimilarityConfig:
    """When the two objectives' gradients are compared, and how (`similarity.py`); 0 steps means never.

    Attributes:
        samples: of either kind in the fixed probe, over all workers; the paper's is 64.
        energy: share of a gradient's squared norm that the directions kept of it carry.
    """

    every: int = 0
    samples: int = 64
    energy: float = 0.9

    def __post_init__(self) -> None:
        require(self.every >= 0, "similarity.every", self.every, "it must be >= 0; 0 switches it off")
        require(self.samples > 0, "similarity.samples", self.samples, "it must be >= 1")
        require(0 < self.energy < 1, "similarity.energy", self.energy, "it must lie between 0 and 1")


@dataclass(frozen=True)
class SavingConfig:
    """When checkpoints are written, and which are kept; the last step is always written.

    Attributes:
        every: steps between two.
        keep: how many stay: the newest or, with `best`, the best, and the newest beside them.
        best: the figure that says which is best, e.g. "validation/action_translation_mm"; "" for none.
        best_is: whether its lowest or its highest value is best.
    """

    every: int = 200
    keep: int = 2
    best: str = ""
    best_is: str = "lowest"

    def __post_init__(self) -> None:
        require(self.every > 0, "saving.every", self.every, "it must be >= 1")
        require(self.keep > 0, "saving.keep", self.keep, "it must be >= 1")
        require(self.best_is in ("lowest", "highest"), "saving.best_is", self.best_is, "choose lowest or highest")


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
        stage: "grounding" trains the planner on questions; "action" trains all on actions and questions together.
        steps: optimiser steps.
        loss_weights: weight of each loss by the batch it comes from; 0.1 on grounding was best in ST4VLA
            (arXiv 2602.10109, table 7).
        packing: run the language model on tokens alone, without padding (`policy/packing.py`); the same losses up to
            rounding, for less work where the rows of a batch differ in length.
        log_every: steps between progress rows (each is one small all-reduce and one device sync).
        seed: of the sample order, the initial weights, and every draw inside a step.
    """

    stage: Stage
    steps: int
    optimiser: OptimiserConfig
    batch: BatchConfig
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)
    loss_weights: Mapping[str, float] = field(default_factory=lambda: {"robot": 1.0, "grounding": 0.1})
    packing: bool = False
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.stage in STAGES, "stage", self.stage, f"choose one of {STAGES}")
        require(self.steps > 0, "steps", self.steps, "it must be >= 1")
        require(self.log_every > 0, "log_every", self.log_every, "it must be >= 1")
        unknown = set(self.loss_weights) - {"robot", "grounding"}
        require(not unknown, "loss_weights", dict(self.loss_weights), "its keys are robot and grounding")
        fits = self.stage == "action" or self.batch.robot == 0
        require(fits, "batch.robot", self.batch.robot, "stage grounding reads no robot samples; set it to 0")
        fits = self.stage == "grounding" or self.batch.robot > 0
        require(fits, "batch.robot", self.batch.robot, "stage action needs robot samples")
        fits = not self.similarity.every or (self.stage == "action" and self.engine.zero_stage < 3)
        require(fits, "similarity.every", self.similarity.every, "compare in stage action, at ZeRO stage 0, 1 or 2")
        fits = not (self.similarity.every and self.adapters.rank)
        remedy = "adapters freeze the weight whose gradients are compared; set similarity.every=0 or adapters.rank=0"
        require(fits, "similarity.every", self.similarity.every, remedy)
        fits = not self.saving.best or (self.validation.every and self.saving.every % self.validation.every == 0)
        remedy = "validate at every checkpoint: let validation.every divide saving.every"
        require(bool(fits), "saving.best", self.saving.best, remedy)
        fits = not self.average.decay or self.engine.zero_stage < 3
        require(fits, "average.decay", self.average.decay, "ZeRO stage 3 cuts up the weights; average at 0, 1 or 2")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build it, and the small configs in it, from plain mappings; an unknown key raises ConfigError."""
        parts = {
            "optimiser": OptimiserConfig,
            "batch": BatchConfig,
            "engine": EngineConfig,
            "validation": ValidationConfig,
            "similarity": SimilarityConfig,
            "alarms": AlarmConfig,
            "average": AverageConfig,
            "adapters": AdapterConfig,
            "saving": SavingConfig,
        }
        built = {key: build(parts[key], value, key) if key in parts else value for key, value in values.items()}
        return build(cls, built, "train")


def build(cls: Any, values: Mapping[str, Any], name: str) -> Any:
    """Construct a config dataclass from a mapping; raise ConfigError naming unknown and missing keys."""
    known = {item.name for item in fields(cls)}
    unknown = sorted(set(values) - known)
    require(not unknown, name, unknown, f"unknown keys; known are {sorted(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{name} lacks a setting: {error}") from error
