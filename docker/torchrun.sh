#!/bin/bash
# Train a flow by torchrun, on one machine or on several without a scheduler.  On every machine, with the same NODES
# and with MASTER the name of the first, which all can reach:
#   NODES=2 NODE=0 MASTER=first.local docker/torchrun.sh configs/mnist.yaml
#   NODES=2 NODE=1 MASTER=first.local docker/torchrun.sh configs/mnist.yaml
# PROCESSES is the number of GPUs of each machine.  On a machine without GPUs:
#   PROCESSES=2 docker/torchrun.sh configs/gaussians.yaml --trainer.accelerator cpu
set -euo pipefail

config=${1:-configs/mnist.yaml}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec torchrun --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${PROCESSES:-gpu}" \
    --master-addr "${MASTER:-127.0.0.1}" --master-port "${PORT:-29500}" --max-restarts "${RESTARTS:-0}" \
    -m wsflow fit -c "$config" --trainer.strategy ddp --ckpt_path last "${@:2}"
