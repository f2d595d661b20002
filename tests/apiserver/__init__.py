"""The contract of Kubernetes sources, and the API server that stands in for a real one."""
