"""The PyTorch contenders: transformers' ViTMAE with the sizes of a backbone, eager or compiled.

Callers check ``missing`` first; torch is only imported after that.
"""

import importlib.util
from typing import Any

from cinemae_jax.model.config import MAEConfig


def missing() -> str:
    """Why PyTorch cannot take part; empty if it can."""
    lacking = [n for n in ("torch", "transformers") if not importlib.util.find_spec(n)]
    return f"without PyTorch: {' and '.join(lacking)} not installed" if lacking else ""


def vit_mae(config: MAEConfig, **options: Any) -> Any:
    """A ``ViTMAEForPreTraining`` with random float32 weights.

    Args:
      config: sizes of the model.
      options: more fields of transformers' config.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.width,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=4 * config.decoder_width,
            layer_norm_eps=config.layer_norm_eps,
            **options,
        )
    )


def extractions(config: MAEConfig, num_runs: int, batch: int, dtype: str) -> dict[str, Any]:
    """Feature extraction by ``weights_convert.torch_reference``: name → one repetition.

    If torch.compile fails, the reason is printed and ``compiled`` is left out.
    """
    import torch

    from weights_convert import torch_reference

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vit_mae(config).eval().to(device, getattr(torch, dtype))
    size = config.image_size
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    noise = torch.rand(batch, num_runs, config.num_patches, device=device)
    functions = {
        "eager": torch_reference.extract_features,
        "compiled": torch.compile(torch_reference.extract_features),
    }

    def repetition(function: Any) -> Any:
        return lambda: function(model, images, noise).f_global.cpu()  # waits for a GPU

    runs = {name: repetition(function) for name, function in functions.items()}
    try:
        runs["compiled"]()
    except Exception as failure:  # compilers and tool chains raise anything
        print(f"torch.compile, {dtype}: left out: {type(failure).__name__}: {failure}")
        del runs["compiled"]
    return runs
