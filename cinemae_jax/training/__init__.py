"""What is optimised: heads on frozen features, backbones, and the unfrozen ablation."""
