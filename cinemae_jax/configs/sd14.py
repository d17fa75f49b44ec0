"""CINEMAE as the paper trains it: SD v1.4 of GenImage, tested on all eight generators.

    python -m cinemae_jax.train --config configs/sd14.py --workdir runs/sd14 \
        --config.data.root=/data/GenImage --config.backbone=mae_visualize_vit_large.safetensors

Needs: GenImage in its own layout (it reads the 324,000 training images of SD v1.4 and the eight val
splits, 100,000 images), and official ViT-L/16 weights converted by `cinemae convert`.

Cost: one backbone pass of 452 GFLOP per image (the global pass and R = 8 masked runs), 1.9e17 FLOP
in total.  After that, an epoch of the head takes seconds.

Expected (reported by the paper, not measured here): mean accuracy over the eight generators
95.96 %, and about 92 % without masked runs (fusion global, num_runs 0).

Stated by the paper: K = 2, additive fusion, 25 epochs, binary cross-entropy, frozen ViT-L/16.
Chosen by this project: the formulas of score and statistics, mismatch_weight, pooling, hidden
width, optimiser, batch size, crops, and the validation split.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the head and of the order of images
    config.num_seeds = 1  # heads trained at once; the report has mean and deviation
    config.backbone = "mae_visualize_vit_large.safetensors"  # file, or 'tiny' for the bundled one
    config.global_backbone = ""  # encoder of f_global; clip: the bundled one; "": the MAE
    config.detector = detector()
    config.data = data()
    config.features = features()
    config.train = train()
    config.eval = evaluation()
    return config


def detector() -> ConfigDict:
    """What is scored, and how."""
    config = ConfigDict()
    config.num_runs = 2  # K
    config.anomaly = "statistics"  # or bands (by spatial frequency, beyond the paper)
    config.mask_ratio = 0.75
    config.masking = "random"  # the paper's; beyond it: disjoint, stratified (docs/method.md)
    config.texture_temperature = 1.0  # of stratified; large: uniform within a stratum
    config.pooling = "cls"  # or mean
    config.score = "context_nll"  # docs/method.md lists the others
    config.mismatch_weight = 1.0  # λ
    config.learn_mismatch_weight = False
    config.statistics = ("variability", "mean_anomaly", "perturbation_sensitivity")
    config.sensitivity = "run"  # or patch
    config.score_share = 1.0  # share of a run's masked patches that s1, s2, s3 summarise
    config.share_by = "texture"  # the most textured ones; random: a control of equal size
    config.frequency = "none"  # or radial, blocks, residual: of the image itself, beyond the paper
    config.fusion = "additive"  # concat, gate, logit, global, lcas, hybrid, frequency
    config.hidden = 256  # of MLP_δ; 0 makes it linear
    config.clip = 0.0  # of MLP_δ's standardised inputs; 0: no clipping
    config.dtype = "float32"  # of the backbone; bfloat16 is for accelerators
    config.attention = "plain"  # xla, cudnn: of the backbone; rounding only
    config.run_layout = "vmap"  # or fold: K runs as one large batch; rounding only
    config.uniform_variance = 1e-3  # variance below which a patch is uniform
    config.low_context_share = 0.5  # share of uniform patches that flags an image
    return config


def data() -> ConfigDict:
    """Which images, and how they become squares."""
    config = ConfigDict()
    config.root = ""  # folder, nature=DIR,ai=DIR, list, or TFDS data_dir
    config.source = "folder"  # or tfds
    config.quarantine = ""  # CSV of images to leave out, written by `cinemae doctor`
    config.train_generators = ("stable_diffusion_v_1_4",)
    config.test_generators = ()  # (): all with a val split
    config.holdout = 0.05  # share of training images held out for validation
    config.resize = 256  # pixels, shorter side before cropping; 0: native pixels
    config.num_crops = 1  # per image, scores averaged: 1, 4, 9, ...
    config.eval_crops = 0  # in scoring only; 0: num_crops
    config.global_view = "crop"  # of a global backbone: each crop, or the whole image once
    config.random_crop = True  # of training images
    config.flip = True  # of training images
    config.augment = ConfigDict()  # of training images, both classes alike; the paper: off
    config.augment.jpeg_probability = 0.0
    config.augment.jpeg_quality = (60, 100)
    config.augment.resize_probability = 0.0
    config.augment.resize_scale = (0.5, 1.0)
    config.augment.short_probability = 0.0
    config.augment.short_side = (256, 256)  # pixels
    config.augment.together = False  # one draw for the steps above, else one each
    config.augment.brightness_probability = 0.0
    config.augment.brightness = (0.6, 1.5)  # factor on all values
    config.augment.noise_probability = 0.0
    config.augment.noise = (0.0, 5.0)  # standard deviation, grey levels
    config.num_threads = 16  # decoding
    return config


def features() -> ConfigDict:
    """How images become the features that the head learns from."""
    config = ConfigDict()
    config.source = "bank"  # one backbone pass for all epochs; or online
    config.bank = ""  # folder; '': in the workdir
    config.seed = 0  # of masks and augmentation
    config.num_runs = 8  # R, masked runs stored; each epoch draws K of them
    config.num_views = 1  # V, augmented views stored per training image
    config.batch_size = 64  # images per backbone call
    config.shard_images = 4096  # images per file, ~100 MB with ViT-L/16, R = 8
    config.memory = 16.0  # GB of features in memory; larger banks are streamed
    return config


def train() -> ConfigDict:
    """Optimisation of the head."""
    config = ConfigDict()
    config.batch_size = 256  # images, over all devices
    config.epochs = 25
    config.learning_rate = 1e-3  # peak
    config.warmup = 0.05  # share of steps
    config.weight_decay = 1e-2
    config.global_weight_decay = 1e-2  # of the global pathway of fusions logit and hybrid
    config.frequency_weight_decay = 1e-2  # of the frequency pathway of hybrid and frequency
    config.standardize_images = 4096  # used to standardise the head's inputs
    config.checkpoint_every = 500  # steps
    return config


def evaluation() -> ConfigDict:
    """How results are measured."""
    config = ConfigDict()
    config.detector = ""  # folder, file or 'tiny' to evaluate; '': the workdir's
    config.batch_size = 256  # images, over all devices
    config.bootstrap = 1000  # resamples
    config.confidence = 0.95
    config.fpr = 0.05  # largest share of photographs called ai; a named detector has its own
    config.fnr = 0.05  # largest share of AI images called nature; likewise
    return config
