#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --array=0-2%3
#SBATCH --chdir=/checkout
#SBATCH --cpus-per-task=16
#SBATCH --dependency=afterany:7_0:7_1:9
#SBATCH --error=/runs/%A_%a_0_log.err
#SBATCH --job-name=igpt-0a1b2c
#SBATCH --mem=65536M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=240
#SBATCH --wckey=submitit

# setup
export IGPT_JOB_BEGUN=$(date +%s)
module load cuda
export OMP_NUM_THREADS=16
export SRUN_CPUS_PER_TASK=16
export PYTHONPATH=/code
export PYTHONSAFEPATH=1
export IGPT_ROOT=/code

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/%A_%a_%t_log.out --error /runs/%A_%a_%t_log.err python -u -m submitit.core._submit /runs
