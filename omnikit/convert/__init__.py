"""Checkpoints that others published, as omnikit models."""
