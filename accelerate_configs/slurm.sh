#!/bin/bash
# sbatch accelerate_configs/slurm.sh --dataset_dir DATA --output_dir OUT --do_train …
# One task a machine; torchrun starts a process for each GPU of it.
#SBATCH --job-name=segmentation
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
# Asks for a checkpoint two minutes before the time is up; --resume_from_checkpoint last goes on from it.
#SBATCH --signal=TERM@120
#SBATCH --time=24:00:00

set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" --rdzv_backend c10d \
    --rdzv_endpoint "$first:29500" --rdzv_id "$SLURM_JOB_ID" run_segmentation.py "$@"
