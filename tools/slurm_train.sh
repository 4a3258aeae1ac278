#!/bin/bash
# Trains on the machines of a Slurm job. What is set here can be given to sbatch as options, before the script's name:
#   sbatch --nodes 4 tools/slurm_train.sh --config-file CONFIG train.output_dir=FOLDER [key=value ...]
# Two minutes before its time is over the training saves and stops, and the job is queued again. So it is by Slurm when
# the job is preempted. A job goes on from the newest whole checkpoint in FOLDER, where there is one.
#SBATCH --job-name=align_detr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

go_on_later() {
	scancel --signal=TERM "$SLURM_JOB_ID"  # its steps; to srun itself it would be the order to kill them
	wait "$training" || true
	scontrol requeue "$SLURM_JOB_ID"
	exit 0
}
trap go_on_later USR1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
	--rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29400" \
	tools/train_net.py --resume=auto "$@" &
training=$!
wait "$training"
