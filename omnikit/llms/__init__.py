"""Backbones: causal language models that compute the hidden states of all streams and the text logits."""
