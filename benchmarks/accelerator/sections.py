"""The sections: what each is called, where its code is, and how long it may take on a GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
      code: ``module:function`` in this package; the function takes a ``Size`` and yields rows.
      seconds: after which it starts no further row.
      title: of its table.
      flags: XLA flags of its process.
      alone: whether it needs a process without other sections.
    """

    code: str
    seconds: int
    title: str
    flags: str = ""
    alone: bool = False


SECTIONS = {
    # right
    "precision": Section("right:precision", 15, "float32 products"),
    "goldens": Section("right:goldens", 50, "stored outputs of the PyTorch reference"),
    "vit_large": Section("right:vit_large", 40, "ViT-L in float32: this device against the CPU"),
    "bfloat16": Section("right:bfloat16", 40, "bfloat16 against float32"),
    "devices": Section("right:devices", 30, "gradient of the head: devices, pmap, shard_map"),
    # fast
    "matmul": Section("fast:matmul", 15, "matrix products alone"),
    "features": Section("fast:features", 110, "features of ViT-L/16"),
    "attention": Section("fast:attention", 50, "attention and run layout, bfloat16"),
    "head": Section("fast:head", 25, "heads from a bank"),
    "pretrain": Section("fast:pretrain", 25, "a pre-training step"),
    "files": Section("fast:files", 30, "from JPEG files to features"),
    "profile": Section("profile:step", 15, "the five costliest operations of a step"),
    "flags": Section("fast:one", 20, "XLA's own flags", alone=True),
    "no_triton": Section(
        "fast:one",
        20,
        "without Triton products",
        "--xla_gpu_enable_triton_gemm=false",
    ),
    "no_command_buffers": Section(
        "fast:one",
        20,
        "without command buffers",
        "--xla_gpu_enable_command_buffer=",
    ),
    "torch": Section("torch_vit:bench", 45, "PyTorch", alone=True),
}
