"""The other nodes of an overlay: from Kubernetes' Nodes to RemoteSubnetRoute policies.

`flannel` reads what flanneld writes on its Node (pure); `controller` keeps the network as the Nodes say.
"""
