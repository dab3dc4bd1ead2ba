"""Benchmarks of a system: time and memory of each stage of an answer, for `omnikit bench`."""
