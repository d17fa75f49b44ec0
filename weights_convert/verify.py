"""Compares PyTorch and JAX on the same images and mask noise, stage by stage, in float32.

``torch_reference`` is built from the published file, the JAX detector from its conversion.  torch
is imported only when a verification runs.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cinemae_jax import weights
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import SCORES, MAEConfig
from cinemae_jax.model.vit import ViTConfig
from weights_convert import convert, mapping, sources, stages
from weights_convert.infer import Options
from weights_convert.stages import Difference, Inputs, Stages

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

# For encoders of up to 12 blocks, and for deeper ones; reasons in docs/weights.md.
SHALLOW_BOUND, DEEP_BOUND = 1e-5, 5e-5
SHALLOW_DEPTH = 12
# Adam divides a gradient by its own size: where a gradient nearly cancels, rounding decides the
# step. Ten times the bound is 1 % of the largest possible change of a weight (0.01, the sum of all
# learning rates).
TRAINED_FACTOR = 10


@dataclasses.dataclass(frozen=True)
class Report:
    """Outcome of one verification.

    Attributes:
      subject: what was compared.
      config: its architecture.
      bound: largest difference allowed, in units of max(1, the stage's largest value);
        ``TRAINED_FACTOR`` times as much for trained parameters.
      rows: one per stage.
      floors: by stage, the largest difference between PyTorch's float32 and float64; empty if not
        computed.
      floor_factor: a stage above the bound passes if it is within this many times its floor.
    """

    subject: str
    config: MAEConfig | ViTConfig
    bound: float
    rows: list[Difference]
    floors: dict[str, float]
    floor_factor: float = 0.0

    def above(self, row: Difference) -> bool:
        """Whether a stage exceeds its bound."""
        is_trained = row.stage.startswith("trained/")
        is_rounding = row.absolute <= self.floor_factor * self.floors.get(row.stage, 0.0)
        return row.exceeds(self.bound * (TRAINED_FACTOR if is_trained else 1)) and not is_rounding

    @property
    def failures(self) -> list[Difference]:
        return [row for row in self.rows if self.above(row)]

    def table(self) -> str:
        """One line per stage; for gradients and trained parameters, one line per tensor."""
        width = max(len(row.stage) for row in self.rows)
        head = f"{'stage':<{width}}  largest |value|  absolute   relative   float64 floor"
        lines = [self.subject, head]
        for row in self.rows:
            floor = f"{self.floors[row.stage]:.1e}" if self.floors else "-"
            mark = "  ABOVE THE BOUND" if self.above(row) else ""
            lines.append(
                f"{row.stage:<{width}}  {row.scale:15.3g}  {row.absolute:.1e}    "
                f"{row.relative:.1e}    {floor}{mark}"
            )
        verdict = f"{len(self.failures)} of {len(self.rows)} stages are above"
        lines.append(f"{verdict} {self.bound:.0e} x max(1, largest |value|), {self._exception()}")
        return "\n".join(lines)

    def _exception(self) -> str:
        if self.floor_factor:
            return f"or {self.floor_factor:g} x their float64 floor where it is known"
        return f"trained parameters {TRAINED_FACTOR * self.bound:.0e}"

    def as_json(self) -> str:
        return json.dumps(
            {
                "subject": self.subject,
                "config": dataclasses.asdict(self.config),
                "bound": self.bound,
                "trained_bound": TRAINED_FACTOR * self.bound,
                "passed": not self.failures,
                "stages": [
                    dataclasses.asdict(row)
                    | {"above": self.above(row), "floor": self.floors.get(row.stage)}
                    for row in self.rows
                ],
            },
            indent=1,
        )


def bound_for(config: MAEConfig | ViTConfig) -> float:
    return SHALLOW_BOUND if config.depth <= SHALLOW_DEPTH else DEEP_BOUND


def verify_file(
    source: Path,
    converted: Path,
    options: Options | None = None,
    *,
    batch: int = 2,
    seed: int = 0,
    floor: bool = False,
) -> Report:
    """Compares a published file in PyTorch with its conversion in JAX.

    Args:
      source: the published file.
      converted: the result of ``convert``.
      options: what the source does not state; the target is taken from ``converted`` by default.
      batch: number of synthetic images.
      seed: of images, noise and head.
      floor: whether to compare PyTorch's float32 with its float64, too.

    Raises:
      ConversionError, BackboneError: if one of the two files is refused, or their sizes differ.
    """
    backbone = weights.load(converted)
    options = options or Options()
    target = options.target or backbone.config.target
    mae = load_reference(source, dataclasses.replace(options, target=target))
    wanted = vitmae_config(backbone.config)
    differ = [k for k, v in wanted.items() if k != "layer_norm_eps" and getattr(mae.config, k) != v]
    if differ:
        raise sources.ConversionError(f"{source} and {converted} differ in {', '.join(differ)}")
    inputs = stages.random_inputs(backbone.config, batch=batch, seed=seed)
    return verify(f"{source} against {converted}", mae, backbone, inputs, floor=floor)


def verify_random(
    config: MAEConfig, folder: Path, *, batch: int = 2, seed: int = 0, floor: bool = False
) -> Report:
    """Saves a random ViTMAE as Hugging Face does, converts it, and compares the two."""
    mae = random_vitmae(config, seed)
    mae.save_pretrained(folder / "vitmae")
    converted = convert.convert(folder / "vitmae", folder / "converted.safetensors")
    inputs = stages.random_inputs(config, batch=batch, seed=seed)
    name = f"random weights, encoder {config.width} wide and {config.depth} deep"
    return verify(name, mae, weights.load(converted.path), inputs, floor=floor)


def verify(
    subject: str,
    mae: "ViTMAEForPreTraining",
    backbone: Backbone,
    inputs: Inputs,
    *,
    floor: bool = False,
) -> Report:
    """Compares a ViTMAE with a backbone on the given inputs."""
    ours = stages.jax_stages(backbone, inputs)
    reference = torch_stages(mae, inputs)
    floors = {}
    if floor:
        exact = torch_stages(mae.double(), inputs)
        floors = {row.stage: row.absolute for row in stages.compare(exact, reference)}
    rows = stages.compare(reference, ours)
    return Report(subject, backbone.config, bound_for(backbone.config), rows, floors)


def vitmae_config(config: MAEConfig) -> dict[str, Any]:
    """Arguments of transformers' ViTMAEConfig for an architecture."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": 4 * config.width,
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": 4 * config.decoder_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.layer_norm_eps,
        "norm_pix_loss": config.target == "norm_pix",
        "mask_ratio": stages.MASK_RATIO,
    }


def build_vitmae(config: MAEConfig) -> "ViTMAEForPreTraining":
    """A ViTMAE of the architecture in evaluation mode, before its weights are loaded."""
    transformers = sources.need("transformers")
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**vitmae_config(config))
    ).eval()


def random_vitmae(
    config: MAEConfig, seed: int = 0, *, spread: float = 0.02, tokens: float = 0.02
) -> "ViTMAEForPreTraining":
    """A ViTMAE without zeros or symmetry, so that every mistake shows.

    Args:
      config: architecture.
      seed: of NumPy's generator; parameters are drawn in the order of their published names, so
        that every release of transformers gives the same model.
      spread: standard deviation of matrices and biases.
      tokens: standard deviation of patch embedding, class and mask tokens and position tables;
        small ones make LayerNorm's epsilon matter.
    """
    torch = sources.need("torch")
    rng = np.random.default_rng(seed)
    mae = build_vitmae(config)
    named = {mapping.published_name(n, "huggingface"): p for n, p in mae.named_parameters()}
    with torch.no_grad():
        for name, parameter in sorted(named.items()):
            is_token = "token" in name or "pos" in name or "patch_embeddings" in name
            values = rng.standard_normal(parameter.shape, np.float32)
            values *= tokens if is_token else spread
            if "norm" in name and name.endswith("weight"):
                values += 1
            parameter.copy_(torch.from_numpy(values))
    return mae


def load_reference(source: Path, options: Options) -> "ViTMAEForPreTraining":
    """A published file of either layout as transformers' ViTMAE, by the table of ``mapping``."""
    torch = sources.need("torch")
    with sources.opened(source) as opened:
        config, fillings, _ = convert.plan(opened, options)
        if not config.has_decoder:
            raise sources.ConversionError(f"{source} has no decoder: verify needs a whole MAE")
        state: dict[str, Any] = {}
        for row, names in fillings:
            whole = np.concatenate([opened.tensor(name) for name in names])
            parts = np.split(whole, len(row.huggingface))
            state |= {n: torch.from_numpy(p.copy()) for n, p in zip(row.huggingface, parts)}  # noqa: B905
    mae = build_vitmae(config)
    spelled = {mapping.published_name(name, "huggingface"): name for name in mae.state_dict()}
    mae.load_state_dict({spelled[name]: tensor for name, tensor in state.items()}, strict=True)
    return mae


def torch_stages(mae: "ViTMAEForPreTraining", inputs: Inputs) -> Stages:
    """Every stage of ``torch_reference`` in the model's dtype, in the order of ``jax_stages``."""
    torch = sources.need("torch")
    from weights_convert import torch_reference as reference  # needs torch to be imported

    images, noise = torch.from_numpy(inputs.images), torch.from_numpy(inputs.noise)
    with torch.no_grad():
        pixels = reference.normalize_images(images, mae.dtype)
        visible, masked = reference.visible_and_masked(noise, reference.num_visible(mae))
        out = {"target": reference.target_patches(mae, pixels)}
        with _recorded(mae) as seen:
            reference.global_feature(mae, pixels)
        out |= {f"global/{k}": v for k, v in seen.items()}
        with _recorded(mae) as seen:
            prediction = reference.reconstruct(mae, pixels, noise[:, 0])
        order = torch.cat(
            [torch.zeros_like(visible[:, 0, :1]), 1 + visible[:, 0], 1 + masked[:, 0]], 1
        )
        for name, tokens in seen.items():  # ours are ordered CLS, visible, masked
            is_block = name.startswith("decoder_") and name != "decoder_embed"
            out[f"masked/{name}"] = reference.take(tokens, order) if is_block else tokens
        out["masked/prediction"] = reference.take(prediction, masked[:, 0])
        features = reference.extract_features(mae, images, noise)
    out |= {f"terms/{k}": v for k, v in vars(features.terms).items()}
    out["frequency"] = reference.frequency(images, mae.dtype)
    length, num_visible = reference.num_patches(mae), reference.num_visible(mae)
    for share in stages.shares(not mae.config.norm_pix_loss):
        for variant in SCORES:
            for sensitivity in ("run", "patch"):
                out[stages.statistics_name(variant, sensitivity, share)] = reference.statistics(
                    features, variant, sensitivity=sensitivity, length=length, share=share
                )
    textures = reference.texture(images, mae.config.patch_size)
    gumbel = -(-noise.log()).log()
    out |= {
        "masks/texture": textures,
        "masks/disjoint": reference.disjoint(noise[:, 0], num_visible, stages.GROUP_SIZE),
        "masks/stratified": reference.stratified(textures, gumbel, num_visible),
    }
    stacked = {k: v.detach().numpy() for k, v in out.items()}
    return stacked | _torch_head_stages(features, inputs)


@contextlib.contextmanager
def _recorded(mae: "ViTMAEForPreTraining") -> Iterator[dict[str, Any]]:
    """Records the outputs of the stages' modules, by the names of ``stages``."""
    seen: dict[str, Any] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in _stage_modules(mae)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _stage_modules(mae: "ViTMAEForPreTraining") -> Iterable[tuple[str, Any]]:
    """Names of ``stages`` and transformers' modules; release 5 moved the encoder's blocks."""
    encoder = mae.vit.layers if hasattr(mae.vit, "layers") else mae.vit.encoder.layer
    return [
        ("patch_embed", mae.vit.embeddings.patch_embeddings),
        *((f"encoder_{i}", block) for i, block in enumerate(encoder)),
        ("encoder_norm", mae.vit.layernorm),
        ("decoder_embed", mae.decoder.decoder_embed),
        *((f"decoder_{i}", block) for i, block in enumerate(mae.decoder.decoder_layers)),
    ]


def _torch_head_stages(features: Any, inputs: Inputs) -> Stages:
    torch = sources.need("torch")
    from weights_convert import torch_reference as reference

    dtype = features.f_global.dtype
    head = reference.Head(features.f_global.shape[1], inputs.fusion, inputs.hidden).to(dtype)
    head.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in inputs.head.items()})
    normalizer = reference.Normalizer(
        **{k: torch.from_numpy(inputs.normalizer[k]).to(dtype) for k in stages.NORMALIZER}
    )
    stats = reference.statistics(features, inputs.variant)
    f, s = normalizer(features.f_global, stats)
    labels = torch.from_numpy(inputs.labels)
    logits = head(f, s)
    value = reference.loss(logits, labels)
    value.backward()
    out = {"logits": logits.detach().numpy(), "loss": value.detach()[None].numpy()}
    out |= _head_arrays("gradients", {k: p.grad for k, p in head.named_parameters()})
    training = reference.Training(
        num_steps=stages.NUM_STEPS,
        peak=stages.PEAK,
        warmup=stages.WARMUP,
        weight_decay=stages.WEIGHT_DECAY,
        global_weight_decay=stages.GLOBAL_WEIGHT_DECAY,
    )
    reference.train_head(head, f, s, labels, training)
    return out | _head_arrays("trained", head.state_dict())


def _head_arrays(prefix: str, tensors: Any) -> Stages:
    arrays = {k: v.detach().numpy().copy() for k, v in tensors.items()}
    return {f"{prefix}/{k}": v for k, v in mapping.head_to_flax(arrays).items()}
