"""CINEMAE as the paper trains it: SD v1.4 of GenImage, tested on all eight generators.

    python -m cinemae_jax.train --config configs/sd14.py --workdir runs/sd14 \
        --config.data.root=/data/GenImage --config.backbone=mae_visualize_vit_large.safetensors

Needs: GenImage in its own layout, of which this reads 324,000 training images of SD v1.4 and the
eight val splits (100,000 images), and official ViT-L/16 weights, converted by `cinemae convert`.

Costs: 452 GFLOP an image (the global pass and R = 8 masked ones), once: 1.9e17 FLOP for these
images.  The head's epochs after that are seconds each.

Should reach, by the paper (reported, not measured here): mean accuracy over the eight generators
95.96 %, and about 92 % without masked runs (fusion global, num_runs 0).

What the paper states: K = 2, additive fusion, 25 epochs, binary cross-entropy, frozen ViT-L/16.
What is this project's own choice where the paper is silent: the formulas of score and statistics,
mismatch_weight, pooling, hidden width, optimiser, batch size, crops, and the validation split.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the head and the order of images
    config.num_seeds = 1  # heads trained at once; the table has their mean and deviation
    config.backbone = "mae_visualize_vit_large.safetensors"  # file, or 'tiny' for the bundled one

    config.detector = ConfigDict()
    config.detector.num_runs = 2  # K
    config.detector.anomaly = "statistics"  # or bands: by spatial frequency, beyond the paper
    config.detector.mask_ratio = 0.75
    config.detector.pooling = "cls"  # or mean
    config.detector.score = "deviation_plus_mismatch"
    config.detector.mismatch_weight = 1.0  # λ
    config.detector.learn_mismatch_weight = False
    config.detector.statistics = ("variability", "mean_anomaly", "perturbation_sensitivity")
    config.detector.sensitivity = "run"  # or patch
    config.detector.fusion = "additive"  # concat, gate, logit, global, lcas
    config.detector.hidden = 256  # of MLP_δ; 0 makes it linear
    config.detector.clip = 0.0  # of MLP_δ's standardised inputs; 0 for none
    config.detector.dtype = "float32"  # of the backbone, in full; bfloat16 is for accelerators
    config.detector.uniform_variance = 1e-3  # within a patch, below which it counts as uniform
    config.detector.low_context_share = 0.5  # of uniform patches, above which an image is flagged

    config.data = ConfigDict()
    config.data.root = ""  # GenImage's folder, nature=DIR,ai=DIR, a list, or a TFDS data_dir
    config.data.source = "folder"  # or tfds
    config.data.quarantine = ""  # CSV of images to leave out, as `cinemae doctor` writes it
    config.data.train_generators = ("stable_diffusion_v_1_4",)
    config.data.test_generators = ()  # all that have a val split
    config.data.holdout = 0.05  # share of the training images kept for validation
    config.data.resize = 256  # pixels, shorter side before cropping; 0 keeps native pixels
    config.data.num_crops = 1  # of an image, their scores averaged: 1, 4, 9, ...
    config.data.eval_crops = 0  # the same in scoring alone; 0 for num_crops
    config.data.random_crop = True  # of training images
    config.data.flip = True  # of training images
    config.data.augment = ConfigDict()  # of training images, both classes alike; off in the paper
    config.data.augment.jpeg_probability = 0.0
    config.data.augment.jpeg_quality = (60, 100)
    config.data.augment.resize_probability = 0.0
    config.data.augment.resize_scale = (0.5, 1.0)
    config.data.augment.short_probability = 0.0
    config.data.augment.short_side = (256, 256)  # pixels
    config.data.augment.together = False  # one draw for all of these steps; else one for each
    config.data.augment.brightness_probability = 0.0
    config.data.augment.brightness = (0.6, 1.5)  # factor of all values
    config.data.augment.noise_probability = 0.0
    config.data.augment.noise = (0.0, 5.0)  # standard deviation, grey levels
    config.data.num_threads = 16  # decoding

    config.features = ConfigDict()
    config.features.source = "bank"  # one backbone pass for all epochs and heads; or online
    config.features.bank = ""  # folder; '' for one in the workdir
    config.features.seed = 0  # of masks and augmentation
    config.features.num_runs = 8  # R, masking runs stored; every epoch draws K of them
    config.features.num_views = 1  # V, augmented views stored of each training image
    config.features.batch_size = 64  # images at a time through the backbone
    config.features.shard_images = 4096  # images a file, about 100 MB with ViT-L/16 and R = 8
    config.features.memory = 16.0  # GB of features held in memory; larger banks are streamed

    config.train = ConfigDict()
    config.train.batch_size = 256  # images, over all devices
    config.train.epochs = 25
    config.train.learning_rate = 1e-3  # at the peak
    config.train.warmup = 0.05  # share of the steps
    config.train.weight_decay = 1e-2
    config.train.global_weight_decay = 1e-2  # of the global pathway of fusion logit
    config.train.standardize_images = 4096  # that the head's inputs are standardised by
    config.train.checkpoint_every = 500  # steps

    config.eval = ConfigDict()
    config.eval.detector = ""  # that evaluate scores with: folder, file or 'tiny'; '' for workdir's
    config.eval.batch_size = 256  # images, over all devices
    config.eval.bootstrap = 1000  # resamples
    config.eval.confidence = 0.95
    config.eval.fpr = 0.05  # share of photographs called ai, at most; a named detector has its own
    config.eval.fnr = 0.05  # share of ai images called nature, at most; likewise
    return config
