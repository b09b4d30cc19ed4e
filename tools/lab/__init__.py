"""Real services on one machine: a multi-node Slurm cluster and an S3 server, both throw-away."""
