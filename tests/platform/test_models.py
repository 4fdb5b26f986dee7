"""Facts about registered models, in a real MLflow store."""

from pathlib import Path

import pytest

from st4vla.platform.errors import ConfigError
from st4vla.platform.models import fetch_model
from st4vla.platform.tracking import Tracker, TrackingConfig

pytestmark = pytest.mark.slow


def checkpoint(folder: Path, kind: str) -> Path:
    folder.mkdir()
    (folder / "policy.yaml").write_text(f"kind: {kind}\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_model_is_found_by_alias_by_version_and_where_it_lies(workplace: Path):
    store = TrackingConfig(system_metrics=False, upload_limit_mb=0.001)
    big = checkpoint(workplace / "big", "large")
    (big / "model.safetensors").write_bytes(b"0" * 5000)
    with Tracker.open(store, "train", "small") as tracker:
        tracker.register(checkpoint(workplace / "one", "first"), "policy", {})
        tracker.register(checkpoint(workplace / "two", "second"), "policy", {})
        tracker.register(big, "giant", {})
    newest = fetch_model("models:/policy@newest", store.uri)
    assert (newest / "policy.yaml").read_text() == "kind: second\n"
    assert (newest / "model.safetensors").read_bytes() == b"weights"
    assert fetch_model("models:/policy", store.uri) == newest
    assert (fetch_model("models:/policy/1", store.uri) / "policy.yaml").read_text() == "kind: first\n"
    assert fetch_model("models:/giant", store.uri) == big.resolve()
    with pytest.raises(ConfigError, match="has no models:/policy@champion"):
        fetch_model("models:/policy@champion", store.uri)
    (big / "policy.yaml").unlink()
    with pytest.raises(ConfigError, match="holds no checkpoint any more"):
        fetch_model("models:/giant", store.uri)


def test_a_name_of_another_form_is_refused(workplace: Path):
    with pytest.raises(ConfigError, match="expected models:/NAME@ALIAS"):
        fetch_model("models:/a/b/c", "sqlite:///x.db")
