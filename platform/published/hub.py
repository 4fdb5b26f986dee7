"""Fetch a few files of a public repository, or say plainly that it cannot be reached."""

import re
from collections.abc import Sequence
from pathlib import Path

from st4vla.platform.errors import CheckpointError

REPO_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def download(repo: str, patterns: Sequence[str], instead: str) -> Path:
    """Give the folder of a repository's newest files that match `patterns`; kept ones are not fetched again.

    Args:
        instead: what a user without a network should give.

    Raises:
        CheckpointError: it does not exist or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise unreachable(repo, error, instead) from error


def list_files(repo: str, instead: str) -> list[str]:
    """List a repository's files.

    Raises:
        CheckpointError: it does not exist or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(repo)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise unreachable(repo, error, instead) from error


def unreachable(repo: str, error: Exception, instead: str) -> CheckpointError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(
        f"{repo} could not be fetched from the hub ({type(error).__name__}: {reason[0]}). "
        f"Check the name and the network, or give {instead}."
    )
