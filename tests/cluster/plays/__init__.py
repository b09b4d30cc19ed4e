"""Faults, each done to a job on the cluster."""
