"""PyTorch's side: the same passes in bfloat16 with its fused attention, eager and compiled.

A plain MAE of ``torch.nn`` modules with random weights; needs torch and nothing else.
"""

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.accelerator.sizes import Size, Skipped
from cinemae_jax.model.config import MAEConfig

Row = dict[str, Any]
NUM_RUNS = 2


def bench(size: Size) -> Iterator[Row]:
    """Images a second, with as many images a batch as the other sections."""
    try:
        import torch
    except ImportError as error:
        raise Skipped(f"no PyTorch here: {error}") from error
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    model = mae(size.model).to(device, torch.bfloat16).eval()
    c = size.model
    images = torch.randint(
        0, 256, (size.batch, c.image_size, c.image_size, 3), dtype=torch.uint8, device=device
    )
    with torch.inference_mode():
        for kind, function in (("eager", model), ("compiled", torch.compile(model))):

            def run(function: Any = function) -> None:
                function(images)
                if on_gpu:
                    torch.cuda.synchronize()

            begin = time.perf_counter()
            try:
                run()
            except Exception as error:  # whatever compilers and their tool chains raise
                note = f"skipped: {type(error).__name__}: {str(error)[:200]}"
                yield {"torch": torch.__version__, "kind": kind, "note": note}
                continue
            first = time.perf_counter() - begin
            yield {
                "torch": torch.__version__,
                "kind": kind,
                "device": torch.cuda.get_device_name() if on_gpu else "cpu",
                "K": NUM_RUNS,
                "batch": size.batch,
                "dtype": "bfloat16",
                "images/s": rate(run, size.batch, size.seconds),
                "first call s": first,
            }


def rate(run: Any, work: float, seconds: float) -> float:
    """As ``programs.rate``, without importing JAX beside torch."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return work / sorted(times)[len(times) // 2]


def mae(c: MAEConfig) -> Any:
    """A module: uint8 images to f_global and the mismatch of K masked runs, as one batch."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812 - its usual name

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, n, w = x.shape
            qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, w // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, n, w))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class MAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            length, w, d = c.num_patches, c.width, c.decoder_width
            self.embed, self.cls = nn.Linear(c.patch_dim, w), nn.Parameter(torch.zeros(1, 1, w))
            self.position = nn.Parameter(0.02 * torch.randn(1, 1 + length, w))
            self.encoder = nn.Sequential(*(Block(w, c.num_heads) for _ in range(c.depth)))
            self.norm, self.to_decoder = nn.LayerNorm(w), nn.Linear(w, d)
            self.mask = nn.Parameter(torch.zeros(1, 1, d))
            self.decoder_position = nn.Parameter(0.02 * torch.randn(1, 1 + length, d))
            self.decoder = nn.Sequential(
                *(Block(d, c.decoder_num_heads) for _ in range(c.decoder_depth))
            )
            self.decoder_norm, self.predict = nn.LayerNorm(d), nn.Linear(d, c.patch_dim)

        def encode(self, x: Any) -> Any:
            cls = (self.cls + self.position[:, :1]).expand(len(x), -1, -1)
            return self.norm(self.encoder(torch.cat([cls, x], 1)))

        def forward(self, images: Any) -> Any:
            b, p, side = len(images), c.patch_size, c.image_size // c.patch_size
            pixels = ((images.float() / 255 - 0.45) / 0.22).to(self.mask.dtype)
            patches = pixels.view(b, side, p, side, p, 3).permute(0, 1, 3, 2, 4, 5)
            patches = patches.reshape(b, side * side, -1)
            x = self.embed(patches) + self.position[:, 1:]
            f_global = self.encode(x)[:, 0]
            order = torch.rand(b, NUM_RUNS, side * side, device=x.device).argsort(-1)
            count = c.num_visible(0.75)
            visible, masked = order[..., :count], order[..., count:]
            seen = self.take(x, visible)
            tokens = self.to_decoder(self.encode(seen))
            table = self.decoder_position.expand(b, -1, -1)
            shown = tokens[:, 1:] + self.take(table[:, 1:], visible)
            hidden = self.mask + self.take(table[:, 1:], masked)
            cls = tokens[:, :1] + table[:1, :1]
            y = self.decoder(torch.cat([cls, shown, hidden], 1))
            predictions = self.predict(self.decoder_norm(y[:, 1 + count :]))
            truth = self.take(patches, masked)
            mismatch = (predictions.float() - truth.float()).square().mean(-1)
            return f_global.float(), mismatch.view(b, NUM_RUNS, -1)

        def take(self, x: Any, ids: Any) -> Any:
            """Rows of each image for all its runs, folded into the batch."""
            b, k, n = ids.shape
            flat = ids.reshape(b, k * n, 1).expand(-1, -1, x.shape[-1])
            return x.gather(1, flat).reshape(b * k, n, -1)

    return MAE()
