"""A job of two minutes that proves a cluster (``launch/smoke.sh``).

launch/smoke.sh --workdir /shared/smoke -- launch/tpu_run.sh --name cinemae --project P --zone Z
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.images = 256  # random ones; at least four steps
    config.batch_size = 64  # images a step, rounded to a multiple of the devices
    config.dtype = "float32"  # of the backbone
    return config
