"""Where the runs of a sweep go: processes of this machine, or tasks of a SLURM cluster."""
