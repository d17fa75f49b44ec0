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

    config.detector = ConfigDict()
    config.detector.num_runs = 2  # K
    config.detector.anomaly = "statistics"  # or bands (by spatial frequency, beyond the paper)
    config.detector.mask_ratio = 0.75
    config.detector.pooling = "cls"  # or mean
    config.detector.score = "deviation_plus_mismatch"
    config.detector.mismatch_weight = 1.0  # λ
    config.detector.learn_mismatch_weight = False
    config.detector.statistics = ("variability", "mean_anomaly", "perturbation_sensitivity")
    config.detector.sensitivity = "run"  # or patch
    config.detector.fusion = "additive"  # concat, gate, logit, global, lcas
    config.detector.hidden = 256  # of MLP_δ; 0 makes it linear
    config.detector.clip = 0.0  # of MLP_δ's standardised inputs; 0: no clipping
    config.detector.dtype = "float32"  # of the backbone; bfloat16 is for accelerators
    config.detector.uniform_variance = 1e-3  # variance below which a patch is uniform
    config.detector.low_context_share = 0.5  # share of uniform patches that flags an image

    config.data = ConfigDict()
    config.data.root = ""  # folder, nature=DIR,ai=DIR, list, or TFDS data_dir
    config.data.source = "folder"  # or tfds
    config.data.quarantine = ""  # CSV of images to leave out, written by `cinemae doctor`
    config.data.train_generators = ("stable_diffusion_v_1_4",)
    config.data.test_generators = ()  # (): all with a val split
    config.data.holdout = 0.05  # share of training images held out for validation
    config.data.resize = 256  # pixels, shorter side before cropping; 0: native pixels
    config.data.num_crops = 1  # per image, scores averaged: 1, 4, 9, ...
    config.data.eval_crops = 0  # in scoring only; 0: num_crops
    config.data.random_crop = True  # of training images
    config.data.flip = True  # of training images
    config.data.augment = ConfigDict()  # of training images, both classes alike; the paper: off
    config.data.augment.jpeg_probability = 0.0
    config.data.augment.jpeg_quality = (60, 100)
    config.data.augment.resize_probability = 0.0
    config.data.augment.resize_scale = (0.5, 1.0)
    config.data.augment.short_probability = 0.0
    config.data.augment.short_side = (256, 256)  # pixels
    config.data.augment.together = False  # one draw for the steps above, else one each
    config.data.augment.brightness_probability = 0.0
    config.data.augment.brightness = (0.6, 1.5)  # factor on all values
    config.data.augment.noise_probability = 0.0
    config.data.augment.noise = (0.0, 5.0)  # standard deviation, grey levels
    config.data.num_threads = 16  # decoding

    config.features = ConfigDict()
    config.features.source = "bank"  # one backbone pass for all epochs; or online
    config.features.bank = ""  # folder; '': in the workdir
    config.features.seed = 0  # of masks and augmentation
    config.features.num_runs = 8  # R, masked runs stored; each epoch draws K of them
    config.features.num_views = 1  # V, augmented views stored per training image
    config.features.batch_size = 64  # images per backbone call
    config.features.shard_images = 4096  # images per file, ~100 MB with ViT-L/16, R = 8
    config.features.memory = 16.0  # GB of features in memory; larger banks are streamed

    config.train = ConfigDict()
    config.train.batch_size = 256  # images, over all devices
    config.train.epochs = 25
    config.train.learning_rate = 1e-3  # peak
    config.train.warmup = 0.05  # share of steps
    config.train.weight_decay = 1e-2
    config.train.global_weight_decay = 1e-2  # of fusion logit's global pathway
    config.train.standardize_images = 4096  # used to standardise the head's inputs
    config.train.checkpoint_every = 500  # steps

    config.eval = ConfigDict()
    config.eval.detector = ""  # folder, file or 'tiny' to evaluate; '': the workdir's
    config.eval.batch_size = 256  # images, over all devices
    config.eval.bootstrap = 1000  # resamples
    config.eval.confidence = 0.95
    config.eval.fpr = 0.05  # largest share of photographs called ai; a named detector has its own
    config.eval.fnr = 0.05  # largest share of AI images called nature; likewise
    return config
