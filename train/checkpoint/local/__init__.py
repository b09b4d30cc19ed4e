"""Checkpoints on the nodes' own disks: quicker than a store, and gone with their nodes."""
