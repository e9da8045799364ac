#!/bin/bash
# Collect a zoo by an array of jobs, each of which trains its share of the runs:
#   sbatch --array=0-15 docker/slurm/collect.sh configs/mnist.yaml --data.collector.runs 8000
# What follows the config is passed on.  Shards that are already there are left alone, so an array that ended early is
# submitted again as it was.
# WSFLOW is the command, such as "apptainer run wsflow.sif"; WSFLOW_DATA is the folder of the base task's data.
#SBATCH --job-name=wsflow-collect
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail

config=${1:-configs/mnist.yaml}
read -r -a wsflow <<< "${WSFLOW:-wsflow}"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since SLURM 22.05 srun does not take the job's by itself

# Every process takes its share of the runs by what SLURM tells it; with --ntasks-per-node there are several a task.
srun "${wsflow[@]}" collect -c "$config" --quiet "${@:2}"
