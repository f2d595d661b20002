"""What a request means: pure functions from a view of the objects to a list of changes.

Everything HNS checks across objects is here: names and subnets that clash, free addresses and MACs, port
mappings, references, attachment. Nothing here has an effect; `samewire.hcn.service` applies the changes.
"""
