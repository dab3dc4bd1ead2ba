"""Backbones: causal language models that read and write the streams."""
