"""The node daemon: everything with effects is wired together here."""
