"""One of several processes that run several jobs in turn, where an entry point would run one.

    python -m tests.helpers.jobs HOST:PORT COUNT INDEX PLAN

PLAN is a JSON list of [module of cinemae_jax, function, config, workdir].  Starting a process and
importing JAX takes seconds, so jobs share one.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from cinemae_jax import typed
from cinemae_jax.runtime import hosts
from cinemae_jax.settings import PretrainSettings, Settings


def main(coordinator: str, count: str, index: str, plan: str) -> int:
    hosts.join(coordinator, int(count), int(index), timeout=60)
    for module, function, config, workdir in json.loads(plan):
        hosts.require_shared(Path(workdir))
        kind: Any = PretrainSettings if function == "pretrain" else Settings
        job = getattr(importlib.import_module(f"cinemae_jax.{module}"), function)
        settings = typed.read(config, kind)
        job(settings.evaluation if module == "evaluate" else settings, Path(workdir))
    return hosts.leave(0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
