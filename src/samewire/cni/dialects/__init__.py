"""Configurations of other plugins, taken as they are: win-bridge, win-overlay, sdnbridge, sdnoverlay, azure-vnet.

`names` says which, `read` turns a configuration into one of Samewire's own with a `Dialect` beside it, `plan` makes
the attachment and the result as that plugin would. `flannel` puts a configuration of flannel's plugin into one of
its delegate. docs/guides/cni.md has what each plugin's keys do here.
"""
