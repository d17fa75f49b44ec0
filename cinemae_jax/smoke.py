"""Two minutes on a cluster before the long job: does it join, compute, save, stop and resume?

    python -m cinemae_jax.smoke --config smoke --workdir /shared/smoke --distributed

The first call stops half way with exit code 75, as after a preemption; the second resumes, compares
with an undisturbed run, and writes smoke.json.  Images are random; needs no data set and no
weights.  launch/smoke.sh makes both calls.
"""

import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cinemae_jax import typed
from cinemae_jax.runtime import jobs
from cinemae_jax.training import rehearsal


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[Any]:
        settings = typed.read(config.to_dict(), rehearsal.SmokeSettings)
        rehearsal.rehearse(settings, workdir, jobs.replicas())
        return []

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
