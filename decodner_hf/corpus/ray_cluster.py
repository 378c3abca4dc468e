"""Connects to a Ray cluster, and says what it has room for.

In: an address. Out: a connection, or within seconds an error that says what to do; numbers of GPUs and CPUs.
Knows nothing of documents or models. Needs the extra `ray`.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

SECONDS_TO_CONNECT = 5.0
DEFAULT_PORT = 6379
START_LOCAL = "local"
FIND = "auto"


@dataclass(frozen=True)
class Room:
    """What each model actor takes of the cluster.

    Attributes:
        actors: number of actors.
        device: on which each has the model.
        resources: Ray's arguments for each.
    """

    actors: int
    device: str
    resources: dict[str, float]


def import_ray() -> Any:
    """Returns ray; an ImportError that says how to install it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'decodner-hf[ray]'.") from error
    return ray


def connect(address: str | None) -> Any:
    """Connects to a cluster, or starts one on this machine, unless this process is connected already; returns ray.

    Args:
        address: "host:port", "auto" (a cluster that runs on this machine), or "local" (start one); by default
            $RAY_ADDRESS, or else "local".

    Raises:
        ImportError: ray is not installed.
        ConnectionError: no cluster there, or one that does not accept this process's token.
        ValueError: an address of another form.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    where = address or os.environ.get("RAY_ADDRESS") or START_LOCAL
    if where not in (START_LOCAL, FIND):
        _check_reachable(where)
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if where == START_LOCAL else {}
    try:
        ray.init(where, logging_level="WARNING", **own)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        if "token" in reason.lower() or "auth" in reason.lower():
            raise ConnectionError(
                f"the Ray cluster at {where} did not accept this process's token: put the cluster's own into the "
                f"environment variable RAY_AUTH_TOKEN or into ~/.ray/auth_token. ({reason})"
            ) from error
        raise ConnectionError(f"cannot use the Ray cluster at {where}: {reason}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Raises within `SECONDS_TO_CONNECT` where nothing listens: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the address of a Ray cluster is host:port, auto or local, not {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}): start one there with `ray start --head`, name another "
            "address, or leave the address out to use this machine."
        ) from error


def room(ray: Any, device: str | None, workers: int | None) -> Room:
    """Returns how many actors to start and what each takes: a GPU where the cluster has some, else a CPU.

    Args:
        ray: the connected library.
        device: "cuda" or "cpu"; by default what the cluster has.
        workers: number of actors; by default one per GPU, or one per CPU but one.

    Raises:
        ValueError: more actors than there is room for, or no GPU.
    """
    has = ray.cluster_resources()
    gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"on a Ray cluster the device is cuda or cpu, not {device!r}: Ray chooses which GPU.")
    on_gpus = device == "cuda" or (device is None and gpus > 0)
    most = gpus if on_gpus else cpus
    if most < 1:
        raise ValueError(f"the Ray cluster has no {'GPU' if on_gpus else 'CPU'}.")
    wanted = workers or (most if on_gpus else max(1, most - 1))
    if wanted > most:
        raise ValueError(f"{wanted} workers were asked for, but the Ray cluster has room for {most}.")
    # a little of each CPU is left for the tasks that read and write
    return Room(wanted, "cuda" if on_gpus else "cpu", {"num_gpus": 1.0} if on_gpus else {"num_cpus": 0.8})
