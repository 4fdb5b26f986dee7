"""Turn samples and observations into batches of tensors, and the planner's words back into places.

images          uint8   [B,V,3,H,W]   views in the order of the config's cameras; one view for a question
input_ids       int64   [B,L]         prompt (and answer), padded on the left
attention_mask  int64   [B,L]         1 where there is a token
position_ids    int64   [3,B,L]       time, row and column for the rotary embedding
labels          int64   [B,L]         answer tokens, -100 elsewhere          (questions with answers)
dense_labels    int64   [B,G,G]       object of each cell + 1, 0 none, -1 unknown     (likewise)
dense_targets   float32 [B,M,1+W]     share of each word in the name of an object; row 0 is "nothing"
answer_cells    float32 [B,G,G]       1 where lies what was asked for
goal_cells      float32 [B,G,G]       1 where lies what it should go to; all 0 where there is no such thing
actions         float32 [B,T,A]       normalised                             (action samples)
is_pad          bool    [B,T]
state           float32 [B,S]         normalised, where the policy has a state
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from st4vla.platform.contracts import ActionSample, GroundingKind, GroundingSample, Observation, Spatial
from st4vla.platform.data.statistics import EmbodimentStatistics, Normalizer
from st4vla.platform.errors import ConfigError, PolicyError
from st4vla.platform.policy.config import PolicyConfig
from st4vla.platform.policy.layout import Turn, join, pad_left
from st4vla.platform.policy.prompt import action_prompt, answer, coordinate_space, question
from st4vla.platform.policy.spatial import CoordinateSpace, Shape, read_spatial

Batch = dict[str, Tensor]
# Images by camera, state, instruction, statistics key.
Seen = tuple[Mapping[str, np.ndarray], np.ndarray | None, str, str]


class Processor:
    """The tokenizer, the statistics and the layout of one policy; holds nothing random.

    Args:
        statistics: by statistics key; only actions and states need them, questions do not.
    """

    def __init__(
        self,
        config: PolicyConfig,
        tokenizer: PreTrainedTokenizerBase,
        statistics: Mapping[str, EmbodimentStatistics] | None = None,
    ) -> None:
        if len(tokenizer) > config.planner.text.vocab_size:
            raise ConfigError(
                f"planner.text.vocab_size is {config.planner.text.vocab_size} but the tokenizer has {len(tokenizer)} "
                "tokens; raise the setting or build a smaller tokenizer."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.statistics = dict(statistics or {})
        self._normalizers = {key: Normalizer(one) for key, one in self.statistics.items()}
        self._words = {word: i + 1 for i, word in enumerate(config.planner.dense.words)}
        self._turn = lru_cache(maxsize=4096)(self._build_turn)

    @property
    def token_ids(self) -> dict[str, int]:
        """The tokens that the planner's structure depends on."""
        names = {
            "image": "<|image_pad|>",
            "video": "<|video_pad|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
            "end": "<|im_end|>",
            "pad": "<|endoftext|>",
        }
        ids = {name: self.tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
        if missing := [names[name] for name, value in ids.items() if not isinstance(value, int)]:
            raise ConfigError(f"The tokenizer lacks {', '.join(missing)}; it is not of the Qwen family's form.")
        return ids  # pyright: ignore[reportReturnType]

    def encode_actions(self, samples: Sequence[ActionSample]) -> Batch:
        """Batch action samples, normalised by the statistics of each sample's own embodiment."""
        batch = self._encode_seen([(s.images, s.state, s.instruction, s.statistics_key) for s in samples])
        actions = [self.normalizer(s.statistics_key).normalize_action(s.actions) for s in samples]
        batch["actions"] = torch.from_numpy(np.stack(actions).astype(np.float32))
        batch["is_pad"] = torch.from_numpy(np.stack([s.is_pad for s in samples]))
        return batch

    def encode_observations(self, observations: Sequence[Observation]) -> Batch:
        """Batch what robots see now and what they were told; their own statistics key is the policy's."""
        return self.encode_prompts([o.instruction for o in observations]) | self.encode_views(observations)

    def encode_prompts(self, instructions: Sequence[str], acting: bool = True) -> Batch:
        """Batch what robots were told, without the views: input_ids, attention_mask and position_ids."""
        views, prompt, semantics = len(self.config.planner_cameras), self.config.prompt, self.config.semantics
        prompts = [action_prompt(said(words), prompt, semantics, acting) for words in instructions]
        return pad_left([self._turn(prompt, views) for prompt in prompts], self.token_ids["pad"])

    def encode_views(self, observations: Sequence[Observation], statistics_key: str = "") -> Batch:
        """Batch what robots see now, without the words: images and, where the policy has one, the state.

        Args:
            statistics_key: the embodiment that scales the states; the policy's own unless given.
        """
        key = statistics_key or self.config.statistics_key
        return self._encode_views([(o.images, o.state, o.instruction, key) for o in observations])

    def encode_grounding(self, samples: Sequence[GroundingSample]) -> Batch:
        """Batch questions with their answers, and dense labels where the config has the dense loss."""
        turns = []
        for sample in samples:
            space = self.space(sample.image)
            text = answer(sample, space, self.config.prompt)
            turns.append(self._turn(self.question(sample.kind, sample.label), 1).followed_by(self._answer_ids(text)))
        batch = pad_left(turns, self.token_ids["pad"])
        batch["images"] = torch.from_numpy(np.stack([self.view(s.image) for s in samples]))[:, None]
        if self._words and any(s.dense_labels is not None for s in samples):
            batch |= self._dense(samples)
        return batch

    def encode_questions(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> Batch:
        """Batch questions without answers, for the planner to answer."""
        batch = pad_left([self._turn(q, 1) for q in questions], self.token_ids["pad"])
        batch["images"] = torch.from_numpy(np.stack([self.view(image) for image in images]))[:, None]
        return batch

    def question(self, kind: GroundingKind, label: str) -> str:
        return question(kind, label, self.config.prompt, self.config.semantics)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def read_answer(self, tokens: Sequence[int], image: np.ndarray, shape: Shape | None = None) -> Spatial:
        """Read an answer in pixels of `image`; raises SpatialParseError where there is none in it."""
        return read_spatial(self.decode(tokens), self.space(image), shape)

    def space(self, image: np.ndarray) -> CoordinateSpace:
        height, width = image.shape[:2]
        return coordinate_space(self.config.planner, self.config.image_size, width, height)

    def normalizer(self, key: str) -> Normalizer:
        """Give the normaliser of an embodiment.

        Raises:
            PolicyError: the policy knows no such embodiment.
        """
        if key not in self._normalizers:
            known = ", ".join(self._normalizers) or "none"
            raise PolicyError(f"No statistics for {key!r} (there are: {known}); train on its data or name another key.")
        return self._normalizers[key]

    def view(self, image: np.ndarray) -> np.ndarray:
        """Check one image and give it as uint8 [3,H,W] of the policy's size, resized bicubically where it differs.

        Raises:
            PolicyError: it is not uint8 [H,W,3].
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise PolicyError(f"An image is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] in RGB.")
        size = self.config.image_size
        if image.shape[:2] != (size, size):
            image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def _encode_seen(self, seen: Sequence[Seen]) -> Batch:
        return self.encode_prompts([words for _, _, words, _ in seen], acting=False) | self._encode_views(seen)

    def _encode_views(self, seen: Sequence[Seen]) -> Batch:
        batch = {"images": torch.from_numpy(np.stack([self._views(images) for images, *_ in seen]))}
        if self.config.state_dim:
            states = [self._state(state, key) for _, state, _, key in seen]
            batch["state"] = torch.from_numpy(np.stack(states).astype(np.float32))
        return batch

    def _views(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        if missing := [camera for camera in self.config.cameras if camera not in images]:
            raise PolicyError(
                f"Camera {missing[0]!r} is missing (shown: {', '.join(images) or 'none'}); "
                f"this policy looks at {', '.join(self.config.cameras)}."
            )
        return np.stack([self.view(images[camera]) for camera in self.config.cameras])

    def _state(self, state: np.ndarray | None, key: str) -> np.ndarray:
        if state is None or state.shape != (self.config.state_dim,):
            shape = None if state is None else list(state.shape)
            raise PolicyError(f"The state is {shape}; this policy needs [{self.config.state_dim}].")
        return self.normalizer(key).normalize_state(state)

    def _build_turn(self, prompt: str, views: int) -> Turn:
        content = [{"type": "image"}] * views + [{"type": "text", "text": prompt}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],  # pyright: ignore[reportArgumentType]
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return join(ids, self.token_ids["image"], self.config.tokens_per_side)  # pyright: ignore[reportArgumentType]

    def _answer_ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.token_ids["end"]]  # pyright: ignore[reportGeneralTypeIssues]

    def _dense(self, samples: Sequence[GroundingSample]) -> Batch:
        side = self.config.dense_side
        most = max(len(s.dense_names) for s in samples)
        labels = np.full((len(samples), side, side), -1, np.int64)
        targets = np.zeros((len(samples), most + 1, len(self._words) + 1), np.float32)
        targets[:, 0, 0] = 1
        answers, goals = (np.zeros(labels.shape, np.float32) for _ in range(2))
        for row, sample in enumerate(samples):
            if sample.dense_labels is None:
                continue
            labels[row] = resample(sample.dense_labels, side)
            for i, name in enumerate(sample.dense_names):
                known = [self._words[word] for word in name.split() if word in self._words]
                targets[row, i + 1, known] = 1 / max(len(known), 1)
                if not known:
                    labels[row][labels[row] == i + 1] = -1
            for cells, name in ((answers, sample.answer.label), (goals, sample.destination)):
                if name in sample.dense_names:
                    cells[row] = labels[row] == sample.dense_names.index(name) + 1
        return {
            "dense_labels": torch.from_numpy(labels),
            "dense_targets": torch.from_numpy(targets),
            "answer_cells": torch.from_numpy(answers),
            "goal_cells": torch.from_numpy(goals),
        }


def said(instruction: str) -> str:
    """Give the instruction; raises PolicyError where it is empty."""
    if not instruction.strip():
        raise PolicyError("The instruction is empty; say what the robot should do.")
    return instruction


def resample(labels: np.ndarray, side: int) -> np.ndarray:
    """Sample a label map [h,w] at the centres of a side x side grid."""
    rows = (np.arange(side) * 2 + 1) * labels.shape[0] // (2 * side)
    columns = (np.arange(side) * 2 + 1) * labels.shape[1] // (2 * side)
    return labels[rows[:, None], columns[None, :]]
