"""Executors of sweeps: this process, workers, a Ray cluster, a Slurm cluster."""
