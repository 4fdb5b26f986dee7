"""The Ray that carries the work, and how much of it there is."""

from st4vla.platform.ray_engine import EngineConfig, connect, init_arguments

__all__ = ["EngineConfig", "connect", "cpus_per_actor", "init_arguments", "num_cluster_cpus", "num_cluster_gpus"]


def cpus_per_actor(num_actors: int) -> float:
    """Give the CPUs each of that many actors may reserve so that all of them fit on the cluster at once."""
    import ray

    available = ray.cluster_resources().get("CPU", 1.0)
    return min(1.0, int(100 * available / num_actors) / 100)


def num_cluster_cpus() -> int:
    """Count the CPUs of the cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_cluster_gpus() -> float:
    """Count the GPUs of the cluster."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))
