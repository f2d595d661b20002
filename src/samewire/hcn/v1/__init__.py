"""HNS v1: the older dialect, of `HNSCall`. Objects are the same as in v2; only their shape differs."""
