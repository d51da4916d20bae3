"""The process that serves one dataset's champion."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys

import torch
import uvicorn

from noise2next.config import Dataset, Settings
from noise2next.errors import UserError
from noise2next.registry.versions import ModelRegistry
from noise2next.serving.app import create_app
from noise2next.serving.batching import Batcher
from noise2next.serving.following import Follower
from noise2next.serving.metrics import Metrics
from noise2next.workspace import Workspace

log = logging.getLogger(__name__)

DRAIN_SECONDS = 30  # for requests under way when the process is told to end


def run(space: Workspace, settings: Settings, dataset: Dataset, host: str, port: int, poll_seconds: float) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was asked and end. Raises UserError where it cannot listen."""
    with _listening(host, port) as listener:
        torch.set_num_threads(1)  # each call has a thread of ours; threads of torch's would fight over the same cores
        metrics = Metrics()
        app = create_app(
            Follower(lambda: ModelRegistry(settings, space), poll_seconds, metrics, dataset.split.mask_seen),
            Batcher(_cores(), metrics.together.observe),
            metrics,
        )
        # The libraries stay as long as the process does: no collection need look at them while somebody waits.
        gc.collect()
        gc.freeze()
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=DRAIN_SECONDS
        )
        place = "{}:{}".format(*listener.getsockname()[:2])
        log.info("%s on http://%s, what there is at http://%s/docs; Ctrl-C ends it", space.dataset, place, place)
        uvicorn.Server(config).run(sockets=[listener])


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}:{port}: cannot be listened on ({error}); name others with --host and --port"
        ) from error
