"""`st4vla serve`: find the models, start Ray Serve with them, open the gate, and stay until interrupted."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from st4vla.platform.errors import ConfigError
from st4vla.platform.policy.settings import build_config
from st4vla.platform.ports import free_ports
from st4vla.platform.ray_engine import LOCAL, EngineConfig, connect
from st4vla.platform.serve_environment import serve_settings
from st4vla.serve.access import KeyFile
from st4vla.serve.application import ScaleConfig, control_actor, deploy
from st4vla.serve.fleet_command import failed_models
from st4vla.serve.gate import LOOPBACK, Gate, GateConfig
from st4vla.serve.keymap import KeyMap
from st4vla.serve.models import ModelRef, resolve
from st4vla.serve.post import PostConfig
from st4vla.serve.recorder.settings import RecorderConfig
from st4vla.serve.recorder.shelf import Shelf, finish
from st4vla.serve.route import wait_for_direct_route

log = logging.getLogger(__name__)
LONGEST_FINISH_S = 20.0
NO_KEYS_LEFT = (
    "there were keys once and %s holds none now, so nobody is let in; make one with `st4vla keys add NAME`, or serve "
    "from a folder that never held any"
)


@dataclass(frozen=True)
class ServeConfig:
    """A whole serving application.

    Attributes:
        models: references; the first is production, the others are served by name and can become the canary.
        folder: where the control record, the keys and the gate's files lie.
        serve_port: where Serve's own proxy listens behind the gate; 0 for any.
        serve_host: where Serve's proxies and replicas listen; several machines need one that they reach.
    """

    models: tuple[str, ...]
    folder: str = "runs/serve"
    serve_port: int = 0
    serve_host: str = "127.0.0.1"
    post: PostConfig = PostConfig()
    scale: ScaleConfig = ScaleConfig()
    gate: GateConfig = GateConfig()

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("serve needs a model: st4vla serve model=CHECKPOINT or model=models:/NAME@ALIAS.")


def check_doors(config: ServeConfig) -> bool:
    """Refuse to open to a network without keys; say whether there are keys.

    Raises:
        ConfigError: there are none, and the gate or another door is not on loopback.
    """
    keys = KeyFile(Path(config.folder) / "keys.json").read()
    hosts = {"gate.host": config.gate.host, "serve_host": config.serve_host}
    if config.post.groot.port:
        hosts["post.groot.host"] = config.post.groot.host
    reached = {name: host for name, host in hosts.items() if host not in LOOPBACK}
    if not keys and reached:
        raise ConfigError(
            f"{' and '.join(f'{name}={host}' for name, host in reached.items())} can be reached by others, and there "
            f"are no keys; make one with `st4vla keys add NAME folder={config.folder}` first, or use 127.0.0.1."
        )
    if not config.gate.is_loopback and not config.gate.uses_tls:
        log.warning("keys and images cross the network unencrypted; set gate.certificate and gate.private_key")
    return bool(keys)


@dataclass(frozen=True)
class Application:
    """What is being served; `renew` replaces every replica by a new one, one after another, with the same models."""

    models: tuple[ModelRef, ...]
    renew: Callable[[], None]


@contextmanager
def serving(config: ServeConfig, engine: EngineConfig) -> Iterator[Application]:
    """Serve for the length of a `with` block; on a cluster the application stays behind, the gate does not."""
    import ray

    folder = Path(config.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    has_keys = check_doors(config)
    found = [resolve(model, config.post.loader, config.post.tracking_uri) for model in config.models]
    port = config.serve_port or free_ports(1)[0]
    post = replace(config.post, watch=config.post.watch.absolute(), leave_s=0.8 * config.scale.drain_s)
    is_local = engine.address == LOCAL
    with serve_settings(config.scale.drain_s) as place, open_gate(config, port, folder, is_local), connect(engine):
        control = control_actor(str(folder))
        models = {ref.label: ref.place for ref in found}
        state: Any = ray.get(control.begin.remote(models, found[0].label, has_keys, str(folder)))
        if state.keys_required and not has_keys:
            log.warning(NO_KEYS_LEFT, folder)

        def renew() -> None:
            ray.get(control.renew.remote())
            deploy(post, config.scale, folder, config.serve_host, port)

        try:
            deploy(post, config.scale, folder, config.serve_host, port)
            for label, why in failed_models(ray.get(control.status.remote())).items():
                log.error("the model %s could not be loaded: %s", label, why)
            if is_local:
                wait_for_direct_route(place)
            yield Application(tuple(found), renew)
        finally:
            if is_local:
                let_finish(control)
    if is_local and post.watch.record:
        finish_recordings(post.watch.recorder)


@contextmanager
def open_gate(config: ServeConfig, port: int, folder: Path, is_local: bool) -> Iterator[None]:
    """Keep the gate open for the length of a `with` block.

    The gate is opened before anything else is started, so that an address which is taken is told at once.
    """
    # Serve's slower Python proxy stands in while its HAProxy is being replaced.
    fallback = int(os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]) if is_local else 0
    gate = Gate(config.gate, port, folder, config.post.limits.max_bytes, fallback)
    gate.open()
    try:
        yield
    finally:
        gate.close()


def let_finish(control: Any) -> None:
    """Let every replica answer what it is at, close its connections and flush its recordings; not for ever.

    Serve's own way down waits out the time in which a replacement could take the robots, and there is none.
    """
    import ray

    ray.get(control.end.remote())
    until = time.monotonic() + LONGEST_FINISH_S
    while time.monotonic() < until:
        status: Any = ray.get(control.status.remote())
        if all(one["finished"] for one in status["replicas"].values()):
            return
        time.sleep(0.2)
    log.warning("not every replica has finished within %g s", LONGEST_FINISH_S)


def finish_recordings(config: RecorderConfig) -> None:
    """Make episodes of what is left: Ray ends a replica's children with it, the recorder's process among them."""
    told: list[Mapping[str, Any]] = []
    waiting = finish(Shelf(config, "", told.append))
    log.info("%d recordings became episodes at the end", sum("written" in one for one in told))
    if waiting:
        log.warning("%d recordings wait under %s; the next start makes episodes of them", waiting, config.spool)


def main(cfg: Any) -> None:
    """Run the `serve` command."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    config, engine = config_of(settings), EngineConfig(**settings["engine"])
    with serving(config, engine) as application:
        _announce(config, application.models)
        wait_for_the_end(application.renew)


def config_of(settings: Mapping[str, Any]) -> ServeConfig:
    """Build the config from the composed settings of the command."""
    models = settings["model"]
    keys = {"keys": key_map(settings["keymap"]), "vla_eval_keys": key_map(settings["vla_eval_keymap"])}
    post = replace(build_config(PostConfig, settings["post"], "post."), **keys)
    # A replica may work in another folder.
    post = replace(post, loader=replace(post.loader, cache=str(Path(post.loader.cache).resolve())))
    if post.safety.interventions:
        post = replace(post, safety=replace(post.safety, interventions=str(Path(post.safety.interventions).resolve())))
    return ServeConfig(
        models=(models,) if isinstance(models, str) else tuple(models),
        folder=settings["folder"],
        serve_port=settings["serve_port"],
        serve_host=settings["serve_host"],
        post=replace(
            post, tracking_uri=settings["tracking"].get("uri", ""), vla_eval=bool(settings["gate"]["vla_eval_port"])
        ),
        scale=build_config(ScaleConfig, settings["scale"], "scale."),
        gate=build_config(GateConfig, settings["gate"], "gate."),
    )


def key_map(settings: Mapping[str, Any]) -> KeyMap:
    """Build where robots put what a policy needs."""
    return KeyMap(**{**settings, "state": tuple(settings["state"])})


def wait_for_the_end(renew: Callable[[], None]) -> None:
    """Return at the first interrupt or request to terminate; a hang-up signal renews the application."""
    ended, renewing = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    signal.signal(signal.SIGHUP, lambda *_: renewing.set())
    while not ended.wait(0.5):
        if renewing.is_set():
            renewing.clear()
            try:
                renew()
            except Exception:  # what answers goes on; ending the command would end it, too
                log.exception("the replicas could not be replaced; those that answer go on")
            else:
                log.info("every replica was replaced")


def _announce(config: ServeConfig, found: Sequence[ModelRef]) -> None:
    from rich.console import Console
    from rich.table import Table

    gate, secure = config.gate, "s" if config.gate.uses_tls else ""
    table = Table("what", "where", title=f"serving {found[0].label}")
    table.add_row("openpi", f"ws{secure}://{gate.host}:{gate.port}/")
    if gate.vla_eval_port:
        table.add_row("vla-eval", f"ws{secure}://{gate.host}:{gate.vla_eval_port}/")
    table.add_row("HTTP", f"http{secure}://{gate.host}:{gate.port}/docs")
    table.add_row("fleet page", f"http{secure}://{gate.host}:{gate.port}/fleet")
    if config.post.groot.port:
        table.add_row("GR00T", f"tcp://{config.post.groot.host}:{config.post.groot.port}")
    if config.post.watch.record:
        table.add_row("recordings", f"{config.post.watch.recorder.folder}/datasets")
    for ref in found[1:]:
        table.add_row(f"openpi, {ref.label}", f"ws{secure}://{gate.host}:{gate.port}/m/{ref.label}")
    Console().print(table)
