"""Conversion of checkpoints published by others to omnikit checkpoints."""
