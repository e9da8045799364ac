#!/bin/bash
# Generate networks by an array of jobs, each of which generates its part of them:
#   sbatch --array=0-7 docker/slurm/predict.sh runs/mnist/checkpoints/last.ckpt --n 8000 --steps 4
# What follows the checkpoint is passed on; without --out the networks are those in the run's folder, samples/.
#SBATCH --job-name=wsflow-predict
#SBATCH --array=0-7
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail

checkpoint=${1:-runs/mnist/checkpoints/last.ckpt}
read -r -a wsflow <<< "${WSFLOW:-wsflow}"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since SLURM 22.05 srun does not take the job's by itself

# The array's tasks share the networks by what SLURM tells them; with --ntasks-per-node a task has several GPUs.
srun "${wsflow[@]}" predict --ckpt_path "$checkpoint" "${@:2}"
