"""Plans as SLURM jobs: profiles, job arrays, snapshots of the code, and job status."""
