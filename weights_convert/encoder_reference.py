"""The reference for encoders: transformers' models, stage by stage, beside ours.

Models of random weights for goldens and parity, and ``verify`` for published folders.  Imports
torch and transformers only when something is run.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cinemae_jax import weights
from cinemae_jax.model.mae import patchify
from cinemae_jax.model.vit import Encoder, ViT, ViTConfig
from weights_convert import encoder_mapping, encoders, sources, stages
from weights_convert.stages import Stages
from weights_convert.verify import Report, bound_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By config.json's model type: the class whose image feature ours must equal.
CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
# Two correct float32 programs differ by the sum of their distances from float64.  Some trained
# encoders have patch tokens so large that this is far above any fixed bound.
FLOOR_FACTOR = 3.0
_ACTIVATIONS = {ours: theirs for theirs, ours in encoders.ACTIVATIONS.items()}


# --- models -------------------------------------------------------------------------------------


def model_type(config: ViTConfig) -> str:
    """The model type of an image tower by itself with this architecture."""
    if config.family == "dinov2":
        return "dinov2_with_registers" if config.num_registers else "dinov2"
    if config.family == "siglip":
        naflex = config.resampling == "bilinear_antialias"
        return "siglip2_vision_model" if naflex else "siglip_vision_model"
    return {"clip": "clip_vision_model", "dinov3": "dinov3_vit"}[config.family]


def entries(config: ViTConfig) -> dict[str, Any]:
    """What config.json says of an architecture."""
    said: dict[str, Any] = {
        "model_type": model_type(config),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.layer_norm_eps,
    }
    if config.family == "dinov2":
        said["mlp_ratio"] = config.mlp_width // config.width
    else:
        said["intermediate_size"] = config.mlp_width
    if config.family == "clip":
        said["projection_dim"] = config.projection
    if config.num_registers:
        said["num_register_tokens"] = config.num_registers
    if config.family == "dinov3":
        said["rope_theta"] = config.rope_theta
    if said["model_type"] == "siglip2_vision_model":
        del said["image_size"]
        said["num_patches"] = config.grid**2
    return said


def random_model(
    config: ViTConfig, seed: int = 0, *, spread: float = 0.02, tokens: float = 0.02
) -> "PreTrainedModel":
    """A model of transformers in which nothing is zero or symmetric, so that every mistake shows.

    Args:
      config: architecture.
      seed: of numpy's generator; parameters are drawn in the order of their published names, so
        that every release of transformers gives the same model.
      spread: standard deviation of matrices and biases.
      tokens: of patch embedding, tokens and position table; small ones make LayerNorm's epsilon
        matter.
    """
    transformers, torch = sources.need("transformers"), sources.need("torch")
    said = entries(config)
    cls = getattr(transformers, CLASSES[said["model_type"]])
    model = cls(cls.config_class(**said)).eval()
    layout = encoder_mapping.LAYOUTS[said["model_type"]]
    named = {encoder_mapping.published_name(n, layout): p for n, p in model.named_parameters()}
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(named.items()):
            values = rng.standard_normal(parameter.shape, np.float32)
            is_token = "embeddings." in name or name.endswith("probe")
            values *= tokens if is_token else spread
            is_norm = "norm" in name and name.endswith("weight")
            values += 1.0 if is_norm else 0.5 if "layer_scale" in name else 0.0
            parameter.copy_(torch.from_numpy(values))
    return model


def published(model: "PreTrainedModel") -> dict[str, np.ndarray]:
    """The tensors of a model under their published names."""
    layout = encoder_mapping.LAYOUTS[model.config.model_type]
    return {
        encoder_mapping.published_name(n, layout): p.detach().numpy()
        for n, p in model.named_parameters()
    }


# --- stages -------------------------------------------------------------------------------------


def random_pixels(height: int, width: int, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Normalised images of clouds and grain, float32 (B, H, W, 3)."""
    rng = np.random.default_rng(seed)
    clouds = rng.normal(0, 1, (batch, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)
    grain = rng.normal(0, 0.4, (batch, height, width, 3))
    return (clouds[:, :height, :width] + grain).astype(np.float32)


def jax_stages(encoder: Encoder, pixels: np.ndarray) -> Stages:
    """Every stage of ours in float32."""
    run = jax.jit(functools.partial(ViT(encoder.config).apply, method="stages"))
    with jax.default_matmul_precision("highest"):
        out = run({"params": encoder.params}, jnp.asarray(pixels))
    return {name: np.asarray(value) for name, value in out.items()}


def torch_stages(model: "PreTrainedModel", pixels: np.ndarray) -> Stages:
    """Every stage of transformers' model in its own dtype, named as ours."""
    with _recorded(model) as seen:
        seen["feature"] = torch_feature(model, pixels)
    return {name: value.numpy() for name, value in seen.items()}


def torch_feature(model: "PreTrainedModel", pixels: np.ndarray) -> Any:
    """The image feature of transformers' model, a tensor (B, D) in its own dtype."""
    torch = sources.need("torch")
    with torch.no_grad():
        out = model(**_arguments(model, torch.from_numpy(pixels).to(model.dtype)))
    projected = getattr(out, "image_embeds", None)
    return out.pooler_output if projected is None else projected


def _arguments(model: "PreTrainedModel", pixels: Any) -> dict[str, Any]:
    """Pixels (B, H, W, 3) as the model's ``forward`` takes them."""
    torch, kind = sources.need("torch"), model.config.model_type
    batch, height, width, _ = pixels.shape
    if kind == "siglip2_vision_model":
        patch = model.config.patch_size
        grid = torch.tensor([[height // patch, width // patch]] * batch)
        patches = np.array(patchify(jnp.asarray(pixels.float().numpy()), patch))
        mask = torch.ones(patches.shape[:2], dtype=torch.int32)
        values = torch.from_numpy(patches).to(pixels.dtype)
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": grid}
    interpolates = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    return {"pixel_values": pixels.permute(0, 3, 1, 2), **interpolates}


@contextlib.contextmanager
def _recorded(model: "PreTrainedModel") -> Iterator[dict[str, Any]]:
    """Keeps the outputs of the stages' modules, by our names, while the context is open."""
    seen: dict[str, Any] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [m.register_forward_hook(keeper(name)) for name, m in _stage_modules(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _stage_modules(model: Any) -> list[tuple[str, Any]]:
    """Our names and transformers' modules; its releases 4 and 5 nest them differently."""
    tower = getattr(model, "vision_model", model)
    embed = getattr(tower, "pre_layrnorm", tower.embeddings)
    norms = (getattr(tower, name, None) for name in ("post_layernorm", "layernorm", "norm"))
    encoder = getattr(tower, "encoder", None) or getattr(tower, "model", tower)
    blocks = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    return [
        ("embed", embed),
        *((f"block_{i}", block) for i, block in enumerate(blocks)),
        ("norm", next(norm for norm in norms if norm is not None)),
    ]


# --- verify -------------------------------------------------------------------------------------


def verify_folder(source: Path, converted: Path, *, batch: int = 2, seed: int = 0) -> Report:
    """Compares a published folder, read by transformers, with its conversion, run by JAX.

    The reference is also run in float64: a stage may differ by ``FLOOR_FACTOR`` times its distance.

    Raises:
      ConversionError, BackboneError: if one of the two is refused.
    """
    encoder = weights.load_encoder(converted)
    folder = source if source.is_dir() else source.parent
    with sources.opened(source, kinds=encoder_mapping.LAYOUTS) as opened:
        if encoders.plan(opened).config != encoder.config:
            raise sources.ConversionError(f"{source} and {converted} differ in architecture")
        cls = getattr(sources.need("transformers"), CLASSES[opened.config["model_type"]])
    model = cls.from_pretrained(folder, dtype=sources.need("torch").float32).eval()
    return verify(f"{source} and {converted}", model, encoder, batch=batch, seed=seed, floor=True)


def verify_random(
    config: ViTConfig, folder: Path, *, batch: int = 2, seed: int = 0, floor: bool = False
) -> Report:
    """Writes a random model as transformers does, converts it, and compares the two."""
    model = random_model(config, seed)
    model.save_pretrained(folder / "model")
    done = encoders.convert(folder / "model", folder / "converted.safetensors")
    encoder = weights.load_encoder(done.path)
    name = f"random weights, {config.family} {config.width} wide and {config.depth} deep"
    return verify(name, model, encoder, batch=batch, seed=seed, floor=floor)


def verify(
    subject: str,
    model: "PreTrainedModel",
    encoder: Encoder,
    *,
    batch: int = 2,
    seed: int = 0,
    floor: bool = False,
) -> Report:
    """Compares transformers' model with an encoder, on images of the size that it is fed."""
    size = encoder.preprocessing.size
    pixels = random_pixels(size, size, batch=batch, seed=seed)
    ours, reference = jax_stages(encoder, pixels), torch_stages(model, pixels)
    floors = {}
    if floor:
        exact = torch_stages(model.double(), pixels)
        floors = {row.stage: row.absolute for row in stages.compare(exact, reference)}
    rows = stages.compare(reference, ours)
    bound = bound_for(encoder.config)
    return Report(subject, encoder.config, bound, rows, floors, FLOOR_FACTOR)
