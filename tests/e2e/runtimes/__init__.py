"""Real container runtimes on a node of their own: containerd through its CRI, and podman with CNI networks."""
