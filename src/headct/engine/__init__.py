"""Where tasks run: processes of this machine, a Ray cluster, or Slurm jobs; the results agree."""
