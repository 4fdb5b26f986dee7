"""Give every parameter its learning rate, and every step its share of it."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch

from st4vla.platform.errors import ConfigError
from st4vla.platform.train.config import OptimiserConfig

OTHERS = "others"


def learning_rate(step: int, peak: float, floor: float, warmup: int, total: int) -> float:
    """Give the rate of one step: a linear rise over `warmup` steps, then a cosine to `floor` at `total`.

    A pure function of the step, so that a resumed run needs no scheduler state.
    """
    floor = min(floor, peak)
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * share))


def match_rate(name: str, rates: Mapping[str, float]) -> str:
    """Give the longest pattern that fits a parameter's name, or "others"; raise ConfigError where there is neither.

    A pattern fits the module it names and all below ("planner.vlm"), or is of the shell's kind ("*.norm*").
    """
    fitting = [pattern for pattern in rates if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)]
    if fitting:
        return max(fitting, key=len)
    if OTHERS in rates:
        return OTHERS
    raise ConfigError(
        f"optimiser.learning_rates has nothing for the parameter {name!r}; it has {list(rates)}; add {OTHERS}: RATE"
    )


def parameter_groups(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimiserConfig) -> list[dict]:
    """Sort trainable parameters into AdamW groups by pattern, matrices apart from vectors.

    Returns:
        groups with "name" (the pattern), "peak_lr", "lr", "weight_decay" and "params", in the order of the patterns;
        empty ones are left out. A rate of 0 freezes its parameters before DeepSpeed sees them.
    """
    groups: dict[tuple[str, bool], dict] = {
        (pattern, decayed): {
            "name": pattern,
            "peak_lr": rate,
            "lr": rate,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "params": [],
        }
        for pattern, rate in config.learning_rates.items()
        for decayed in (True, False)
    }
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        pattern = match_rate(name, config.learning_rates)
        if config.learning_rates[pattern] == 0:
            parameter.requires_grad_(False)
            continue
        groups[pattern, parameter.ndim > 1]["params"].append(parameter)
    kept = [group for group in groups.values() if group["params"]]
    if not kept:
        raise ConfigError("no parameter is trained; give optimiser.learning_rates a rate above 0")
    return kept


def build_optimiser(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimiserConfig
) -> torch.optim.AdamW:
    """Make torch's own AdamW: DeepSpeed's fused one compiles itself for a minute."""
    groups = parameter_groups(named_parameters, config)
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rates(optimiser: torch.optim.Optimizer, config: OptimiserConfig, step: int, total: int) -> dict:
    """Set every group's rate for this step; give {pattern: rate} for the log."""
    rates = {}
    for group in optimiser.param_groups:
        floor, warmup = config.min_learning_rate, config.warmup_steps
        group["lr"] = learning_rate(step, group["peak_lr"], floor, warmup, total)
        rates[group["name"]] = group["lr"]
    return rates
