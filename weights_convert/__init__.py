"""Conversion of published MAE weights, and its verification against PyTorch."""
