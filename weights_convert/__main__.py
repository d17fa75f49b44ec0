"""Convert published weights of MAEs and encoders, and verify a conversion against PyTorch.

Exit codes: 0 done; 1 a verified stage exceeds its bound; 2 wrong usage, or a refused file.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cinemae_jax.model import vit
from cinemae_jax.model.config import PRESETS
from cinemae_jax.runtime.console import OK, USAGE, Parser, fail, positive
from cinemae_jax.weights import BackboneError
from weights_convert import (
    convert,
    encoder_goldens,
    encoder_reference,
    encoders,
    goldens,
    sources,
    verify,
)
from weights_convert.infer import Options

ABOVE_BOUND = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; ``argv`` without the program's name."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except sources.ConversionError as error:  # one problem per line
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USAGE
    except (BackboneError, OSError) as error:
        return fail(error)


def parser() -> argparse.ArgumentParser:
    called = "cinemae" if Path(sys.argv[0]).stem == "cinemae" else "python -m weights_convert"
    top = Parser(prog=called, description=__doc__)
    commands = top.add_subparsers(required=True, metavar="{convert,verify,goldens}")

    command = commands.add_parser("convert", help="convert a published MAE or encoder")
    _add_source(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors", help="file to write"
    )
    command.add_argument(
        "--encoder-only",
        action="store_true",
        help="accept a file without a decoder, for detectors with K = 0 masking runs",
    )
    command.add_argument(
        "--blocks", type=positive, metavar="N", help="keep an encoder's first N blocks only"
    )
    command.add_argument(
        "--bits", type=int, choices=(4, 8), help="store an encoder's kernels in so many bits"
    )
    _add_options(command)
    command.set_defaults(run=_convert)

    command = commands.add_parser("verify", help="compare PyTorch and JAX, stage by stage")
    _add_source(command)
    command.add_argument(
        "--converted", type=Path, metavar="FILE.safetensors", help="conversion of SRC"
    )
    command.add_argument(
        "--random",
        choices=sorted({**PRESETS, **vit.PRESETS}),
        help="verify random weights of this size, without SRC",
    )
    command.add_argument(
        "--images", type=positive, default=2, metavar="N", help="synthetic images (default 2)"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of images, noise and head")
    command.add_argument(
        "--floor", action="store_true", help="also compare PyTorch's float32 with its float64"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report here, too")
    _add_options(command)
    command.set_defaults(run=_verify)

    command = commands.add_parser("goldens", help="regenerate the fixtures of the tests")
    command.add_argument(
        "--out", type=Path, default=goldens.FOLDER, metavar="FOLDER", help="default: %(default)s"
    )
    command.set_defaults(run=_goldens)
    return top


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", nargs="?", type=Path, metavar="SRC",
        help="mae_*.pth, model.safetensors, pytorch_model.bin, or a folder with config.json",
    )  # fmt: skip
    command.add_argument(
        "--hub",
        metavar="REPOSITORY",
        help="download from Hugging Face instead of SRC, for example facebook/vit-mae-large",
    )
    command.add_argument("--revision", metavar="COMMIT", help="branch, tag or commit of --hub")


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--target",
        choices=("raw", "norm_pix"),
        help="what the decoder predicts, if neither config.json nor the file's name states it",
    )
    unstated = "if config.json does not state it"
    command.add_argument("--num-heads", type=int, metavar="N", help=f"encoder's heads, {unstated}")
    command.add_argument(
        "--decoder-num-heads", type=int, metavar="N", help=f"decoder's heads, {unstated}"
    )
    command.add_argument(
        "--layer-norm-eps", type=float, metavar="EPS", help=f"LayerNorm's epsilon, {unstated}"
    )


def _options(args: argparse.Namespace, *, encoder_only: bool = False) -> Options:
    return Options(
        target=args.target,
        encoder_only=encoder_only,
        num_heads=args.num_heads,
        decoder_num_heads=args.decoder_num_heads,
        layer_norm_eps=args.layer_norm_eps,
    )


def _source(args: argparse.Namespace) -> tuple[Path, str | None]:
    if (args.source is None) == (args.hub is None):
        raise sources.ConversionError("pass either SRC or --hub REPOSITORY")
    return (args.source, None) if args.source else sources.download(args.hub, args.revision)


def _refuse_options(source: Path, options: Options) -> None:
    if options != Options():
        raise sources.ConversionError(
            f"{source} is an encoder, whose config.json says everything: leave out --target, "
            "--encoder-only, --num-heads, --decoder-num-heads and --layer-norm-eps"
        )


def _convert(args: argparse.Namespace) -> int:
    source, name = _source(args)
    options = _options(args, encoder_only=args.encoder_only)
    if sources.is_encoder(source):
        _refuse_options(source, options)
        done = encoders.convert(source, args.out, name=name, blocks=args.blocks, bits=args.bits)
    elif args.blocks or args.bits:
        raise sources.ConversionError(
            f"{source} is a masked autoencoder: --blocks and --bits are for encoders"
        )
    else:
        done = convert.convert(source, args.out, options, name=name)
    print(f"{done.path}  sha256 {done.sha256}")
    for key, value in done.origin.items():
        if value:
            print(f"  {key}: {value}")
    return OK


def _verify(args: argparse.Namespace) -> int:
    common = {"batch": args.images, "seed": args.seed, "floor": args.floor}
    if args.random:
        if args.source or args.hub or args.converted:
            raise sources.ConversionError("drop SRC, --hub and --converted with --random")
        with tempfile.TemporaryDirectory() as folder:
            if args.random in vit.PRESETS:
                encoder = vit.PRESETS[args.random]
                report = encoder_reference.verify_random(encoder, Path(folder), **common)
            else:
                config = PRESETS[args.random](target=args.target or "raw")
                report = verify.verify_random(config, Path(folder), **common)
    else:
        if args.converted is None:
            raise sources.ConversionError("pass the converted file: --converted FILE.safetensors")
        source, _ = _source(args)
        if sources.is_encoder(source):
            _refuse_options(source, _options(args))
            report = encoder_reference.verify_folder(
                source, args.converted, batch=args.images, seed=args.seed
            )
        else:
            report = verify.verify_file(source, args.converted, _options(args), **common)
    print(report.table())
    if args.json:
        args.json.write_text(report.as_json() + "\n", encoding="utf-8")
    return ABOVE_BOUND if report.failures else OK


def _goldens(args: argparse.Namespace) -> int:
    for path in [*goldens.write(args.out), *encoder_goldens.write(args.out / "encoders")]:
        print(f"{path}  {path.stat().st_size:,} bytes")
    return OK


if __name__ == "__main__":
    sys.exit(main())
