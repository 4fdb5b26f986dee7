"""Diffusion over action chunks: the squared-cosine schedule, the noise loss, and guided DDIM sampling.

Epsilon prediction with a mean squared error (DDPM), sampled by DDIM with eta 0 over a regular subset of the steps,
without clipping, guided as uncond + s (cond - uncond); the settings of CogACT and InternVLA-M1.

Letters: B rows, R noise draws of a row, T chunk steps, A action width, Q condition tokens, C width.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.denoiser import Denoiser

# Correct a row's predicted clean chunk [1,T,A], normalised, at a step whose cumulative signal power is given.
Guide = Callable[[Tensor, float], Tensor]


@cache
def signal_levels(steps: int) -> tuple[float, ...]:
    """Give the cumulative signal power after each step of the squared-cosine schedule (Nichol and Dhariwal)."""
    levels, level = [], 1.0
    for i in range(steps):
        level *= 1 - min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999)
        levels.append(level)
    return tuple(levels)


def bar(share: float) -> float:
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


@cache
def ddim_subset(count: int, steps: int) -> tuple[int, ...]:
    """Pick `count` of `steps` with the smallest whole stride that gives exactly so many.

    Raises:
        ConfigError: no whole stride does.
    """
    for stride in range(1, steps + 1):
        if len(chosen := range(0, steps, stride)) == count:
            return tuple(chosen)
    raise ConfigError(f"expert.ddim_steps is {count}, which no whole stride over {steps} steps gives; try 4, 5 or 10.")


def add_noise(actions: Tensor, noise: Tensor, steps_B: Tensor, total: int) -> Tensor:
    """Mix actions and noise [B,T,A] at each row's step, in fp32 at least: in bf16 the first levels round to 1."""
    dtype = torch.promote_types(actions.dtype, torch.float32)
    levels = torch.tensor(signal_levels(total), dtype=dtype, device=actions.device)[steps_B][:, None, None]
    return levels.sqrt() * actions + (1 - levels).sqrt() * noise


def noise_errors(
    denoiser: Denoiser,
    actions_BTA: Tensor,
    is_pad_BT: Tensor,
    condition_BQC: Tensor,
    draws: int,
    total: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Predict the noise in `draws` noisings of every row, draw by draw.

    Noise is drawn and mixed in fp32 at least; the denoiser reads the mixture in the condition's own type.

    Returns:
        squared errors [R*B,T,A], zero at padding, and [R*B,T,1], true where there is none.
    """
    device, dtype = actions_BTA.device, condition_BQC.dtype
    actions = actions_BTA.to(torch.promote_types(dtype, torch.float32)).repeat(draws, 1, 1)
    steps = torch.randint(0, total, (len(actions),), generator=generator, device=device)
    noise = torch.randn(actions.shape, generator=generator, device=device, dtype=actions.dtype)
    chances = torch.rand(len(actions), generator=generator, device=device)
    condition = condition_BQC.repeat(draws, 1, 1)
    if denoiser.training:
        condition = denoiser.drop_condition(condition, chances)
    predicted = denoiser(add_noise(actions, noise, steps, total).to(dtype), steps, condition)
    counts = (~is_pad_BT).repeat(draws, 1)[..., None]
    return (predicted.float() - noise.float()).square() * counts, counts


def mean_error(errors: Tensor, counts: Tensor) -> Tensor:
    """Give the mean of squared errors that count."""
    return errors.sum() / (counts.sum().clamp(min=1) * errors.shape[2])


def row_errors(errors: Tensor, counts: Tensor, rows: int) -> Tensor:
    """Give each row's own mean [B] over its draws."""
    sums = errors.detach().sum((1, 2)).view(-1, rows).sum(0)
    seen = counts.sum((1, 2)).view(-1, rows).sum(0).clamp(min=1)
    return sums / (seen * errors.shape[2])


def guided_noise(denoiser: Denoiser, x: Tensor, step: int, condition: Tensor, guidance: float) -> Tensor:
    """Predict the noise; with guidance other than 1 both halves of a doubled batch run as one.

    `condition` holds the unconditional half below the conditional one when guidance is not 1.
    """
    if guidance == 1.0:
        return denoiser(x, torch.full((len(x),), step, device=x.device), condition)
    both = denoiser(torch.cat([x, x]), torch.full((2 * len(x),), step, device=x.device), condition)
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def sample_ddim(
    denoiser: Denoiser,
    noise_BTA: Tensor,
    condition_BQC: Tensor,
    count: int,
    total: int,
    guidance: float,
    guides: Sequence[Guide | None] = (),
) -> Tensor:
    """Denoise from `noise_BTA` in `count` steps; deterministic in its inputs.

    Args:
        guides: one per row, or none at all. What a guide makes of the clean chunk is what the noise is read from, so
            that the trajectory leads to it.
    """
    levels, subset = signal_levels(total), ddim_subset(count, total)
    condition = condition_BQC
    if guidance != 1.0:
        blank = denoiser.z_embedder.uncondition.to(condition.dtype).expand_as(condition)
        condition = torch.cat([condition, blank])
    x = noise_BTA
    for i in range(count - 1, -1, -1):
        level, previous = levels[subset[i]], levels[subset[i - 1]] if i else 1.0
        epsilon = guided_noise(denoiser, x, subset[i], condition, guidance)
        x = step_back(x, epsilon, level, previous, guides)
    return x


def step_back(
    x_BTA: Tensor, epsilon_BTA: Tensor, level: float, previous: float, guides: Sequence[Guide | None]
) -> Tensor:
    """Take one DDIM step from signal level `level` to `previous`, the clean chunk corrected by the guides."""
    clean_BTA = (x_BTA - math.sqrt(1 - level) * epsilon_BTA) / math.sqrt(level)
    if guides:
        guided_BTA = apply_guides(guides, clean_BTA, level)
        # As (x - sqrt(level) clean) / sqrt(1 - level), but bit for bit the old noise where nothing was changed.
        epsilon_BTA = epsilon_BTA + math.sqrt(level / (1 - level)) * (clean_BTA - guided_BTA)
        clean_BTA = guided_BTA
    return math.sqrt(previous) * clean_BTA + math.sqrt(1 - previous) * epsilon_BTA


def apply_guides(guides: Sequence[Guide | None], clean_BTA: Tensor, level: float) -> Tensor:
    """Let each row's guide, where it has one, correct its own clean chunk; no row sees another."""
    rows = clean_BTA.split(1)
    return torch.cat([row if guide is None else guide(row, level) for guide, row in zip(guides, rows, strict=True)])
