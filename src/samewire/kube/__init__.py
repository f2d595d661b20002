"""Kubernetes objects: where they come from (an API server or manifest files) and what of them is kept."""
