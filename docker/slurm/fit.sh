#!/bin/bash
# Train a flow on several nodes, one process for each GPU:
#   sbatch --nodes=2 docker/slurm/fit.sh configs/mnist.yaml --data.collector.runs 8000
#   sbatch --dependency=afterok:<job of collect.sh> docker/slurm/fit.sh configs/mnist.yaml --data.collector.runs 8000
# Collect the zoo before.  What follows the config is passed on, and what it says of the zoo is what collect.sh was told.
# Two minutes before its time is up, or when it is preempted, the job saves itself; queued again, it goes on from there.
#SBATCH --job-name=wsflow-fit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

config=${1:-configs/mnist.yaml}
read -r -a wsflow <<< "${WSFLOW:-wsflow}"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since SLURM 22.05 srun does not take the job's by itself

# srun must be what starts the processes: they learn their ranks from it, and it passes signals on to all of them.
srun --kill-on-bad-exit=1 "${wsflow[@]}" fit -c "$config" --trainer.strategy ddp --ckpt_path last "${@:2}"
