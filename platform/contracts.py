"""Draw the data that crosses rooms, once.

    Observation   images {camera: uint8 [H,W,3], RGB, 0-255}    state float32 [S] or None    instruction str
    ActionChunk   actions float32 [T,A]; for an arm A = 7:
                  [dx, dy, dz] m, [rx, ry, rz] rotation vector in rad, gripper 0 closed .. 1 open;
                  a delta of the end-effector pose in the robot base frame, one row per control step
    EpisodeSpec -> EpisodeResult    what to run, and what came of it; the id is a pure function of the spec
    FrameAnnotation                 what grounding learns from one frame; all coordinates are pixels of that frame

Letters: H, W image size; S state width; T chunk steps; A action width.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

ActionForm = Literal["delta_end_effector", "delta_joints", "absolute_joints"]
StateForm = Literal["proprioception", "privileged"]
RotationForm = Literal["rotation_vector", "euler_xyz"]
GroundingKind = Literal["box", "point", "target", "trace", "subgoal", "words"]

# A box is (x1, y1, x2, y2) and a point is (x, y), in pixels of the source image; x to the right, y down.
Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Observation:
    """What a policy sees of one robot at one moment."""

    images: Mapping[str, np.ndarray]
    state: np.ndarray | None
    instruction: str


@dataclass(frozen=True)
class Spatial:
    """What System 2 grounded in the source image: any of a box, points and a trajectory.

    Attributes:
        label: the words that were grounded.
        box: tight box of the key object, or None.
        points: points on it, possibly none.
        trajectory: way-points of the end-effector, possibly none.
    """

    label: str = ""
    box: Box | None = None
    points: tuple[Point, ...] = ()
    trajectory: tuple[Point, ...] = ()


@dataclass(frozen=True)
class ActionChunk:
    """The next actions of one robot.

    Attributes:
        actions: float32 [T,A], see the module's tree for units and frame.
        spatial: the spatial read-out, where it was asked for.
        timing: seconds by stage, e.g. {"system2_s": 0.02, "system1_s": 0.01}.
        plan_age_s: how old the plan was that conditioned this chunk; 0 when it was made for it.
    """

    actions: np.ndarray
    spatial: Spatial | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    plan_age_s: float = 0.0


@dataclass(frozen=True)
class PolicySpec:
    """What a policy needs to be shown and what it gives back.

    No cameras means that nothing is rendered for it. Pictures are squares of `image_size` pixels; 0 asks for each
    camera's own size and shape. `state_form` is "proprioception" for a robot's own reading
    (for an arm [x, y, z] m, rotation vector in rad, gripper opening 0..1: S = 7) and "privileged" for a
    simulator's full state, which only policies learned in simulation may ask for. `rotation_form` is "euler_xyz" for
    checkpoints of Open X-Embodiment data, whose rotations are roll, pitch and yaw about the fixed axes in rad; whoever
    carries out their chunks turns these into rotation vectors (platform/policy/execution.py).
    """

    cameras: tuple[str, ...]
    image_size: int
    state_dim: int
    action_dim: int
    chunk_length: int
    control_hz: float
    statistics_key: str
    action_form: ActionForm = "delta_end_effector"
    state_form: StateForm = "proprioception"
    rotation_form: RotationForm = "rotation_vector"


class Policy(Protocol):
    """Turn observations into action chunks, batched over sessions.

    `reset` forgets what is held for one session. `act` takes one observation per session, in any order,
    and returns one chunk for each in the same order. `noise_keys` holds one tuple of ints per observation,
    (episode seed, look number): a policy that samples draws its noise from that key alone, so that a row
    never depends on its neighbours in the batch.
    """

    @property
    def spec(self) -> PolicySpec: ...

    def reset(self, session_id: str) -> None: ...

    def act(
        self,
        observations: Sequence[Observation],
        session_ids: Sequence[str],
        noise_keys: Sequence[tuple[int, int]],
    ) -> list[ActionChunk]: ...


FailureKind = Literal["", "task", "timeout", "crash", "policy"]


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode to run; two equal specs are the same episode on any cluster.

    Attributes:
        suite: name of the suite that planned it, e.g. "seen".
        task: name of the task, e.g. "reach".
        variant: name of the scene variant, "default" if there is only one.
        seed: seed of the scene layout and of every draw in the episode.
        instruction: what the policy is told at the start.
        perturbations: names of the disturbances applied while it runs; empty for an undisturbed twin.
    """

    suite: str
    task: str
    variant: str
    seed: int
    instruction: str
    perturbations: tuple[str, ...] = ()

    @property
    def episode_id(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the spec's canonical JSON."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class EpisodeResult:
    """What came of an episode.

    Attributes:
        episode_id: id of the spec.
        success: whether the task's success held, as the task defines it.
        partial_credit: share of the task done, 0..1; for staged tasks the share of stages reached.
        stages: names of the stages reached, in order.
        steps: executed control steps.
        looks: frames the policy was shown.
        held_steps: control steps in which the robot held still because the policy's answer was late.
        recovery_steps: control steps from the disturbance to the success; None if undisturbed or not recovered.
        failure: "" on success; "task" when the time ran out on the policy; "crash" and "timeout" are the
            environment's and "policy" an unusable answer: these three are never counted as the policy's failures
            of skill.
        reason: one sentence for a failure that is not "task".
        wall_s, policy_s, render_s, physics_s: seconds, the only fields that may differ between two runs.
        artifacts: file names relative to the run folder, by kind.
    """

    episode_id: str
    success: bool
    partial_credit: float
    stages: tuple[str, ...]
    steps: int
    looks: int
    recovery_steps: int | None = None
    held_steps: int = 0
    failure: FailureKind = ""
    reason: str = ""
    wall_s: float = 0.0
    policy_s: float = 0.0
    render_s: float = 0.0
    physics_s: float = 0.0
    artifacts: Mapping[str, str] = field(default_factory=dict)

    TIMING_FIELDS = ("wall_s", "policy_s", "render_s", "physics_s")

    def row(self) -> dict[str, Any]:
        """Give the plain JSON-ready form that the ledger keeps."""
        row = asdict(self)
        row["stages"] = list(self.stages)
        return row


@dataclass(frozen=True)
class FrameAnnotation:
    """What one frame teaches grounding, in pixels of the frame of one camera.

    Attributes:
        boxes: tight box of every visible object by its name ("red cube").
        points: a point that lies on the object's own visible pixels, by the same names.
        target: name of the object the current stage is about ("" if it is not visible).
        destination: name of the object or place the target should go to, "" if the task has none.
        trace: pixels of the end-effector from now to the end of the current stage, at most 8 way-points.
        subgoal: the next sub-goal in words, e.g. "grasp the red cube".
        mask: int8 [H/4, W/4], nearest-sampled segmentation: index into `boxes` (insertion order) + 1, 0 for the table,
            the robot and everything else. None where no segmentation was rendered.
    """

    boxes: Mapping[str, Box]
    points: Mapping[str, Point]
    target: str
    destination: str
    trace: tuple[Point, ...]
    subgoal: str
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class ActionSample:
    """One moment of a demonstration: what was seen, and what was done next.

    Attributes:
        images: {camera: uint8 [H,W,3]}.
        state: float32 [S], or None where the recording has none.
        instruction: what the robot was told.
        actions: float32 [T,A] in physical units, not normalised.
        is_pad: bool [T], True for rows after the episode's end, which carry no loss.
        statistics_key: the embodiment whose statistics normalise `actions` and `state`.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray | None
    instruction: str
    actions: np.ndarray
    is_pad: np.ndarray
    statistics_key: str


@dataclass(frozen=True)
class GroundingSample:
    """One question about an image and its answer, in pixels of that image.

    Attributes:
        image: uint8 [H,W,3].
        kind: what is asked for.
        label: the words to ground, e.g. "red cube", or the instruction for a target, a trace or a sub-goal; for
            "words" the whole question.
        answer: the box, points or trajectory; for a sub-goal and for "words" the answer's text is in `answer.label`,
            any coordinates in it in pixels of the image.
        region: for a point, the box it may lie in, where the data has one.
        dense_labels: int8 [h,w] indices into `dense_names` + 1, 0 for nothing, -1 for unknown; None where the data
            has no segmentation. Feeds the auxiliary dense loss.
        dense_names: names of the objects in `dense_labels`.
        destination: for a target, the name of what it should go to; "" where there is nothing.
    """

    image: np.ndarray
    kind: GroundingKind
    label: str
    answer: Spatial
    region: Box | None = None
    dense_labels: np.ndarray | None = None
    dense_names: tuple[str, ...] = ()
    destination: str = ""
