#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --chdir=/checkout
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:7_0:7_1:9
#SBATCH --error=/runs/%A_%a_0_log.err
#SBATCH --job-name=igpt-0a1b2c
#SBATCH --mem=1536M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/%A_%a_0_log.out
#SBATCH --partition=main
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=30
#SBATCH --wckey=submitit

# setup
export IGPT_JOB_BEGUN=$(date +%s)
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=1
export PYTHONPATH=/code
export PYTHONSAFEPATH=1
export IGPT_ROOT=/code

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/%A_%a_%t_log.out --error /runs/%A_%a_%t_log.err python -u -m submitit.core._submit /runs
