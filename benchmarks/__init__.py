"""Benchmarks: every figure beside its peer, taken in the same run (method and how to read: README.md)."""
