"""Samewire: a Host Networking Service for Linux nodes with an eBPF switch."""

__version__ = "0.1.0"
