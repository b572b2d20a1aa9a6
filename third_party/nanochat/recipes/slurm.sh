#!/usr/bin/env bash
# On one machine of a Slurm cluster, from the root of the repository, after `uv sync --extra data`:
#
#     sbatch third_party/nanochat/recipes/slurm.sh
#
# Ten minutes before its time is over the job is told to stop; it saves, and goes back into the
# queue to go on from there. A job that has to make room does so where the cluster is configured with
# PreemptParameters=send_user_signal.
#SBATCH --job-name=nanochat
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=256G
#SBATCH --time=06:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nanochat-%j.log
#SBATCH --signal=B:TERM@600
set -u

cd "$SLURM_SUBMIT_DIR" || exit 2
source .venv/bin/activate || exit 2

# Not under srun, which would tell every process of the stage: a second word to stop saves nothing.
python -m scripts.speedrun --size=d20 &
child=$!
asked=
trap 'asked=yes; kill -TERM "$child"' TERM
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break # else it was a signal that ended the wait, not the stage
done
if [ -n "$asked" ] && [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
